"""HDF5 out and in: a whole store in one file to carry, nothing lost either way.

/                      attributes: whowhen_hdf5 = 1
/utterances            one JSON object an utterance (id, audio, start_s, duration_s, recording, speaker, split, turns)
/features/<feature>    attributes: spec (JSON), fingerprint
    frames             (frames, dim), all utterances one after another
    id, num_frames     (utterances,)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featstore.commit import writer
from featstore.layout import StoreError
from featstore.store import Store, open_store, store_utterances
from featstore.types import FeatureSpec, Turn, Utterance

VERSION = 1
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
    StoreError : not a store, or damaged. ValueError : the file exists.
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"{target}: exists already; choose another name or remove it")
    source = open_store(store, verify=True)
    partial = target.with_name(target.name + ".partial")
    of = sum(len(source.index(name).rows) for name in source.features)
    try:
        with h5py.File(partial, "w", libver="v110") as file:
            file.attrs["whowhen_hdf5"] = VERSION
            text = [json.dumps(asdict(u), ensure_ascii=False) for u in store_utterances(source)]
            file.create_dataset("utterances", data=text, dtype=h5py.string_dtype())
            done = 0
            for name, spec in source.features.items():
                done = _export_feature(file.create_group(f"features/{name}"), source, spec, done, of, progress)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


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
            raise StoreError(f"{path}: no such file") from None
        raise StoreError(f"{path}: not an HDF5 file, or cut short ({str(error).splitlines()[0]})") from None
    with file:
        found = file.attrs.get("whowhen_hdf5")
        if found != VERSION:
            raise StoreError(f"{path}: expected an export of version {VERSION} (whowhen_hdf5), found {found!r}")
        try:
            known = {u.id: u for u in map(_utterance, file["utterances"].asstr())}
            groups = dict(file["features"].items())
            checked = {name: _check_feature(str(path), name, group) for name, group in groups.items()}
        except StoreError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise StoreError(f"{path}: not as `featstore export` writes it ({error})") from None
        of = sum(len(num) for _, _, num in checked.values())
        done = added = 0
        for name, (spec, ids, num) in checked.items():
            frames, at = groups[name]["frames"], 0
            with writer(store, spec) as out:
                missing = {u.id for u in out.missing(known[id] for id in ids)}
                for id, count in zip(ids, num, strict=True):
                    if id in missing:
                        out.add(known[id], frames[at : at + count])
                        added += 1
                    at += int(count)
                    done += 1
                    progress(done, of)
        return added


def _check_feature(path: str, name: str, group: h5py.Group) -> tuple[FeatureSpec, list[str], np.ndarray]:
    """Believe sizes only as far as the file itself is long: nothing is allocated for what it does not hold."""
    spec = FeatureSpec.from_json(json.loads(group.attrs["spec"]))
    ids, num, frames = group["id"], group["num_frames"], group["frames"]
    if spec.name != name or spec.fingerprint != group.attrs["fingerprint"]:
        raise StoreError(f"{path}: feature {name!r}: the spec was edited")
    if frames.ndim != 2 or frames.shape[1] != spec.dim or frames.dtype != np.dtype(spec.dtype):
        raise StoreError(f"{path}: feature {name!r}: expected (frames, {spec.dim}) {spec.dtype}, found {frames}")
    if frames.chunks is not None or frames.id.get_storage_size() != frames.nbytes:
        raise StoreError(f"{path}: feature {name!r}: frames are not stored whole")
    if num.ndim != 1 or num.shape != ids.shape or num.dtype.kind != "i" or num.nbytes > os.path.getsize(path):
        raise StoreError(f"{path}: feature {name!r}: id and num_frames do not fit each other")
    counts = num[:]
    if np.any(counts < 1) or int(counts.sum()) != frames.shape[0]:
        raise StoreError(f"{path}: feature {name!r}: num_frames do not add up to {frames.shape[0]} frames")
    return spec, list(ids.asstr()), counts


def _utterance(text: str) -> Utterance:
    if len(text) > _MAX_JSON_CHARS:
        raise ValueError("an utterance's JSON is larger than 64 MiB")
    facts: dict[str, Any] = json.loads(text)
    return Utterance(**{**facts, "turns": tuple(Turn(**t) for t in facts["turns"])})
