"""How a part comes and goes: written, synced, and only then named in the index, whose rename is the commit."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featstore import files
from featstore.store import layout, metadata
from featstore.store.tables import parquet_bytes, utterance_table
from featstore.types import FeatureSpec, Frames, Utterance

#: Rows of a chunk never pass this many bytes (one 85-minute meeting in float16 is 65 MB).
CHUNK_BYTES = 128 << 20


def commit_part(
    store: Path, spec: FeatureSpec, part: str, utterances: Sequence[Utterance], frames: Sequence[Frames]
) -> None:
    """Write one part and commit it: after this, and never before, readers see it.

    Parameters
    ----------
    frames : of each utterance, (frames, dim) in the feature's dtype.

    Raises
    ------
    OSError : no space, no permission, …; the part is removed again.
    """
    paths = layout.PartFiles(spec.name, part)
    folder, index_path = store / paths.folder, store / paths.index
    try:
        with files.naming(folder):
            index, facts, seal = _write_part(folder, spec, utterances, frames)
        files.write_atomically(store / paths.facts, facts)
        files.write_atomically(store / paths.seal, seal)
        for root, _, names in os.walk(folder):
            for name in names:
                files.sync(Path(root, name))
            files.sync(Path(root))
        files.sync(folder.parent)
        files.write_atomically(index_path, index)
    except BaseException:
        if not index_path.exists():
            shutil.rmtree(folder, ignore_errors=True)
            (store / paths.facts).unlink(missing_ok=True)
        raise


def move_part(source: Path, store: Path, feature: str, part: str) -> None:
    """Commit a part that lies whole, its files synced, in the same places below `source`, a folder on the same disk."""
    paths = layout.PartFiles(feature, part)
    for root, _, _ in os.walk(source / paths.folder):
        files.sync(Path(root))
    if (store / paths.folder).exists():  # left by a kill between the next lines
        shutil.rmtree(store / paths.folder)
    for path in reversed(paths.removal):
        os.replace(source / path, store / path)
        files.sync((store / path).parent)


def remove_part(store: Path, feature: str, part: str) -> None:
    """Delete a part, or what there is of it."""
    for path in (store / name for name in layout.PartFiles(feature, part).removal):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists():
            files.sync(path.parent)


def _write_part(
    folder: Path, spec: FeatureSpec, utterances: Sequence[Utterance], frames: Sequence[Frames]
) -> tuple[bytes, bytes, bytes]:
    num = np.array([len(f) for f in frames], dtype=np.int64)
    mean, std = pool(frames)
    chunks = _write_array(folder, "frames", frames, CHUNK_BYTES)
    chunks |= _write_array(folder, "mean", [mean]) | _write_array(folder, "std", [std])
    index = parquet_bytes(pa.table([[u.id for u in utterances], np.cumsum(num) - num, num], schema=layout.INDEX_SCHEMA))
    facts = parquet_bytes(utterance_table(utterances))
    attributes = metadata.maker() | {
        "fingerprint": spec.fingerprint,
        "chunk_crc32c": chunks,
        "sha256": {
            "index": hashlib.sha256(index).hexdigest(),
            "utterances": hashlib.sha256(facts).hexdigest(),
            **{n: hashlib.sha256((folder / layout.array_json(n)).read_bytes()).hexdigest() for n in layout.ARRAYS},
        },
    }
    return index, facts, metadata.group_json(metadata.sealed(attributes))


def pool(frames: Sequence[Frames]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over each utterance's frames, each (utterances, dim); sums in float64."""
    mean = np.empty((len(frames), frames[0].shape[1]), dtype="<f4")
    std = np.empty_like(mean)
    for row, own in enumerate(frames):
        wide = own.astype(np.float64)
        mean[row], std[row] = wide.mean(0), wide.std(0)
    return mean, std


def _write_array(folder: Path, name: str, pieces: Sequence[Frames], chunk_bytes: int | None = None) -> dict[str, int]:
    """Write a Zarr array of as few equal chunks as fit, a chunk at a time; returns their CRC32C by path in the part."""
    import zarr  # takes half a second: only who writes pays
    from zarr.codecs import BytesCodec, Crc32cCodec

    rows, first = sum(len(piece) for piece in pieces), pieces[0]
    row_bytes = first.dtype.itemsize * first.shape[1]
    count = -(-rows * row_bytes // chunk_bytes) if chunk_bytes else 1
    chunk_rows = -(-rows // count)
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
        key = layout.chunk(name, i)
        with open(folder / key, "rb") as file:
            file.seek(-layout.CRC_BYTES, os.SEEK_END)
            crcs[key] = int.from_bytes(file.read(), "little")
    return crcs
