"""Manifests in: NeMo JSONL files and Hugging Face datasets, read into the same Utterances.

data_manifests/README.md describes the keys.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from featstore.corpora.audio_files import AUDIO, audio_files, not_there
from featstore.corpora.turns import read_turns
from featstore.types import Turn, Utterance

#: Keys that say something to us; the first of a tuple that is there counts.
ID = ("utt_id", "id", "uniq_id")
SPEAKER = ("speaker", "label")
RECORDING = ("recording", "session_id")
_READ = {"audio_filepath", "offset", "duration", "split", "rttm_filepath", *ID, *SPEAKER, *RECORDING}
#: Of NeMo's own manifests, `simulate`'s among them: to read them would change nothing here.
_HARMLESS = {"text", "num_speakers", "ctm_filepath", "words", "alignments"}
#: Values of `label` that NeMo uses for “not one speaker”.
_NO_SPEAKER = {"infer", "-", ""}


#: What trainers and reports know, and what people who mean one of them write.
SPLITS = {"train": "training", "dev": "development valid validation val", "test": "testing eval evaluation"}

_HELP = "data_manifests/README.md says what a line needs, make_manifest.py there makes manifests"


def read_manifest(
    path: str | PathLike[str],
    *,
    split: str | None = None,
    audio_root: str | PathLike[str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Utterance]:
    """Read a NeMo JSONL manifest, a folder saved by HF datasets, ``hf:NAME[:CONFIG][@SPLIT]``, or audio itself: a file, or
    a folder of them, each of which is an utterance without labels.

    Paths in a manifest are relative to it. Ids come from utt_id (or id, uniq_id), else from the audio path without
    its ending, with ``@offset`` where one file holds several.

    Parameters
    ----------
    split : for utterances whose manifest names none.
    audio_root : of a JSONL manifest, refuse audio and RTTM files outside of this folder, links followed; for manifests
        from strangers. Without it, a manifest may name any file that you may read.
    note : told of what is taken as it is and may be a mistake: an RTTM without a turn in the utterance, a split of
        another name for "dev".

    Raises
    ------
    ValueError : the first thing that is wrong, by file and line.
    """
    name = str(path)
    if not name.startswith("hf:") and (found := audio_files(Path(name))):
        utterances = [_whole_file(file, Path(name), len(found)) for file in found]
    elif name.startswith("hf:") or Path(name).is_dir():
        if audio_root is not None:
            raise ValueError(f"{name}: an audio root bounds JSONL manifests only; a dataset brings its own audio")
        from featstore.corpora.hf import read_dataset

        utterances = read_dataset(name)
    else:
        utterances = read_jsonl(Path(name), audio_root)
    if not utterances:
        raise ValueError(f"{name}: no utterance in it")
    refuse_doubles(name, [u.id for u in utterances])
    if split:
        split = check_split(split, "--split")
        utterances = [u if u.split else replace(u, split=split) for u in utterances]
    _note_oddities(name, utterances, note)
    return utterances


def _whole_file(file: Path, given: Path, count: int) -> Utterance:
    """A file of audio as an utterance that nothing is known of, called by its path in the folder that was given."""
    inside = file.relative_to(given) if count > 1 or given.is_dir() else PurePosixPath(file.name)
    id = inside.with_suffix("").as_posix()
    return Utterance(id, str(file.resolve()), 0.0, math.nan, id)


def refuse_doubles(name: str, ids: Iterable[str]) -> None:
    """Refuse ids that stand for several utterances.

    Raises
    ------
    ValueError : naming the first and the count.
    """
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise ValueError(
            f"{name}: {len(twice)} id(s) stand for several utterances, the first is {twice[0]!r}; "
            "give each its own utt_id"
        )


def _note_oddities(name: str, utterances: list[Utterance], note: Callable[[str], None]) -> None:
    splits = Counter(u.split for u in utterances)
    for meant, others in SPLITS.items():
        for found in others.split():
            if found in splits and meant not in splits:
                note(f"{name}: split {found!r} is a name of your own; if {meant!r} is meant, write that")
    if dumb := [u for u in utterances if u.speaker is None and not u.turns]:
        told = (
            f"{len(dumb)} of {len(utterances)} utterances have neither a speaker nor turns, the first is {dumb[0].id!r}"
        )
        if len(dumb) < len(utterances):
            note(f"{name}: {told}")


def check_split(split: str, where: str) -> str:
    """Refuse what can only be a slip of "train", "dev" or "test": other letters' case, spaces, letters in another order.

    Raises
    ------
    ValueError
    """
    for name in SPLITS:
        if split != name and sorted(split.strip().lower()) == sorted(name):
            raise ValueError(f"{where}: split {split!r}; did you mean {name!r}?")
    return split


def ignored_keys(path: str | PathLike[str]) -> list[str]:
    """Keys of a JSONL manifest that nothing here reads and that might be meant to be, for telling the user; sorted."""
    if str(path).startswith("hf:") or not Path(path).is_file() or audio_files(Path(path)):
        return []
    keys: set[str] = set()
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                keys |= json.loads(line).keys()
    return sorted(keys - _READ - _HARMLESS)


def read_jsonl(path: Path, audio_root: str | PathLike[str] | None = None) -> list[Utterance]:
    """The utterances of a JSONL manifest, one a line; see `read_manifest`, which looks at them together."""
    bound = None if audio_root is None else Path(audio_root).resolve()
    entries = read_entries(path)
    several = {p for p, count in Counter(str(e.get("audio_filepath")) for _, e in entries).items() if count > 1}
    root = path.parent.resolve()  # so that a store finds its audio from any folder
    if bound:
        for where, entry in entries:
            for key in ("audio_filepath", "rttm_filepath"):
                if entry.get(key) and not (found := (root / _text(where, entry, key)).resolve()).is_relative_to(bound):
                    raise ValueError(f"{where}: {key} {found} is outside of the audio root {bound} (--audio-root)")
    return [utterance_of(where, entry, root, several) for where, entry in entries]


def read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL manifest: where each is, for messages, and what it says.

    Raises
    ------
    ValueError : no such file, not UTF-8, not one JSON object a line.
    """
    if not path.is_file():
        raise not_there(path)
    entries = []
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        raise ValueError(
            f"{path}: neither text nor audio that is known by its name ({' '.join(sorted(AUDIO))}); give a manifest, audio, or "
            "a folder of it"
        )
    for number, raw in enumerate(data.splitlines(), start=1):
        where = f"{path}:{number}"
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8; convert the file (iconv -t UTF-8) and try again") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); a manifest has one JSON object a line: {_HELP}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(entry).__name__}; {_HELP}")
        entries.append((where, entry))
    return entries


