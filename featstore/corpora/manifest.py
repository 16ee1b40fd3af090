"""Manifests in: NeMo JSONL files and Hugging Face datasets, read into the same Utterances.

data_manifests/README.md describes the keys.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from featstore.corpora.rttm import read_rttm
from featstore.types import Turn, Utterance

#: Keys that say something to us; the first of a tuple that is there counts.
_ID = ("utt_id", "id", "uniq_id")
_SPEAKER = ("speaker", "label")
_RECORDING = ("recording", "session_id")
_READ = {"audio_filepath", "offset", "duration", "split", "rttm_filepath", *_ID, *_SPEAKER, *_RECORDING}
#: Of NeMo's own manifests, `simulate`'s among them: to read them would change nothing here.
_HARMLESS = {"text", "num_speakers", "ctm_filepath", "words", "alignments"}
#: Values of `label` that NeMo uses for “not one speaker”.
_NO_SPEAKER = {"infer", "-", ""}


def read_manifest(
    path: str | PathLike[str], *, split: str | None = None, audio_root: str | PathLike[str] | None = None
) -> list[Utterance]:
    """Read a NeMo JSONL manifest, a folder saved by HF datasets, or ``hf:NAME[:CONFIG][@SPLIT]``.

    Paths in a manifest are relative to it. Ids come from utt_id (or id, uniq_id), else from the audio path without
    its ending, with ``@offset`` where one file holds several.

    Parameters
    ----------
    split : for utterances whose manifest names none.
    audio_root : of a JSONL manifest, refuse audio and RTTM files outside of this folder, links followed; for manifests
        from strangers. Without it, a manifest may name any file that you may read.

    Raises
    ------
    ValueError : the first thing that is wrong, by file and line.
    """
    name = str(path)
    if name.startswith("hf:") or Path(name).is_dir():
        if audio_root is not None:
            raise ValueError(f"{name}: an audio root bounds JSONL manifests only; a dataset brings its own audio")
        from featstore.corpora.hf import read_dataset

        utterances = read_dataset(name)
    else:
        utterances = _read_jsonl(Path(name), None if audio_root is None else Path(audio_root).resolve())
    if not utterances:
        raise ValueError(f"{name}: no utterance in it")
    twice = [id for id, count in Counter(u.id for u in utterances).items() if count > 1]
    if twice:
        raise ValueError(
            f"{name}: {len(twice)} id(s) stand for several utterances, the first is {twice[0]!r}; "
            "give each its own utt_id"
        )
    return [u if u.split or not split else replace(u, split=split) for u in utterances]


def ignored_keys(path: str | PathLike[str]) -> list[str]:
    """Keys of a JSONL manifest that nothing here reads and that might be meant to be, for telling the user; sorted."""
    if str(path).startswith("hf:") or not Path(path).is_file():
        return []
    keys: set[str] = set()
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                keys |= json.loads(line).keys()
    return sorted(keys - _READ - _HARMLESS)


def _read_jsonl(path: Path, bound: Path | None) -> list[Utterance]:
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; give a .jsonl file, a saved dataset's folder or hf:NAME")
    entries = []
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}:{number}"
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8; convert the file (iconv -t UTF-8) and try again") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); a manifest has one JSON object a line") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(entry).__name__}")
        entries.append((where, entry))
    several = {p for p, count in Counter(str(e.get("audio_filepath")) for _, e in entries).items() if count > 1}
    root = path.parent.resolve()  # so that a store finds its audio from any folder
    if bound:
        for where, entry in entries:
            for key in ("audio_filepath", "rttm_filepath"):
                if entry.get(key) and not (found := (root / _text(where, entry, key)).resolve()).is_relative_to(bound):
                    raise ValueError(f"{where}: {key} {found} is outside of the audio root {bound}")
    return [_utterance(where, entry, root, several) for where, entry in entries]


def _utterance(where: str, entry: Mapping[str, Any], root: Path, several: set[str]) -> Utterance:
    for key in entry:
        # An unknown key is somebody's own; one letter off a known key is a mistake that would pass in silence.
        near = difflib.get_close_matches(key, _READ, n=1, cutoff=0.84) if key not in _READ else []
        if near and near[0] not in entry:
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
    audio = _text(where, entry, "audio_filepath")
    offset = _number(where, entry, "offset", 0.0)
    duration = _number(where, entry, "duration", math.nan)
    if offset < 0:
        raise ValueError(f"{where}: offset must be 0 or more, found {offset:g}")
    if duration <= 0:
        raise ValueError(f"{where}: duration must be more than 0 seconds, found {duration:g}")
    stem = str(PurePosixPath(audio).with_suffix(""))
    id_key = next((k for k in _ID if k in entry), None)
    if id_key:
        id = _text(where, entry, id_key)
    else:
        id = stem.lstrip("/") + (f"@{offset:g}" if audio in several else "")
        # A path that climbs (../audio/x.wav) is fine for a file, not for an id.
        id = "/".join(part for part in id.split("/") if part not in ("..", "."))
    speaker_key = next((k for k in _SPEAKER if k in entry), None)
    speaker = None if speaker_key is None else _label(where, entry, speaker_key)
    recording_key = next((k for k in _RECORDING if k in entry), None)
    recording = _text(where, entry, recording_key) if recording_key else stem
    turns: tuple[Turn, ...] = ()
    if entry.get("rttm_filepath"):
        rttm = root / _text(where, entry, "rttm_filepath")
        turns = _turns(where, rttm, {Path(audio).stem, id, recording}, offset, duration)
    try:
        return Utterance(
            id=id,
            audio=str(root / audio),
            start_s=offset,
            duration_s=duration,
            recording=recording,
            speaker=None if speaker in _NO_SPEAKER or turns else speaker,
            split=_label(where, entry, "split") or "",
            turns=turns,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _turns(where: str, path: Path, names: set[str], offset_s: float, duration_s: float) -> tuple[Turn, ...]:
    if not path.is_file():
        raise ValueError(f"{where}: rttm_filepath {path}: no such file")
    recordings = _read_rttm(str(path), path.stat().st_mtime_ns)
    found = [name for name in recordings if name in names]
    if not found and len(recordings) == 1:
        found = list(recordings)
    if not found and recordings:
        raise ValueError(f"{where}: {path} has no recording named {' or '.join(sorted(names))}")
    end_s = math.inf if math.isnan(duration_s) else offset_s + duration_s
    return tuple(
        Turn(max(t.start_s, offset_s) - offset_s, min(t.end_s, end_s) - offset_s, t.speaker)
        for name in found
        for t in recordings[name]
        if t.end_s > offset_s and t.start_s < end_s
    )


# One RTTM often serves every utterance cut from its recording.
@lru_cache(maxsize=256)
def _read_rttm(path: str, _modified: int) -> dict[str, tuple[Turn, ...]]:
    return read_rttm(path)


def _text(where: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: expected {key!r} to be a text, found {value!r}")
    if "\0" in value:
        raise ValueError(f"{where}: {key!r} holds a zero byte")
    return value


def _label(where: str, entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"{where}: expected {key!r} to be a text or a number, found {value!r}")
    return None if value is None else str(value)


def _number(where: str, entry: Mapping[str, Any], key: str, default: float) -> float:
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: expected {key!r} in seconds, found {value!r}")
    return float(value)


def check_disjoint(utterances: Iterable[Utterance], by: str = "recording") -> None:
    """Refuse utterances whose speaker or recording stands in more than one split.

    Raises
    ------
    ValueError : naming the first and the count.
    """
    splits: dict[str, set[str]] = {}
    for u in utterances:
        values: set[str | None] = {t.speaker for t in u.turns} or {u.speaker} if by == "speaker" else {u.recording}
        for value in values:
            if value is not None:
                splits.setdefault(value, set()).add(u.split)
    shared = {value: found for value, found in splits.items() if len(found) > 1}
    if shared:
        value, found = next(iter(sorted(shared.items())))
        raise ValueError(
            f"{len(shared)} {by}(s) stand in more than one split, the first is {value!r} in "
            f"{', '.join(sorted(found))}; split by {by} first, weight afterwards"
        )


__all__ = ["check_disjoint", "ignored_keys", "read_manifest"]
