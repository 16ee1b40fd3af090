"""Mixtures and their voices as a store has them: whose each voice is, what else that person says, and the sound of both."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """A mixture and its voices."""

    utterance: Utterance
    voices: tuple[Voice, ...]

    def sound(self, of: Utterance, start: int = 0, samples: int | None = None) -> NDArray[np.float32]:
        """The mixture or a track of it, `samples` from a start; shorter where the file ends.

        Raises
        ------
        ValueError, OSError : like `featstore.corpora.audio.load`.
        """
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


@dataclass(frozen=True, eq=False)
class Example:
    """Crops to learn from.

    Attributes
    ----------
    mixtures : (batch, samples). embeddings : (batch, size).
    references : (batch, voices, samples), the voice asked for, or all of them; zeros where there are fewer.
    counts : (batch,) how many there are.
    """

    mixtures: Tensor
    embeddings: Tensor
    references: Tensor
    counts: Tensor


class Crops:
    """Draws examples, each from one mixture."""

    def __init__(self, data: TseData, split: str, config: TseConfig) -> None:
        self.data, self.config = data, config
        self.all_voices = config.condition == "none"
        mixtures = [m for m in data.splits[split] if len(m.voices) >= config.least_voices]
        # A mixture of three is three voices to ask for.
        self.asked = [
            (m, v)
            for m in mixtures
            for v in (m.voices[:1] if self.all_voices else m.voices)
            if self.all_voices or v.others or v.track.id in data.vectors
        ]
        grouped: dict[str, list[tuple[Mixture, Voice]]] = {}
        for mixture, voice in self.asked:
            grouped.setdefault(mixture.utterance.id, []).append((mixture, voice))
        self.by_mixture = list(grouped.values())
        self.samples = round(config.crop_s * RATE_HZ)

    def draw(self, rng: np.random.Generator) -> Example:
        """A batch of training crops.

        Of a mixture up to two voices are asked for, so that a batch shows what the embedding is for.
        """
        picks: list[tuple[Mixture, Voice]] = []
        for k in rng.permutation(len(self.by_mixture)):
            own = self.by_mixture[k]
            picks += [own[i] for i in rng.permutation(len(own))[:2]]
            if len(picks) >= self.config.batch_size:
                break
        return self.examples(picks[: self.config.batch_size], rng, self.config.jitter)

    def fixed(self, count: int, seed: int) -> list[tuple[Mixture, Voice]]:
        """So many voices, the same for the same seed."""
        return share_of(self.asked, min(1.0, count / len(self.asked)), seed)

    def examples(
        self, asked: Sequence[tuple[Mixture, Voice]], rng: np.random.Generator, jitter: float = 0.0
    ) -> Example:
        """A batch of these voices; crops and embeddings are drawn."""
        most = max(len(m.voices) for m, _ in asked) if self.all_voices else 1
        mixtures = np.zeros((len(asked), self.samples), np.float32)
        references = np.zeros((len(asked), most, self.samples), np.float32)
        vectors, counts = [], []
        for row, (mixture, voice) in enumerate(asked):
            there = round(mixture.utterance.duration_s * RATE_HZ)
            start = int(rng.integers(max(0, there - self.samples) + 1))
            wave = mixture.sound(mixture.utterance, start, self.samples)
            mixtures[row, : len(wave)] = wave
            wanted = mixture.voices if self.all_voices else (voice,)
            for column, one in enumerate(wanted):
                wave = mixture.sound(one.track, start, self.samples)
                references[row, column, : len(wave)] = wave
            counts.append(len(wanted))
            vectors.append(np.zeros(1, np.float32) if self.all_voices else self._vector(voice, rng, jitter))
        return Example(*map(torch.from_numpy, (mixtures, np.stack(vectors), references, np.array(counts))))

    def _vector(self, voice: Voice, rng: np.random.Generator, jitter: float) -> NDArray[np.float32]:
        """The voice's embedding from something else that it says, or from its own track, with some noise."""
        of, enrolled = voice.track.id, rng.random() < self.config.enrolled
        if of not in self.data.vectors or (voice.others and enrolled):
            of = voice.others[int(rng.integers(len(voice.others)))]
        vector = self.data.vectors[of]
        noise = rng.standard_normal(len(vector)) * (rng.random() * jitter / np.sqrt(len(vector)))
        moved = (vector + noise).astype(np.float32)
        return moved / np.linalg.norm(moved)
