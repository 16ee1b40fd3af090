"""Mixtures taken apart by a run that is told nothing, as utterances to extract from: the rival that separates first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import soundfile as sf

from featstore import Store
from featstore.extractors.device import pick_device
from featstore.files import write_atomically
from trainers.progress import Progress, Unseen
from trainers.runs import Run, RunError
from trainers.tse.data import load_data
from trainers.tse.measure import separate
from trainers.tse.network import RATE_HZ, Extractor

#: Of these, since nothing is trained on what comes out.
_SPLITS = ("dev", "test")


def write_parts(run: Run[Any], store: Store, out: str | os.PathLike[str], *, progress: Progress | None = None) -> int:
    """Take the mixtures of dev and test apart: ``out/parts/N/K.flac``, and ``out/manifest.jsonl``, in which part K is the
    utterance ``MIXTURE/part-K`` of the mixture's recording, without a speaker. A part's level says nothing: each is as loud as 0.9.

    Returns
    -------
    How many parts there are.

    Raises
    ------
    RunError : the run is of another kind, was told whom to extract, has no weights, or they are damaged.
    ConfigError : the store has no mixtures; see `load_data`.
    """
    if run.config.kind != "tse" or run.config.condition != "none":
        raise RunError(f"{run.path}: expected a run of fit tse with condition=none, which gives all voices at once")
    device, folder = pick_device(run.config.device), Path(out)
    network, data = Extractor.load(run, device), load_data(run.config, store)
    mixtures = [(split, mixture) for split in _SPLITS for mixture in data.splits[split]]
    rows, shown = [], progress if progress is not None else Unseen()
    for done, (split, mixture) in enumerate(mixtures, 1):
        id = mixture.utterance.id
        for k, part in enumerate(separate(network, mixture.sound(mixture.utterance), device)):
            path = folder / "parts" / f"{done - 1:06d}" / f"{k}.flac"  # an id may hold anything
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, part * (0.9 / max(1e-6, float(abs(part).max()))), RATE_HZ, "PCM_16")
            row = {"audio_filepath": path.relative_to(folder).as_posix(), "duration": len(part) / RATE_HZ}
            rows.append({**row, "label": "infer", "split": split, "session_id": id, "utt_id": f"{id}/part-{k}"})
        shown.update(done, len(mixtures), "taking mixtures apart")
    write_atomically(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return len(rows)
