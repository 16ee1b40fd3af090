"""Corrections in: a manifest read for what it names of utterances that a store has already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from featstore.corpora import manifest
from featstore.corpora.audio_files import audio_files
from featstore.types import Utterance


@dataclass(frozen=True)
class Correction:
    """What a line of a manifest says of an utterance; what it does not name stays as it is.

    Attributes
    ----------
    where : file and line, for messages.
    labels : what is named of split, speaker, recording, turns and audio, by the attribute of an Utterance.
    start_s, duration_s : the stretch of audio, where it is named.
    """

    id: str
    where: str
    labels: Mapping[str, Any]
    start_s: float | None = None
    duration_s: float | None = None


def read_corrections(path: str | PathLike[str]) -> list[Correction]:
    """Read a manifest of any kind (see `read_manifest`); of a JSONL file, a line needs only an id and what is another.

    Raises
    ------
    ValueError : as `read_manifest`.
    """
    name = str(path)
    if not name.startswith("hf:") and audio_files(Path(name)):
        raise ValueError(
            f"{name}: audio says nothing of labels; for audio that moved: featstore relabel STORE --audio-root OLD=NEW"
        )
    if name.startswith("hf:") or Path(name).is_dir():
        return [_of_dataset(name, u) for u in manifest.read_manifest(name)]
    entries = manifest.read_entries(Path(name))
    audio = [str(entry.get("audio_filepath")) for _, entry in entries]
    several = {one for one in audio if audio.count(one) > 1} if len(set(audio)) < len(audio) else set()
    found = [_of_line(where, entry, Path(name).parent.resolve(), several) for where, entry in entries]
    manifest.refuse_doubles(name, [c.id for c in found])
    return found


def _of_dataset(name: str, u: Utterance) -> Correction:
    labels = {key: getattr(u, key) for key in ("split", "speaker", "recording", "audio")}
    return Correction(u.id, name, {key: value for key, value in labels.items() if value})


def _of_line(where: str, entry: Mapping[str, Any], root: Path, several: set[str]) -> Correction:
    id_key = next((key for key in manifest.ID if key in entry), None)
    if id_key is None and "audio_filepath" not in entry:
        raise ValueError(f"{where}: expected utt_id, which says whose labels these are")
    u = manifest.utterance_of(where, {"audio_filepath": str(entry.get(id_key or "")), **entry}, root, several)
    named = {
        "split": "split" in entry,
        "speaker": any(key in entry for key in manifest.SPEAKER) or bool(u.turns),
        "recording": any(key in entry for key in manifest.RECORDING),
        "turns": bool(entry.get("rttm_filepath")) or u.speaker is not None,  # who talks alone needs none
        "audio": "audio_filepath" in entry,
    }
    return Correction(
        u.id,
        where,
        {key: getattr(u, key) for key, is_named in named.items() if is_named},
        u.start_s if "offset" in entry else None,
        u.duration_s if not math.isnan(u.duration_s) else None,
    )
