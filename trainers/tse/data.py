"""Mixtures and their voices as a store has them: whose each voice is, what else that person says, and the sound of both."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featstore import Store, Utterance
from featstore.corpora import audio
from featstore.store.reader import store_utterances
from trainers.config import ConfigError
from trainers.fraction import share_of
from trainers.tse.config import TseConfig
from trainers.tse.network import RATE_HZ
from trainers.unmix.data import towards

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, eq=False)
class Voice:
    """One voice of a mixture.

    Attributes
    ----------
    track : that voice alone, as it is in the mixture.
    others : utterances of the same person in which something else is said, for enrolment; () where there are none.
    """

    track: Utterance
    others: tuple[str, ...]

    @property
    def speaker(self) -> str:
        return str(self.track.speaker)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture and its voices.

    Attributes
    ----------
    waves : (samples,) by utterance's id, of a mixture that lies in no file.
    """

    utterance: Utterance
    voices: tuple[Voice, ...]
    waves: Mapping[str, NDArray[np.float32]] | None = None

    def sound(self, of: Utterance, start: int = 0, samples: int | None = None) -> NDArray[np.float32]:
        """The mixture or a track of it, `samples` from a start; shorter where the file ends.

        Raises
        ------
        ValueError, OSError : like `featstore.corpora.audio.load`.
        """
        if self.waves is not None:
            return self.waves[of.id][start : None if samples is None else start + samples]
        if samples is not None:
            rest_s = of.duration_s - start / RATE_HZ
            of = replace(of, start_s=of.start_s + start / RATE_HZ, duration_s=min(samples / RATE_HZ, rest_s))
        return audio.load(of, RATE_HZ, silence_ok=True)


@dataclass(frozen=True, eq=False)
class TseData:
    """Mixtures by split, of which no two share a speaker, and embeddings by utterance.

    Attributes
    ----------
    centre : (size,), the mean of what training voices say; embeddings are directions from there, as a fitted unmixer's are.
    """

    splits: dict[str, list[Mixture]]
    centre: NDArray[np.float32]
    vectors: dict[str, NDArray[np.float32]]
    notes: list[str] = field(default_factory=list)

    def speakers(self, split: str) -> set[str]:
        return {voice.speaker for mixture in self.splits[split] for voice in mixture.voices}


def load_data(config: TseConfig, store: Store) -> TseData:
    """Find the mixtures of a store and read the embeddings; sound is read when it is needed.

    Raises
    ------
    ConfigError : no mixtures, or not in each split; a speaker in two of them; codes in place of vectors; no embeddings.
    """
    if store.features[config.feature].whole:
        raise ConfigError(f"feature {config.feature!r} holds codes; a voice is told by vectors, such as titanet's")
    found: dict[str, list[Mixture]] = {**{split: [] for split in SPLITS}, **_mixtures(store, config.feature)}
    missing = [split for split in SPLITS if not found[split]]
    if missing:
        raise ConfigError(
            f"{store.address}: no mixtures with tracks in split {', '.join(missing)}; make some with: featstore simulate … "
            f"--recipe mix, and extract {config.feature!r} from what it writes"
        )
    found["train"] = share_of(found["train"], config.train_fraction, config.seed)
    if max(len(m.voices) for m in found["train"]) < config.least_voices:
        raise ConfigError(f"least_voices={config.least_voices}: no training mixture has as many voices")
    data = TseData({split: found[split] for split in SPLITS}, np.zeros(0, np.float32), {})
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if both := data.speakers(one) & data.speakers(other):
            raise ConfigError(
                f"{store.address}: {len(both)} speakers are in {one} and {other}, such as {min(both)!r}; "
                "a voice to be extracted must be of a stranger: give each speaker one split"
            )
    known = store.index(config.feature).rows
    of_split = {split: _ids(data.splits[split], known) for split in SPLITS}
    if missing := [split for split in ("train", "dev") if not of_split[split]]:
        raise ConfigError(
            f"{store.address}: feature {config.feature!r} was extracted of no voice in {', '.join(missing)}; "
            "extract it of the tracks, or of other utterances of these speakers"
        )
    centre = store.pooled(config.feature, of_split["train"]).mean(0, dtype=np.float64).astype(np.float32)
    data = replace(data, centre=centre)
    ids = [id for of in of_split.values() for id in of]
    data.vectors.update(zip(ids, towards(store.pooled(config.feature, ids), centre), strict=True))
    for what, count in (
        ("have no embedding of their own track", lambda v: v.track.id not in known),
        ("say nothing else that has an embedding", lambda v: not v.others),
    ):
        voices = [v for of in data.splits.values() for m in of for v in m.voices]
        if without := sum(map(count, voices)):
            data.notes.append(f"{without} of {len(voices)} voices {what}: they are not asked for by it")
    return data


def _ids(mixtures: Iterable[Mixture], known: Container[str]) -> list[str]:
    """What there is an embedding of, that one of these voices says."""
    ids = {id for m in mixtures for v in m.voices for id in (v.track.id, *v.others)}
    return sorted(id for id in ids if id in known)


def _mixtures(store: Store, feature: str) -> dict[str, list[Mixture]]:
    known = store.index(feature).rows
    everything = list(store_utterances(store))
    tracks: dict[str, list[Utterance]] = {}
    said: dict[str, list[Utterance]] = {}
    for utterance in everything:
        if utterance.speaker is not None:
            if utterance.id in known:
                said.setdefault(utterance.speaker, []).append(utterance)
            if utterance.id.startswith(utterance.recording + "/"):
                tracks.setdefault(utterance.recording, []).append(utterance)
    found: dict[str, list[Mixture]] = {}
    for utterance in everything:
        if utterance.speaker is None and utterance.id in tracks:
            voices = tuple(Voice(t, _others(t, said.get(str(t.speaker), ()))) for t in tracks[utterance.id])
            found.setdefault(utterance.split, []).append(Mixture(utterance, voices))
    return {split: sorted(of, key=lambda m: m.utterance.id) for split, of in found.items()}


def _words(utterance: Utterance) -> str:
    """What an utterance was cut from: tracks of one speaker that end alike are of the same words."""
    return utterance.id.removeprefix(utterance.recording + "/")


def _others(track: Utterance, said: Iterable[Utterance]) -> tuple[str, ...]:
    return tuple(
        u.id for u in said if u.recording != track.recording and _words(u) != _words(track) and u.split == track.split
    )
