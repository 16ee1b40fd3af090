"""Writing a store: utterances gather in memory and are committed part by part.

A kill at any moment loses what was not committed yet and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from featstore.store import layout, lock, metadata
from featstore.store.codebooks import write_codebooks
from featstore.store.commit import commit_part
from featstore.store.reader import Store
from featstore.types import Codebooks, FeatureSpec, Frames, Utterance

#: A part is committed when it holds this much …
PART_BYTES = 256 << 20


#: … or when its first utterance has waited this long: what a kill can cost.
PART_SECONDS = 30.0


#: What one id must mean in every feature of a store.
FACTS = ("recording", "speaker", "split", "turns")


def writer(
    path: str | PathLike[str],
    spec: FeatureSpec,
    *,
    codebooks: Codebooks | None = None,
    part_bytes: int | None = None,
    part_seconds: float | None = None,
) -> Writer:
    """Open a store for adding one feature; makes the store if there is none. Use as a context manager.

    Any number of writers, on any number of machines, may add to one store at once; until it is closed (or collected),
    a writer keeps those out that remove parts.

    Parameters
    ----------
    codebooks : of a feature of codes, whose spec pins them.
    part_bytes, part_seconds : commit a part at this size or age; PART_BYTES and PART_SECONDS without.

    Raises
    ------
    FingerprintMismatch : the store holds another feature under ``spec.name``.
    StoreError : a table of the store is damaged, or the store is being compacted or repaired.
    OSError : no permission, no space.
    """
    return Writer(Path(path), spec, part_bytes, part_seconds, codebooks)


class Writer:
    """See `writer`."""

    def __init__(
        self,
        path: Path,
        spec: FeatureSpec,
        part_bytes: int | None = None,
        part_seconds: float | None = None,
        codebooks: Codebooks | None = None,
    ) -> None:
        metadata.create(path, spec)
        write_codebooks(path, spec, codebooks)
        with ExitStack() as held:
            held.enter_context(lock.hold(path))
            #: The store as it was when this was opened.
            self.store = Store(path)
            self._there = self.store.index(spec.name).rows
            len(self.store)  # reads all tables: damage must show now, not when hours of frames are computed
            self._held = held.pop_all()
        self.path, self.spec = path, spec
        self._part_bytes = PART_BYTES if part_bytes is None else part_bytes
        self._part_seconds = PART_SECONDS if part_seconds is None else part_seconds
        self._added: set[str] = set()
        # Unique without asking anyone: time first, so that names sort in the order of writing.
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(4).hex()}"
        self._count = 0
        self._clear()

    def _clear(self) -> None:
        self._utterances: list[Utterance] = []
        self._frames: list[Frames] = []
        self._bytes = 0
        self._since_s = 0.0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Whole utterances are worth keeping even when something else went wrong; a failed commit is not tried twice.
        with self._held:
            if not isinstance(error, OSError):
                self.commit()

    def missing(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """Those of `utterances` that this feature does not hold yet, in their order."""
        return [u for u in utterances if u.id not in self._there and u.id not in self._added]

    def add(self, utterance: Utterance, frames: ArrayLike) -> None:
        """Add one utterance's frames, shape (frames, dim); they are on disk after the next commit.

        Raises
        ------
        ValueError : no frames, another dim, NaN or infinity, values its dtype cannot hold, an id that is there
            already, or an id that the store knows with other facts (speaker, recording, …).
        OSError : as `commit`.
        """
        self.gather(utterance, frames)
        if self.due:
            self.commit()

    def gather(self, utterance: Utterance, frames: ArrayLike) -> None:
        """`add` without the commit: a ValueError here is this utterance's own."""
        array = np.asarray(frames)
        what = f"utterance {utterance.id!r}, feature {self.spec.name!r}"
        if array.ndim != 2 or array.shape[1] != self.spec.dim or not len(array):
            raise ValueError(f"{what}: expected frames of shape (1 or more, {self.spec.dim}), found {array.shape}")
        largest = float(np.abs(array).max())  # NaN and infinity pass through max
        limit = float((np.iinfo if self.spec.whole else np.finfo)(self.spec.dtype).max)
        if not largest <= limit:
            raise ValueError(
                f"{what}: frames must be finite and within ±{limit:g} ({self.spec.dtype}), found {largest}"
            )
        if self.spec.whole and not np.array_equal(array, np.trunc(array)):
            raise ValueError(f"{what}: expected whole numbers, found fractions")
        if utterance.id in self._added or utterance.id in self._there:
            raise ValueError(f"{what}: already in {self.path}; an id can be added once")
        self.check_facts(utterance)
        if not self._utterances:
            self._since_s = time.monotonic()
        self._added.add(utterance.id)
        self._utterances.append(utterance)
        self._frames.append(array.astype(np.dtype(self.spec.dtype).newbyteorder("<"), order="C"))
        self._bytes += self._frames[-1].nbytes

    @property
    def due(self) -> bool:
        """Whether what was gathered is large or old enough for a part."""
        old = self._utterances and time.monotonic() - self._since_s >= self._part_seconds
        return bool(old) or self._bytes >= self._part_bytes

    def check_facts(self, utterance: Utterance) -> None:
        """Refuse an utterance that the store knows with another recording, speaker, split or turns.

        Raises
        ------
        ValueError
        """
        if utterance.id not in self.store:
            return
        there = self.store.utterance(utterance.id)
        for name in FACTS:
            old, new = getattr(there, name), getattr(utterance, name)
            if old != new:
                raise ValueError(
                    f"utterance {utterance.id!r}: {self.path} already knows it with {name} {str(old)[:80]!r}, "
                    f"found {str(new)[:80]!r}; one id must mean one utterance (to correct it: featstore relabel)"
                )

    def commit(self) -> None:
        """Write what was added since the last commit as one part; nothing to do if nothing was.

        Raises
        ------
        OSError : no space, no permission, …; the part is removed again, earlier parts stay as they are.
        """
        if not self._utterances:
            return
        part = f"{self._name}-{self._count:05d}"
        self._count += 1
        try:
            commit_part(self.path, self.spec, part, self._utterances, self._frames)
        finally:
            # Also where only the last sync failed: once the index names it, it must not be written again.
            if (self.path / layout.PartFiles(self.spec.name, part).index).exists():
                self._clear()