def utterance_of(where: str, entry: Mapping[str, Any], root: Path, several: Container[str]) -> Utterance:
    """What a line of a manifest says.

    Parameters
    ----------
    several : audio files that more than one line names; their ids need the offset.

    Raises
    ------
    ValueError : by file, line and key.
    """
    for key in entry.keys() - _READ - _HARMLESS:
        # An unknown key is somebody's own; one letter off a known key is a mistake that would pass in silence.
        near = [known for known in _READ if sorted(known) == sorted(key.lower())]
        near = near or difflib.get_close_matches(key.lower(), _READ, n=1, cutoff=0.84)
        if near and near[0] not in entry:
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
    audio = _text(where, entry, "audio_filepath")
    offset = _number(where, entry, "offset", 0.0)
    duration = _number(where, entry, "duration", math.nan)
    if offset < 0:
        raise ValueError(f"{where}: offset must be 0 or more, found {offset:g}")
    if duration <= 0:
        raise ValueError(f"{where}: duration must be more than 0 seconds, found {duration:g}")
    if not PurePosixPath(audio).name.strip("."):
        raise ValueError(f"{where}: audio_filepath {audio!r} is a folder, expected an audio file")
    stem = str(PurePosixPath(audio).with_suffix(""))
    id_key = next((k for k in ID if k in entry), None)
    if id_key:
        id = _text(where, entry, id_key)
    else:
        id = stem.lstrip("/") + (f"@{offset:g}" if audio in several else "")
        # A path that climbs (../audio/x.wav) is fine for a file, not for an id.
        id = "/".join(part for part in id.split("/") if part not in ("..", "."))
    speaker_key = next((k for k in SPEAKER if k in entry), None)
    speaker = None if speaker_key is None else _label(where, entry, speaker_key)
    recording_key = next((k for k in RECORDING if k in entry), None)
    recording = _text(where, entry, recording_key) if recording_key else stem
    split = check_split(_label(where, entry, "split") or "", where)
    turns: tuple[Turn, ...] = ()
    if entry.get("rttm_filepath"):
        rttm = root / _text(where, entry, "rttm_filepath")
        turns = read_turns(where, rttm, {Path(audio).stem, id, recording}, offset, duration, root / audio)
    try:
        return Utterance(
            id=id,
            audio=str(root / audio),
            start_s=offset,
            duration_s=duration,
            recording=recording,
            speaker=None if speaker in _NO_SPEAKER or turns else speaker,
            split=split,
            turns=turns,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _text(where: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if key not in entry:
        raise ValueError(f"{where}: no {key!r} in it, only {', '.join(entry) or 'nothing'}; {_HELP}")
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
