"""Every byte of one part read and compared with what was committed."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from featstore.store import layout
from featstore.store.index import read_rows
from featstore.store.layout import PartFiles, StoreError
from featstore.store.metadata import read_seal
from featstore.store.part import check_chunk
from featstore.store.tables import read_table
from featstore.types import FeatureSpec

#: Errors that lie with the file. Any other, such as no permission or too many open files, says nothing about its bytes.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a store."""

    #: The feature and the part whose it is; "" where it is no feature's, or no part's.
    feature: str
    part: str
    problem: str
    #: Whom it concerns; none where it is nobody's data.
    utterances: tuple[str, ...] = ()
    #: True for what an interrupted write leaves behind: no data is lost.
    leftover: bool = False
    #: What repair does with `paths`: "move" sets them aside in ``damaged/``, "write" writes the root's zarr.json anew,
    #: "forget" does both: a change.
    remedy: Literal["", "move", "delete", "write", "forget"] = ""
    #: Files and folders, inside the store.
    paths: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Its feature and part; where it has no part, the file."""
        return "/".join(filter(None, (self.feature, self.part))) or ", ".join(self.paths)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "utterances": list(self.utterances), "paths": list(self.paths)}


@dataclass(frozen=True)
class Checked:
    """What was read of a part: ids of its utterances, bytes of its chunks, and what is wrong."""

    ids: tuple[str, ...] = ()
    num_bytes: int = 0
    findings: tuple[Finding, ...] = ()


def check_part(store: Path, feature: str, part: str, spec: FeatureSpec | None) -> Checked:
    """Read every byte of a committed part.

    Parameters
    ----------
    spec : of the feature; None where it is lost.
    """
    paths = PartFiles(feature, part)
    folder = store / paths.folder
    ids: tuple[str, ...] = ()
    size = 0
    try:
        ids = read_ids(store / paths.index)
        seal = read_seal(folder)
        sha = seal["sha256"]
        _same_sha(store / paths.index, sha["index"])
        _same_sha(store / paths.facts, sha["utterances"])
        for array in layout.ARRAYS:
            _same_sha(folder / layout.array_json(array), sha[array])
        if spec and seal["fingerprint"] != spec.fingerprint:
            raise StoreError(f"{folder}: written by another extractor ({seal['fingerprint']})")
        for key, crc in seal["chunk_crc32c"].items():
            size += _check_chunk(folder / key, crc)
        read_rows([store / paths.index])
        if not ids:
            raise StoreError(f"{store / paths.index}: names no utterance")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        whose = _whose(store, paths, ids)
        if now := not_now(error, folder):
            return Checked(ids, size, (Finding(feature, part, now, whose),))
        ours = isinstance(error, StoreError)
        problem = str(error) if ours else f"{folder}: not readable ({type(error).__name__}: {error})"
        return Checked(ids, size, (Finding(feature, part, problem, whose, remedy="move", paths=paths.removal),))
    belongs = {store / paths.seal} | {folder / layout.array_json(array) for array in layout.ARRAYS}
    belongs |= {folder / key for key in seal["chunk_crc32c"]}
    found = (stray(store, path) for path in files_below(folder) if path not in belongs and not temporary(path))
    return Checked(ids, size, tuple(found))


def _whose(store: Path, paths: PartFiles, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Ids in a damaged part: both of its tables hold them; the one that is as it was committed is right."""
    found = [ids] if ids else []
    try:
        sha = read_seal(store / paths.folder)["sha256"]
    except (StoreError, OSError):
        sha = {}
    for kind, path in (("utterances", store / paths.facts), ("index", store / paths.index)):
        try:
            own = read_ids(path)
            found.insert(0 if hashlib.sha256(path.read_bytes()).hexdigest() == sha.get(kind) else len(found), own)
        except (StoreError, OSError):
            continue
    return found[0] if found else ()


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids in a table of a store; raises as `read_table`."""
    return tuple(read_table(path, pa.schema([("id", pa.string())]))["id"].to_pylist())


def _same_sha(path: Path, expected: str) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise StoreError(f"{path}: not the file that was committed")


def _check_chunk(path: Path, sealed: int) -> int:
    if not path.is_file():
        raise StoreError(f"{path}: the chunk is missing")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= layout.CRC_BYTES:
            raise StoreError(f"{path}: cut short to {size} bytes")
        check_chunk(file, path, size - layout.CRC_BYTES, sealed)
    return size


def not_now(error: BaseException | None, path: Path) -> str:
    """What to say where an error, or what it came of, lies with the machine and not with the file; else ""."""
    while error and not isinstance(error, OSError):
        error = error.__context__
    if not isinstance(error, OSError) or error.errno is None or error.errno in _DAMAGE:
        return ""
    return f"{error.filename or path}: not readable now ({error.strerror}); left where it is"


def stray(store: Path, path: Path, problem: str = "", remedy: Literal["move", "delete"] = "move") -> Finding:
    """A file that belongs to no part."""
    name = path.relative_to(store).as_posix()
    return Finding("", "", problem or f"{path.name} does not belong here", (), True, remedy, (name,))


def files_below(folder: Path) -> list[Path]:
    """Files however deep; unlike rglob, whatever is removed meanwhile."""
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)


def temporary(path: Path) -> bool:
    """Whether a file is one that `featstore.files` was writing."""
    return path.name.startswith(".") and path.suffix == ".tmp"
