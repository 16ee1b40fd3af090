"""Audio given in place of a manifest: which files those are."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: How files are called that libsndfile may read.
AUDIO = frozenset(".wav .flac .ogg .opus .mp3 .aiff .aif .aifc .au .caf .w64 .rf64 .sph .nist .oga".split())
#: What `save_to_disk` of Hugging Face's datasets leaves in a folder.
_DATASET = ("dataset_dict.json", "dataset_info.json", "state.json")


def audio_files(path: Path) -> list[Path]:
    """The file itself if it is called like audio, those in the folder and below it; none of a manifest or a data set.

    Raises
    ------
    ValueError : a folder with neither audio nor a data set in it.
    """
    if path.is_dir():
        if any((path / name).exists() for name in _DATASET):
            return []
        found = sorted(Path(root, name) for root, _, names in os.walk(path) for name in names if _is_audio(name))
        if not found and any(path.glob("*.zarr")):
            raise ValueError(
                f"{path}: is a store, and no manifest; are the two swapped? featstore extract MANIFEST --store STORE"
            )
        if not found:
            raise ValueError(
                f"{path}: neither a saved data set nor a folder with audio in it (looked for {' '.join(sorted(AUDIO))})"
            )
        return found
    return [path] if path.is_file() and _is_audio(path.name) else []


def not_there(path: Path) -> ValueError:
    """What to raise where a manifest is named that is none."""
    if address := re.match(r"([a-z][a-z0-9+]+):/+(?=.)", str(path)):  # of whose slashes pathlib leaves one
        where = f"{address[1]}://{str(path)[address.end() :]}"
        return ValueError(f"{where}: an address; download what is there, and name the file")
    return ValueError(f"{path}: no such manifest; give a .jsonl file here, a saved dataset's folder or hf:NAME")


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in AUDIO
