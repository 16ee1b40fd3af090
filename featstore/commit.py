"""Writing a store: utterances gather in memory and are committed part by part.

A part is written, synced, and only then named in the index: the rename of its index table is the commit.
A kill at any moment loses what was not committed yet and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from featstore import layout
from featstore.store import Store
from featstore.types import FeatureSpec, Utterance

#: A part is committed when it holds this much …
PART_BYTES = 256 << 20
#: … or when its first utterance has waited this long: what a kill can cost.
PART_SECONDS = 30.0
#: Rows of a chunk never pass this many bytes (one 85-minute meeting in float16 is 65 MB).
CHUNK_BYTES = 128 << 20
#: What one id must mean in every feature of a store.
FACTS = ("recording", "speaker", "split", "turns")


def writer(path: str | PathLike[str], spec: FeatureSpec, **settings: float) -> Writer:
    """Open a store for adding one feature; makes the store if there is none. Use as a context manager.

    Any number of writers, on any number of machines, may add to one store at once; until it is closed (or collected),
    a writer keeps those out that remove parts.

    Raises
    ------
    FingerprintMismatch : the store holds another feature under ``spec.name``.
    StoreError : a table of the store is damaged, or the store is being compacted or repaired.
    OSError : no permission, no space.
    """
    return Writer(Path(path), spec, **settings)


class Writer:
    """See `writer`."""

    def __init__(
        self, path: Path, spec: FeatureSpec, part_bytes: int = PART_BYTES, part_seconds: float = PART_SECONDS
    ) -> None:
        layout.create(path, spec)
        with ExitStack() as held:
            held.enter_context(layout.hold(path))
            #: The store as it was when this was opened.
            self.store = Store(path)
            self._there = self.store.index(spec.name).rows
            len(self.store)  # reads all tables: damage must show now, not when hours of frames are computed
            self._held = held.pop_all()
        self.path, self.spec = path, spec
        self._part_bytes, self._part_seconds = part_bytes, part_seconds
        self._added: set[str] = set()
        # Unique without asking anyone: time first, so that names sort in the order of writing.
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(4).hex()}"
        self._count = 0
        self._clear()

    def _clear(self) -> None:
        self._utterances: list[Utterance] = []
        self._frames: list[NDArray] = []
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
        ValueError : no frames, another dim, NaN or infinity, values a float16 cannot hold, an id that is there
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
        limit = float(np.finfo(self.spec.dtype).max)
        if not largest <= limit:
            raise ValueError(
                f"{what}: frames must be finite and within ±{limit:g} ({self.spec.dtype}), found {largest}"
            )
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
                    f"found {str(new)[:80]!r}; one id must mean one utterance"
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
            if (layout.index_dir(self.path, self.spec.name) / f"{part}.parquet").exists():
                self._clear()


def commit_part(
    store: Path, spec: FeatureSpec, part: str, utterances: Sequence[Utterance], frames: Sequence[NDArray]
) -> None:
    """Write one part and commit it: after this, and never before, readers see it.

    Parameters
    ----------
    frames : of each utterance, (frames, dim) in the feature's dtype.

    Raises
    ------
    OSError : no space, no permission, …; the part is removed again.
    """
    folder = layout.feature_dir(store, spec.name) / part
    facts_path = layout.utterances_dir(store) / f"{part}.parquet"
    index_path = layout.index_dir(store, spec.name) / f"{part}.parquet"
    try:
        index, facts, seal = _write_part(folder, spec, utterances, frames)
        layout.write_atomically(facts_path, facts)
        layout.write_atomically(folder / "zarr.json", seal)
        for root, _, files in os.walk(folder):
            for name in files:
                layout.sync(Path(root, name))
            layout.sync(Path(root))
        layout.sync(folder.parent)
        layout.write_atomically(index_path, index)
    except BaseException:
        if not index_path.exists():
            shutil.rmtree(folder, ignore_errors=True)
            facts_path.unlink(missing_ok=True)
        raise


def _write_part(
    folder: Path, spec: FeatureSpec, utterances: Sequence[Utterance], frames: Sequence[NDArray]
) -> tuple[bytes, bytes, bytes]:
    num = np.array([len(f) for f in frames], dtype=np.int64)
    mean, std = pool(frames)
    chunks = _write_array(folder, "frames", frames, CHUNK_BYTES)
    chunks |= _write_array(folder, "mean", [mean]) | _write_array(folder, "std", [std])
    index = parquet_bytes(pa.table([[u.id for u in utterances], np.cumsum(num) - num, num], schema=layout.INDEX_SCHEMA))
    facts = parquet_bytes(utterance_table(utterances))
    attributes = {
        "fingerprint": spec.fingerprint,
        "chunk_crc32c": chunks,
        "sha256": {
            "index": hashlib.sha256(index).hexdigest(),
            "utterances": hashlib.sha256(facts).hexdigest(),
            **{n: hashlib.sha256((folder / n / "zarr.json").read_bytes()).hexdigest() for n in layout.ARRAYS},
        },
    }
    return index, facts, layout.group_json(layout.sealed(attributes))


def pool(frames: Sequence[NDArray]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over each utterance's frames, each (utterances, dim); sums in float64."""
    mean = np.empty((len(frames), frames[0].shape[1]), dtype="<f4")
    std = np.empty_like(mean)
    for row, own in enumerate(frames):
        wide = own.astype(np.float64)
        mean[row], std[row] = wide.mean(0), wide.std(0)
    return mean, std


