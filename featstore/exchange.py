"""HDF5 out and in: a whole store in one file to carry, nothing lost either way.

/                      attributes: whowhen_hdf5 = 1
/utterances            one JSON object an utterance (id, audio, start_s, duration_s, recording, speaker, split, turns)
/features/<feature>    attributes: spec (JSON), fingerprint
    frames             (frames, dim), all utterances one after another
    id, num_frames     (utterances,)
    codebooks          of a feature of codes: its safetensors file, (bytes,)
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featstore.store import codebooks
from featstore.store.codebooks import has_codebooks
from featstore.store.layout import StoreError
from featstore.store.metadata import checked_spec
from featstore.store.reader import Store, store_utterances
from featstore.store.writer import writer
from featstore.types import Codebooks, FeatureSpec, Turn, Utterance

VERSION = 1
_MADE = "featstore export STORE FILE.h5 makes one"
#: One utterance's JSON is bounded before it is parsed.
_MAX_JSON_CHARS = 64 << 20


def export_hdf5(
    store: str | PathLike[str],
    path: str | PathLike[str],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write a store as one HDF5 file; every chunk's CRC is checked on the way.

    Raises
    ------
    StoreError : not a store, or damaged. ValueError : the file exists. OSError : no space, no permission; no file is left.
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"{target}: exists already; choose another name or remove it")
    source = Store(Path(store), verify=True)
    partial = target.with_name(target.name + ".partial")
    try:
        with _Sink(partial, "w+") as sink:

            def going_on(done: int, of: int) -> None:
                if sink.error:
                    raise sink.error
                progress(done, of)

            try:
                _export(source, sink, going_on)
            finally:
                if sink.error:
                    raise OSError(sink.error.errno, sink.error.strerror, str(target)) from None
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


class _Sink(io.FileIO):
    """The file under h5py. It never fails to be written: an HDF5 file that cannot be closed ends the process."""

    #: What went wrong; nothing is written from then on.
    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left and not self.error:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        found = super().readinto(buffer) or 0
        memoryview(buffer)[found:] = bytes(len(buffer) - found)  # HDF5 knows zeros for nothing of its own
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        try:
            if not self.error:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0


def _export(source: Store, sink: _Sink, progress: Callable[[int, int], None]) -> None:
    of = sum(len(source.index(name).rows) for name in source.features)
    with h5py.File(sink, "w", libver="v110") as file:
        file.attrs["whowhen_hdf5"] = VERSION
        text = [json.dumps(asdict(u), ensure_ascii=False) for u in store_utterances(source)]
        file.create_dataset("utterances", data=text, dtype=h5py.string_dtype())
        done = 0
        for name, spec in source.features.items():
            done = _export_feature(file.create_group(f"features/{name}"), source, spec, done, of, progress)


def _export_feature(
    group: h5py.Group, source: Store, spec: FeatureSpec, done: int, of: int, progress: Callable[[int, int], None]
) -> int:
    index = source.index(spec.name)
    ids = list(index.rows)
    num = np.array([source.num_frames(spec.name, id) for id in ids], dtype=np.int64)
    group.attrs["spec"] = json.dumps(spec.to_json())
    group.attrs["fingerprint"] = spec.fingerprint
    group.create_dataset("id", data=ids, dtype=h5py.string_dtype())
    group.create_dataset("num_frames", data=num)
    if has_codebooks(spec):
        group.create_dataset("codebooks", data=np.frombuffer(codebooks.to_bytes(source.codebooks(spec.name)), np.uint8))
    # Contiguous, not chunked: a crop is one read, and the size in the file bounds what a reader must believe.
    frames = group.create_dataset("frames", shape=(int(num.sum()), spec.dim), dtype=np.dtype(spec.dtype))
    at = 0
    for id, count in zip(ids, num, strict=True):
        frames[at : at + count] = source.frames(spec.name, id)
        at += int(count)
        done += 1
        progress(done, of)
    return done


def import_hdf5(
    path: str | PathLike[str],
    store: str | PathLike[str],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Add what an exported HDF5 file holds to a store; what the store has already is skipped.

    Returns the number of utterances added, counted once a feature.

    Raises
    ------
    StoreError : not such a file, of another version, or its parts contradict each other.
    FingerprintMismatch : the store holds another feature under the same name.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if not Path(path).exists():
            raise StoreError(f"{path}: no such file; {_MADE}") from None
        if Path(path).is_dir():
            raise StoreError(f"{path}: is a folder; {_MADE}; stores are joined by featstore merge") from None
        raise StoreError(f"{path}: not an HDF5 file, or cut short ({str(error).splitlines()[0]}); {_MADE}") from None
    with file:
        found = file.attrs.get("whowhen_hdf5")
        if found != VERSION:
            raise StoreError(f"{path}: expected an export of version {VERSION} (whowhen_hdf5), found {found!r}")
        try:
            known = {u.id: u for u in map(_utterance, _texts(file, "utterances"))}
            features = _own(file, "features", h5py.Group)
            groups = {name: _own(features, name, h5py.Group) for name in features}
            checked = {
                name: _check_feature(f"{path}: feature {name!r}", name, group, known) for name, group in groups.items()
            }
        except StoreError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, OverflowError) as error:
            raise StoreError(f"{path}: not as `featstore export` writes it ({error})") from None
        of = sum(len(num) for _, _, num in checked.values())
        done = added = 0
        for name, (spec, ids, num) in checked.items():
            frames, at = groups[name]["frames"], 0
            with writer(store, spec, codebooks=_codebooks(groups[name], spec)) as out:
                missing = {u.id for u in out.missing(known[id] for id in ids)}
                for id, count in zip(ids, num, strict=True):
                    if id in missing:
                        out.add(known[id], frames[at : at + count])
                        added += 1
                    at += int(count)
                    done += 1
                    progress(done, of)
        return added


def _check_feature(
    what: str, name: str, group: h5py.Group, known: Container[str]
) -> tuple[FeatureSpec, list[str], NDArray[np.signedinteger[Any]]]:
    """Believe sizes only as far as the file itself is long: nothing is allocated for what it does not hold."""
    attributes = {"spec": json.loads(group.attrs["spec"]), "fingerprint": group.attrs["fingerprint"]}
    spec = checked_spec(attributes, name, what)
    _codebooks(group, spec)
    num, frames = (_own(group, key, h5py.Dataset) for key in ("num_frames", "frames"))
    if frames.ndim != 2 or frames.shape[1] != spec.dim or frames.dtype != np.dtype(spec.dtype):
        raise StoreError(f"{what}: expected (frames, {spec.dim}) {spec.dtype}, found {frames}")
    if not _whole(frames, frames.nbytes):
        raise StoreError(f"{what}: frames are not stored whole")
    if num.ndim != 1 or num.dtype.kind != "i" or not _whole(num, num.nbytes):
        raise StoreError(f"{what}: num_frames is no stored list of whole numbers")
    counts, ids = num[:], list(_texts(group, "id"))
    if len(ids) != len(counts) or len(set(ids)) != len(ids):
        raise StoreError(f"{what}: id and num_frames do not fit each other")
    if unknown := [id for id in ids if id not in known]:
        raise StoreError(f"{what}: {unknown[0]!r} is no utterance of this file")
    if np.any(counts < 1) or np.any(counts > frames.shape[0]) or int(counts.sum()) != frames.shape[0]:
        raise StoreError(f"{what}: num_frames do not add up to {frames.shape[0]} frames")
    return spec, ids, counts


def _codebooks(group: h5py.Group, spec: FeatureSpec) -> Codebooks | None:
    if not has_codebooks(spec):
        return None
    what = f"{group.file.filename}: codebooks of {spec.name!r}"
    data = _own(group, "codebooks", h5py.Dataset) if "codebooks" in group else None
    if data is None or data.ndim != 1 or data.dtype != np.uint8 or not _whole(data, data.nbytes):
        raise StoreError(f"{what}: missing, or not stored whole")
    return codebooks.from_bytes(data[:].tobytes(), spec, what)


def _own(group: h5py.Group, name: str, kind: type) -> Any:
    """What the file itself holds under a name: a link may point to any file that the reader may read."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink | None):
        raise StoreError(f"{group.file.filename}: {name!r} is a link to somewhere else; not followed")
    found = group[name]
    if not isinstance(found, kind):
        raise StoreError(f"{group.file.filename}: expected {name!r} to be a {kind.__name__}")
    return found


