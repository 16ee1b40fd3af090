"""Reading a store where it lies: tables are copied once, crops come as byte ranges through a cache in memory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from featstore.files import write_atomically
from featstore.remote.blocks import Blocks
from featstore.remote.client import TRANSFERS, Remote
from featstore.remote.specs import fetch_changes, fetch_codebooks, read_changes, read_specs
from featstore.store import layout, metadata
from featstore.store.layout import StoreError
from featstore.store.metadata import read_seal
from featstore.store.part import Part, check_chunk
from featstore.store.reader import Store
from featstore.types import FeatureSpec, Frames

#: What the cache of blocks may hold.
CACHE_BYTES = 512 << 20


def open_remote(url: str, *, verify: bool = False, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Store:
    """Open a store at an address; `featstore.open` calls this. It shows what was committed there now.

    Parameters
    ----------
    verify : fetch each chunk whole the first time it is touched, and check its CRC32C.
    cache : folder for the tables, kept between calls, which processes may share: tables come to it, and none is changed
        or removed. $XDG_CACHE_HOME/whowhen or ~/.cache/whowhen without.
    cache_bytes : of frames kept in memory, over all features.

    Raises
    ------
    StoreError : no store there, it cannot be reached, or its metadata is damaged.
    """
    remote = Remote(url)
    files = remote.files()
    specs = read_specs(remote, files)
    if cache is None:
        # Another server or other features at this address have another folder.
        what = [url, remote.endpoint, *sorted(spec.fingerprint for spec in specs.values())]
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whowhen"
        cache = base / hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    for spec in specs.values():
        metadata.create(cache, spec)
        fetch_codebooks(remote, files, cache, spec)
    changes = read_changes(remote, files)
    fetch_changes(remote, files, changes, cache)
    parts = {feature: list(names) for feature, names in layout.committed_in(files).items()}
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(lambda p: _fetch_tables(remote, files, cache, *p), [(f, p) for f in specs for p in parts[f]]))
    blocks = Blocks(remote, files, cache_bytes)
    make_part = partial(RemotePart, verify=verify, store=cache, blocks=blocks)
    return Store(cache, make_part=make_part, address=url, parts=parts, changes=changes)


def _fetch_tables(remote: Remote, files: dict[str, int], cache: Path, feature: str, part: str) -> None:
    """Seal, facts and index of a part into the cache, checked, the index last."""
    paths = layout.PartFiles(feature, part)
    if (cache / paths.index).exists():
        return
    seal = paths.seal
    remote.download(seal, cache / seal, files.get(seal, 0), cache)
    try:
        expected = read_seal(cache / paths.folder)["sha256"]
    except StoreError as error:
        (cache / seal).unlink(missing_ok=True)
        raise StoreError(f"{remote.url}/{seal}: {error}") from None
    for kind, path in (("utterances", paths.facts), ("index", paths.index)):
        data = remote.read(path, files.get(path, 0))
        if hashlib.sha256(data).hexdigest() != expected.get(kind):
            raise StoreError(f"{remote.url}/{path}: not the file that was committed")
        write_atomically(cache / path, data)


class RemotePart(Part):
    """A part whose chunk files are elsewhere. Rows are copies, read-only as everywhere."""

    def __init__(
        self,
        folder: Path,
        spec: FeatureSpec,
        num_frames: int,
        num_utterances: int,
        *,
        verify: bool,
        store: Path,
        blocks: Blocks,
    ) -> None:
        super().__init__(folder, spec, num_frames, num_utterances, verify=verify)
        self._remote_folder = folder.relative_to(store).as_posix()
        self._store, self._blocks = store, blocks

    def rows(self, start: int, stop: int) -> Frames:
        """See `Part.rows`."""
        kind = np.dtype(self._spec.dtype).newbyteorder("<")
        if stop <= start:
            return np.empty((0, self._spec.dim), dtype=kind)
        if not self._chunk_rows:
            self._chunk_rows = self._read_chunk_rows("frames", self.num_frames)
        pieces = []
        for path, begin, end in self._spans(start, stop):
            self._size(path, self._chunk_bytes)
            if self._verify:
                pieces.append(self._blocks.read(path, begin, end, self._chunk_bytes, partial(self._check, path)))
            else:
                pieces.append(self._blocks.read(path, begin, end))
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return np.frombuffer(data, dtype=kind).reshape(stop - start, self._spec.dim)

    def at_hand(self, start: int, stop: int) -> bool:
        """See `Part.at_hand`."""
        if not self._chunk_rows:
            return stop <= start
        block_bytes = self._chunk_bytes if self._verify else 0
        return all(self._blocks.hold(*span, block_bytes) for span in self._spans(start, stop))

    @property
    def _row_bytes(self) -> int:
        return self._spec.dim * np.dtype(self._spec.dtype).itemsize

    @property
    def _chunk_bytes(self) -> int:
        return self._chunk_rows * self._row_bytes + layout.CRC_BYTES

    def _spans(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """The chunk files that hold these rows, and which bytes of each."""
        size, row_bytes = self._chunk_rows, self._row_bytes
        for i in range(start // size, -(-stop // size)):
            path = f"{self._remote_folder}/{layout.chunk('frames', i)}"
            yield path, max(start - i * size, 0) * row_bytes, min(stop - i * size, size) * row_bytes

    def _size(self, path: str, expected: int) -> int:
        """Bytes of a chunk, which must be those of its rows before any are fetched."""
        found = self._blocks.size(path)
        if found != expected:
            raise StoreError(
                f"{self._blocks.remote.url}/{path}: expected {expected} bytes, found {found}; push the store again"
            )
        return found

    def _check(self, path: str, data: bytes) -> None:
        """Compare a whole chunk with its own CRC and with the one it was committed with."""
        sealed = self._sealed.get(path.removeprefix(f"{self._remote_folder}/"))
        try:
            check_chunk(io.BytesIO(data), Path(path), len(data) - layout.CRC_BYTES, sealed)
        except StoreError:
            raise StoreError(
                f"{self._blocks.remote.url}/{path}: damaged (CRC32C differs); push the store again"
            ) from None

    def _bytes(self, key: str) -> int | None:
        return self._blocks.files.get(f"{self._remote_folder}/{key}")

    def _read_chunk_rows(self, array: str, rows: int) -> int:
        path = f"{self._remote_folder}/{layout.array_json(array)}"
        self._blocks.remote.download(
            path, self._folder / layout.array_json(array), self._blocks.size(path), self._store
        )
        return super()._read_chunk_rows(array, rows)

    def _map(self, array: str, i: int, rows: int, dtype: str) -> Frames:
        """A whole chunk (of the pooled arrays), checked."""
        path = f"{self._remote_folder}/{layout.chunk(array, i)}"
        kind = np.dtype(dtype).newbyteorder("<")
        size = self._size(path, rows * self._spec.dim * kind.itemsize + layout.CRC_BYTES)
        data = self._blocks.remote.read(path, size)
        if len(data) != size:
            raise StoreError(
                f"{self._blocks.remote.url}/{path}: expected {size} bytes, found {len(data)}; push it again"
            )
        self._check(path, data)
        return np.frombuffer(data, kind, rows * self._spec.dim).reshape(rows, self._spec.dim)