def _write_array(folder: Path, name: str, pieces: Sequence[NDArray], chunk_bytes: int | None = None) -> dict[str, int]:
    """Write a Zarr array of as few equal chunks as fit, a chunk at a time; returns their CRC32C by path in the part."""
    rows, first = sum(len(piece) for piece in pieces), pieces[0]
    row_bytes = first.dtype.itemsize * first.shape[1]
    count = -(-rows * row_bytes // chunk_bytes) if chunk_bytes else 1
    chunk_rows = -(-rows // count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            store=str(folder),
            name=name,
            shape=(rows, first.shape[1]),
            chunks=(chunk_rows, first.shape[1]),
            dtype=first.dtype,
            serializer=BytesCodec(endian="little"),
            filters=None,
            compressors=Crc32cCodec(),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
    crcs = {}
    ends = np.cumsum([len(piece) for piece in pieces])
    for i, start in enumerate(range(0, rows, chunk_rows)):
        stop = min(start + chunk_rows, rows)
        some = range(int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop)) + 1)
        begins = [int(ends[k]) - len(pieces[k]) for k in some]
        array[start:stop] = np.concatenate(
            [pieces[k][max(start - b, 0) : stop - b] for k, b in zip(some, begins, strict=True)]
        )
        key = f"{name}/c/{i}/0"
        with open(folder / key, "rb") as file:
            file.seek(-layout.CRC_BYTES, os.SEEK_END)
            crcs[key] = int.from_bytes(file.read(), "little")
    return crcs


def utterance_table(utterances: Iterable[Utterance]) -> pa.Table:
    """Utterances as the store's table."""
    rows = [
        {
            "id": u.id,
            "recording": u.recording,
            "speaker": u.speaker,
            "split": u.split,
            "duration": u.duration_s,
            "turns": [{"start": t.start_s, "end": t.end_s, "speaker": t.speaker} for t in u.turns],
            "source": u.audio,
            "start": u.start_s,
        }
        for u in utterances
    ]
    return pa.Table.from_pylist(rows, schema=layout.UTTERANCE_SCHEMA)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    # Ids differ from row to row: without a dictionary they are read three times as fast.
    repeating = [name for name in table.schema.names if name not in ("id", "first_frame", "turns")]
    pq.write_table(table, sink, compression="zstd", use_dictionary=[*repeating, "turns.list.element.speaker"])
    return sink.getvalue().to_pybytes()
