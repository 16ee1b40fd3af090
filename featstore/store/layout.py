"""Where everything lies inside a store. docs/store-format.md says the same for readers in other languages."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

#: Of a store's parts, and of a store without changes; and of one with them.
VERSION, VERSION_WITH_CHANGES = 1, 2


#: What a store holds, as paths inside it: keys of a bucket as they are, and files as ``store / path``.
GROUP, INDEX, UTTERANCES, CHANGES = "features.zarr", "index", "utterances", "changes"
CODEBOOKS = "codebooks"
ROOT = f"{GROUP}/zarr.json"


INDEX_SCHEMA = pa.schema([("id", pa.string()), ("first_frame", pa.int64()), ("num_frames", pa.int64())])


UTTERANCE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("recording", pa.string()),
        ("speaker", pa.string()),
        ("split", pa.string()),
        ("duration", pa.float64()),
        ("turns", pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64()), ("speaker", pa.string())]))),
        ("source", pa.string()),
        ("start", pa.float64()),
    ]
)


#: One row for each part that holds an utterance: what it is from now on, or that it is removed.
CHANGE_SCHEMA = pa.schema([("part", pa.string()), ("removed", pa.bool_()), *UTTERANCE_SCHEMA])


ARRAYS = ("frames", "mean", "std")


#: Each chunk file ends with its CRC32C.
CRC_BYTES = 4


class StoreError(ValueError):
    """A store cannot be opened, read or written as asked; the text says why and what to do."""


class OtherVersion(StoreError):
    """A store of another version of the format: nothing of it may be read, written or repaired."""


class FingerprintMismatch(StoreError):
    """Two different features under one name."""


def not_readable(path: object, error: OSError, advice: str = "") -> StoreError:
    """What to raise where the system does not let a file be read; `advice` is for a file that may be damaged."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        advice = "; close other files, or raise their number: ulimit -n 4096"
    reason = os.strerror(error.errno) if error.errno else error
    return StoreError(f"{path}: not readable ({reason}){advice}")


def group_dir(store: Path) -> Path:
    return store / GROUP


def is_store(path: Path) -> bool:
    return group_dir(path).is_dir()


def feature_dir(store: Path, feature: str) -> Path:
    return group_dir(store) / feature


def index_dir(store: Path, feature: str) -> Path:
    return store / INDEX / feature


def utterances_dir(store: Path) -> Path:
    return store / UTTERANCES


def change_path(change: str) -> str:
    """Where a change is, inside a store."""
    return f"{CHANGES}/{change}.parquet"


def spec_path(feature: str) -> str:
    """Where a feature's spec is, inside a store."""
    return f"{GROUP}/{feature}/zarr.json"


def codebooks_path(feature: str) -> str:
    """Where the codebooks of a feature of codes are, inside a store."""
    return f"{CODEBOOKS}/{feature}.safetensors"


def array_json(array: str) -> str:
    """Where an array's metadata is, inside a part's folder."""
    return f"{array}/zarr.json"


def chunk(array: str, number: int) -> str:
    """Where a chunk of an array is, inside a part's folder; seals call it by this name."""
    return f"{array}/c/{number}/0"


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The files of one part, as paths inside its store.

    What an index table names is committed, so it is the last to come and the first to go: `in_order` and `removal`.
    """

    feature: str
    part: str

    @property
    def folder(self) -> str:
        """Its arrays and its seal."""
        return f"{GROUP}/{self.feature}/{self.part}"

    @property
    def seal(self) -> str:
        return f"{self.folder}/zarr.json"

    @property
    def facts(self) -> str:
        """Its rows of the table of utterances."""
        return f"{UTTERANCES}/{self.part}.parquet"

    @property
    def index(self) -> str:
        return f"{INDEX}/{self.feature}/{self.part}.parquet"

    @property
    def removal(self) -> tuple[str, str, str]:
        """All of it, in the order to remove it: without its index it is no part of the store, whatever happens next."""
        return self.index, self.facts, self.folder

    def in_order(self, inside: Iterable[str]) -> list[str]:
        """All of it, in the order to write it: chunks, metadata of arrays, facts, seal, index.

        Parameters
        ----------
        inside : the files in its folder, as paths inside the store.
        """
        arrays = sorted((path for path in inside if path != self.seal), key=lambda path: ("/c/" not in path, path))
        return [*arrays, self.facts, self.seal, self.index]


def committed(store: Path, feature: str) -> list[str]:
    """Names of a feature's parts: what its index names."""
    return sorted(p.stem for p in index_dir(store, feature).glob("[!.]*.parquet"))


def names_part(store: Path, part: str) -> bool:
    """Whether any feature's index names a part of this name."""
    return bool(part) and any((folder / f"{part}.parquet").exists() for folder in (store / INDEX).glob("*"))


def committed_in(listing: Mapping[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """Feature → part → its files in the order to write them, of what a listing of a whole store shows as committed.

    Parameters
    ----------
    listing : bytes of every file by its path inside the store, as in the result.
    """
    inside: dict[tuple[str, str], list[str]] = {}
    parts: dict[str, list[str]] = {}
    for path in listing:
        top, *rest = path.split("/")
        if top == GROUP and len(rest) > 2:
            inside.setdefault((rest[0], rest[1]), []).append(path)
        elif top == GROUP and len(rest) == 2 and path == spec_path(rest[0]):
            parts.setdefault(rest[0], [])
        elif top == INDEX and len(rest) == 2 and rest[1].endswith(".parquet") and not rest[1].startswith("."):
            parts.setdefault(rest[0], []).append(rest[1].removesuffix(".parquet"))
    return {
        feature: {
            part: {
                path: listing[path]
                for path in PartFiles(feature, part).in_order(inside.get((feature, part), ()))
                if path in listing
            }
            for part in sorted(names)
        }
        for feature, names in sorted(parts.items())
    }
