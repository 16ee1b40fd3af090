"""What an extraction learns from: crops of mixtures, as they are stored or put together anew, and whose voice is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.extraction import SILENCE
from trainers.fraction import share_of
from trainers.tse.config import TseConfig
from trainers.tse.data import Mixture, TseData, Voice
from trainers.tse.network import RATE_HZ


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
        # Who can be heard in mixtures that are put together anew: voices that are alone in theirs too.
        # By speaker, since some are in many mixtures and others in few: all are to be heard as often.
        self.pool: dict[str, list[tuple[Mixture, Voice]]] = {}
        for pair in ((m, v) for m in data.splits[split] for v in m.voices if self._known(v)):
            self.pool.setdefault(pair[1].speaker, []).append(pair)
        mixtures = [m for m in data.splits[split] if len(m.voices) >= config.least_voices]
        # A mixture of three is three voices to ask for.
        self.asked = [pick for m in mixtures for pick in self._picks(m)]
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
            if rng.random() < self.config.remixed:
                own = self._picks(self._anew(own[0][0], rng))
            picks += [own[i] for i in rng.permutation(len(own))[:2]]
            if len(picks) >= self.config.batch_size:
                break
        return self.examples(picks[: self.config.batch_size], rng, self.config.jitter)

    def _known(self, voice: Voice) -> bool:
        return self.all_voices or bool(voice.others) or voice.track.id in self.data.vectors

    def _picks(self, mixture: Mixture) -> list[tuple[Mixture, Voice]]:
        """Who is asked for in a mixture: each voice; where all voices come out at once, the first stands for all."""
        return [(mixture, v) for v in (mixture.voices[:1] if self.all_voices else mixture.voices) if self._known(v)]

    def _anew(self, mixture: Mixture, rng: np.random.Generator) -> Mixture:
        """Other voices in the places of a mixture's own: each as loud as the one before, at any time, in the same noise.

        The noise is what the mixture is without its tracks; where a channel or a codec was simulated, that too.
        """
        said = list(self.pool.values())
        some = rng.permutation(len(said))[: len(mixture.voices)].tolist()
        chosen = [said[k][int(rng.integers(len(said[k])))] for k in some]
        whole = mixture.sound(mixture.utterance).copy()
        levels = []
        for old in mixture.voices:
            was = mixture.sound(old.track)[: len(whole)]
            whole[: len(was)] -= was
            levels.append(_power(was))
        waves = {}
        for (home, voice), level in zip(chosen, levels, strict=False):  # fewer where so few speakers are known
            own = home.sound(voice.track)
            gain = np.float32(np.sqrt(level / max(_power(own), SILENCE)))
            waves[voice.track.id] = _placed(own * gain, len(whole), rng)
        whole += np.sum(list(waves.values()), axis=0)
        voices = tuple(voice for _, voice in chosen)
        return Mixture(mixture.utterance, voices, {**waves, mixture.utterance.id: whole})

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


def _power(wave: NDArray[np.float32]) -> float:
    return float(np.square(wave, dtype=np.float64).mean())


def _placed(wave: NDArray[np.float32], samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A wave somewhere in so many samples, or so many of it."""
    if len(wave) >= samples:
        first = int(rng.integers(len(wave) - samples + 1))
        return wave[first : first + samples]
    out = np.zeros(samples, np.float32)
    first = int(rng.integers(samples - len(wave) + 1))
    out[first : first + len(wave)] = wave
    return out
