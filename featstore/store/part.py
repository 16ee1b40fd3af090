"""One immutable part of a feature: raw chunk files, mapped when first touched."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from featstore.store import layout, metadata
from featstore.store.layout import StoreError
from featstore.types import FeatureSpec, Frames


class Part:
    """A part of a feature: `num_frames` rows of frames, and the pooled rows of `num_utterances`."""

    def __init__(
        self, folder: Path, spec: FeatureSpec, num_frames: int, num_utterances: int, *, verify: bool = False
    ) -> None:
        self._folder, self._spec, self._verify = folder, spec, verify
        self.num_frames, self.num_utterances = num_frames, num_utterances
        self._chunk_rows = 0
        self._chunks: dict[int, Frames] = {}  # by number: how many there are, only metadata claims
        self._pooled: dict[str, Frames] = {}

    def rows(self, start: int, stop: int) -> Frames:
        """Frames ``start:stop`` of the part, (frames, dim), read-only: a view where one chunk holds them.

        Raises
        ------
        StoreError : a chunk is missing, of the wrong size or (with `verify`) damaged.
        """
        size = self._chunk_rows
        if not size:
            size = self._chunk_rows = self._read_chunk_rows("frames", self.num_frames)
        i = start // size
        if stop <= (i + 1) * size:
            chunk = self._chunks.get(i)
            if chunk is None:
                chunk = self._chunk(i)
            return chunk[start - i * size : stop - i * size]
        pieces = [
            self._chunk(j)[max(start - j * size, 0) : min(stop - j * size, size)] for j in range(i, -(-stop // size))
        ]
        return np.concatenate(pieces)

    def at_hand(self, start: int, stop: int) -> bool:
        """Whether `rows` gives these frames without asking a server."""
        return True

    def _chunk(self, i: int) -> Frames:
        if i * self._chunk_rows >= self.num_frames:  # only an empty crop at the very end asks for this
            return np.empty((0, self._spec.dim), dtype=self._spec.dtype)
        chunk = self._chunks.get(i)
        if chunk is None:
            chunk = self._chunks[i] = self._map("frames", i, self._chunk_rows, self._spec.dtype)
        return chunk

    def pooled(self, statistic: str) -> Frames:
        """The part's "mean" or "std", (utterances, dim) float32, read-only."""
        array = self._pooled.get(statistic)
        if array is None:
            rows = self._read_chunk_rows(statistic, self.num_utterances)
            array = self._pooled[statistic] = self._map(statistic, 0, rows, "float32")
        return array

    def lacking(self) -> list[str]:
        """Its chunk files that are missing or not of their size: a look at the folder, without reading them."""
        found = []
        for array, rows, dtype in (
            ("frames", self.num_frames, self._spec.dtype),
            ("mean", self.num_utterances, "float32"),
            ("std", self.num_utterances, "float32"),
        ):
            size = self._read_chunk_rows(array, rows)
            expected = size * self._spec.dim * np.dtype(dtype).itemsize + layout.CRC_BYTES
            keys = [layout.chunk(array, i) for i in range(-(-rows // size))]
            found += [key for key in keys if self._bytes(key) != expected]
        return found

    def _bytes(self, key: str) -> int | None:
        """Of a chunk file; None where there is none."""
        path = self._folder / key
        return path.stat().st_size if path.is_file() else None

    def _read_chunk_rows(self, array: str, rows: int) -> int:
        path = self._folder / layout.array_json(array)
        meta = metadata.read_json(path)
        try:
            shape, chunk = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        except (KeyError, TypeError):
            raise StoreError(f"{path}: no Zarr v3 array metadata; run: featstore verify") from None
        whole = shape == [rows, self._spec.dim] and isinstance(chunk, list) and len(chunk) == 2 and chunk[1] == shape[1]
        if not whole or type(chunk[0]) is not int or not 0 < chunk[0] <= rows:
            raise StoreError(
                f"{path}: expected shape {[rows, self._spec.dim]} in whole rows, found shape {shape}, chunks {chunk}; "
                "run: featstore verify"
            )
        return chunk[0]

    def _map(self, array: str, i: int, rows: int, dtype: str) -> Frames:
        key = layout.chunk(array, i)
        path = self._folder / key
        kind = np.dtype(dtype).newbyteorder("<")
        size = rows * self._spec.dim * kind.itemsize
        sealed = self._sealed.get(key) if self._verify else None
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size + layout.CRC_BYTES:
                    raise StoreError(
                        f"{path}: expected {size + layout.CRC_BYTES} bytes, found {found}; run: featstore verify"
                    )
                if self._verify:
                    try:
                        check_chunk(file, path, size, sealed)
                    except StoreError as error:
                        raise StoreError(f"{error}; run: featstore verify STORE --repair") from None
            # Arrow's map outlives its file. Python's keeps a descriptor, and a store has more chunks than those.
            with pa.memory_map(os.fsencode(path)) as mapped:
                data = mapped.read_buffer(size)
        except FileNotFoundError:
            raise StoreError(f"{path}: the chunk is missing; run: featstore verify STORE --repair") from None
        except OSError as error:
            raise layout.not_readable(path, error, "; run: featstore verify") from None
        return np.frombuffer(data, dtype=kind).reshape(rows, self._spec.dim)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: a process that is handed a part maps its chunks itself."""
        return {k: v for k, v in vars(self).items() if k != "_sealed"} | {"_chunks": {}, "_pooled": {}}

    @cached_property
    def _sealed(self) -> dict[str, int]:
        """CRC32C by chunk file, as the part was committed."""
        sealed: dict[str, int] = metadata.read_seal(self._folder)["chunk_crc32c"]
        return sealed


def check_chunk(file: BinaryIO, path: Path, size: int, sealed: int | None) -> None:
    """Compare the `size` bytes of a chunk file with its own CRC32C, and that with the one the part was sealed with.

    Both are needed: the first finds damage, the second swapped files. The file is read, never mapped: on a map, a sector
    that cannot be read ends the process.

    Raises
    ------
    StoreError : damaged, another chunk, or not readable.
    """
    import google_crc32c

    found, left = 0, size
    try:
        while left and (piece := file.read(min(left, 1 << 20))):  # larger pieces are slower
            found, left = google_crc32c.extend(found, piece), left - len(piece)
        own = int.from_bytes(file.read(layout.CRC_BYTES), "little")
    except OSError as error:
        raise layout.not_readable(path, error) from None
    if left or found != own:
        raise StoreError(f"{path}: damaged (CRC32C differs)")
    if own != sealed:
        raise StoreError(f"{path}: whole, but not the chunk that was committed here")
