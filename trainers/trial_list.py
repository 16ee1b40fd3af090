"""Whom a trial list names, and who may be trained on beside it."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.trials import Trials, read_trials, resolve
from featstore import Store
from trainers.config import ConfigError


def listed(file: str, store: Store) -> tuple[Trials, list[str], list[str | None]]:
    """A trial list, and for each of its names the store's id and speaker.

    Raises
    ------
    ConfigError : no file was named.
    """
    if not file:
        raise ConfigError("a trial list is needed; add: --set trials=FILE")
    trials = read_trials(file)
    table = store.utterances
    ids = resolve(trials.names, store.ids, table["source"].to_pylist())
    speaker_of = dict(zip(store.ids, table["speaker"].to_pylist(), strict=True))
    return trials, ids, [speaker_of[id] for id in ids]


def training_ids(
    file: str, store: Store, ids: Sequence[str], trial_speakers: Sequence[str | None]
) -> tuple[list[str], list[str]]:
    """Utterances of split train, and their speakers, none of whom is in the trial list `file`.

    Raises
    ------
    ConfigError : a speaker on both sides, or an utterance of the trials without one.
    """
    table = store.utterances
    rows = zip(store.ids, table["speaker"].to_pylist(), table["split"].to_pylist(), strict=True)
    train = [(id, speaker) for id, speaker, split in rows if split == "train" and speaker is not None]
    unknown = [id for id, speaker in zip(ids, trial_speakers, strict=True) if speaker is None]
    if unknown:
        raise ConfigError(
            f"{len(unknown)} utterances of {file} have no speaker in {store.address} (first: {unknown[0]}), "
            "so nobody can tell whether they were trained on; put speakers into the manifest"
        )
    shared = sorted({speaker for _, speaker in train} & set(trial_speakers))
    if shared:
        raise ConfigError(
            f"{len(shared)} speakers of {file} are also trained on ({', '.join(map(str, shared[:5]))}"
            f"{', …' if len(shared) > 5 else ''}): the result would be in-sample. Give them another split than "
            "'train', or ask for it with --protocol reference"
        )
    return [id for id, _ in train], [speaker for _, speaker in train]
