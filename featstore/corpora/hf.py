"""Hugging Face `datasets` as manifests: rows become Utterances, their audio is read from the dataset's Arrow files."""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from featstore.types import Utterance

_ID_COLUMNS = ("id", "utt_id", "utterance_id", "file")
_SPEAKER_COLUMNS = ("speaker", "speaker_id", "label")
_RECORDING_COLUMNS = ("recording", "session_id", "chapter_id", "video_id")
#: `lru_cache` does not lock: without it, every decoding thread that finds nothing would load.
_LOADING = threading.Lock()


def read_dataset(reference: str) -> list[Utterance]:
    """Utterances of a dataset: one a row, columns id, audio, speaker (speaker_id, label), optionally recording.

    Parameters
    ----------
    reference : a folder written by ``Dataset.save_to_disk``, or ``hf:NAME[:CONFIG][@SPLIT]`` on the Hugging Face Hub.

    Raises
    ------
    ValueError : `datasets` is not installed, the dataset cannot be had, or columns are missing.
    """
    source = _parse(reference)
    utterances = []
    for split, data in _splits(**source).items():
        columns = data.column_names
        if "audio" not in columns:
            raise ValueError(f"{reference}: expected a column 'audio', found {', '.join(columns)}")
        id_column = next((c for c in _ID_COLUMNS if c in columns), None)
        speaker_column = next((c for c in _SPEAKER_COLUMNS if c in columns), None)
        recording_column = next((c for c in _RECORDING_COLUMNS if c in columns), None)
        names = getattr(data.features.get(speaker_column), "names", None)  # a ClassLabel stores numbers
        facts = data.select_columns([c for c in (id_column, speaker_column, recording_column) if c])
        for row in range(len(data)):
            fact = facts[row] if facts.column_names else {}
            speaker = fact.get(speaker_column)
            if names and speaker is not None:
                speaker = names[speaker] if speaker >= 0 else None  # -1 is the library's "no label"
            id = str(fact[id_column]) if id_column else f"{split}/{row:08d}"
            query = urlencode({k: v for k, v in source.items() if v} | {"split": split, "row": row})
            utterances.append(
                Utterance(
                    id=id,
                    audio=f"datasets:?{query}",
                    start_s=0.0,
                    duration_s=float("nan"),
                    recording=str(fact.get(recording_column) or id),
                    speaker=None if speaker is None else str(speaker),
                    split={"validation": "dev"}.get(split, split),
                )
            )
    return utterances


def audio_bytes(reference: str) -> bytes:
    """The encoded audio of one row, by the reference that `read_dataset` put into ``Utterance.audio``.

    Raises
    ------
    ValueError : the row holds no audio, or names a file outside of the dataset.
    """
    query = dict(parse_qsl(reference.removeprefix("datasets:?")))
    row, split = int(query.pop("row")), query.pop("split")
    data = _splits(query.get("path", ""), query.get("config", ""), query.get("wanted", ""))[split]
    audio = data[row]["audio"] or {}
    held: bytes | None = audio.get("bytes")
    if held:
        return held
    where = f"dataset {query.get('path')!r}, split {split!r}, row {row}"
    if not audio.get("path"):
        raise ValueError(f"{where}: holds no audio")
    roots = _roots(query.get("path", ""))
    files = [file for root in roots if (file := Path(root, audio["path"]).resolve()).is_relative_to(root)]
    if not files:
        raise ValueError(
            f"{where}: its audio {audio['path']} is outside of {' and '.join(map(str, roots))}; not read. Save the "
            "dataset with its audio in it (save_to_disk), or make a JSONL manifest"
        )
    there = [file for file in files if file.is_file()]
    if not there:
        raise ValueError(f"{where}: its audio {audio['path']} is not there")
    return there[0].read_bytes()


def _roots(path: str) -> list[Path]:
    """Where a dataset's audio files may lie: in its own folder, or where the library puts what it downloads."""
    if not path.startswith("hf:"):
        return [Path(path).resolve()]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = (HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    return list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))


def _parse(reference: str) -> dict[str, str]:
    if not reference.startswith("hf:"):
        return {"path": reference, "config": "", "wanted": ""}
    name, _, wanted = reference.removeprefix("hf:").partition("@")
    name, _, config = name.partition(":")
    return {"path": f"hf:{quote(name)}", "config": config, "wanted": wanted}


def _splits(path: str, config: str, wanted: str) -> dict[str, Any]:
    with _LOADING:
        return _load(path, config, wanted)


@lru_cache(maxsize=8)
def _load(path: str, config: str, wanted: str) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "reading a Hugging Face dataset needs datasets; where whowhen was cloned: pip install -e '.[hub]'"
        ) from None
    if path.startswith("hf:") and not path[3:]:
        raise ValueError(
            "hf: names no data set; expected hf:NAME[:CONFIG][@SPLIT], such as hf:openslr/librispeech_asr@train"
        )
    # What the hub's client says of each of its attempts would stand before our one line.
    speaker = logging.getLogger("huggingface_hub")
    level = speaker.level
    try:
        speaker.setLevel(logging.ERROR)
        if path.startswith("hf:"):
            found = datasets.load_dataset(unquote(path[3:]), config or None, split=wanted or None)
        else:
            found = datasets.load_from_disk(path)
    except Exception as error:  # the library raises a dozen kinds, from gated to offline
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"dataset {unquote(path)}: cannot be had ({reason}); check the name, `huggingface-cli login` for gated ones, "
            "or download it elsewhere, save_to_disk, and give the folder"
        ) from None
    finally:
        speaker.setLevel(level)
    splits = dict(found) if isinstance(found, dict) else {wanted.split("[")[0] or str(found.split or "train"): found}
    # Our decoder, not the library's: one way for audio to enter.
    return {
        name: data.cast_column("audio", datasets.Audio(decode=False)) if "audio" in data.column_names else data
        for name, data in splits.items()
    }