def _whole(data: h5py.Dataset, num_bytes: int) -> bool:
    """Whether every byte that a dataset claims lies in this very file, one behind another."""
    contiguous = data.chunks is None and not data.external and not data.is_virtual
    return contiguous and data.id.get_storage_size() == num_bytes


def _texts(group: h5py.Group, name: str) -> Iterator[str]:
    """A dataset of texts: in the file, each is a `_REFERENCE` to where its bytes are."""
    path, data = group.file.filename, _own(group, name, h5py.Dataset)
    kind = h5py.check_string_dtype(data.dtype)
    if data.ndim != 1 or kind is None or kind.length or not _whole(data, data.size * _REFERENCE.itemsize):
        raise StoreError(f"{path}: expected {name!r} to be a stored list of texts")
    if not data.size:
        return
    length = np.fromfile(path, _REFERENCE, count=data.size, offset=data.id.get_offset())["length"]
    if length.sum(dtype=np.uint64) > os.path.getsize(path):
        raise StoreError(f"{path}: {name!r} holds texts that are longer than the file: one stands for many")
    for at in range(0, len(data), _BLOCK):
        yield from data.asstr()[at : at + _BLOCK]


#: "Global heap ID" of the HDF5 file format specification, with the sizes that h5py writes.
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_BLOCK = 4096


def _utterance(text: str) -> Utterance:
    if len(text) > _MAX_JSON_CHARS:
        raise ValueError("an utterance's JSON is larger than 64 MiB")
    facts: dict[str, Any] = json.loads(text)
    return Utterance(**{**facts, "turns": tuple(Turn(**t) for t in facts["turns"])})
