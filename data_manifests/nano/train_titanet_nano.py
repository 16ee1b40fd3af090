"""Train titanet-nano: a small TitaNet that tells speakers apart from one to two seconds of speech.

``python -m data_manifests.nano.train_titanet_nano --speech DIR --out RUN [--weights FILE]``; again to go on after a stop.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from data_manifests.nano.data import Voice, load_voices
from data_manifests.nano.training import export, train
from featstore.extractors.titanet_nemo import TITANET_NANO, build_titanet

SAMPLE_RATE_HZ = 16000
BATCH = 32
CROP_FRAMES = (120, 200)  # of 10 ms
SCALE, MARGIN = 30.0, 0.2  # additive angular margin: Deng et al. 2019, with TitaNet's values
LEFT_OUT = ("decoder.final.", "preprocessor.")  # the training head; windows and filters come from the config


def config() -> dict:
    """TITANET_NANO with one convolution a block and no dropout."""
    config = copy.deepcopy(TITANET_NANO)
    config["preprocessor"]["pad_to"] = 0
    for block in config["encoder"]["jasper"]:
        block.update(dropout=0.0, repeat=1)
    return config


class TitaNetNano(nn.Module):
    """The network under training and the speakers' directions that are thrown away afterwards."""

    def __init__(self, config: dict, speakers: int) -> None:
        super().__init__()
        titanet = build_titanet(config)
        self.encoder, self.decoder = titanet.encoder, titanet.decoder
        self.speakers = nn.Parameter(functional.normalize(torch.randn(speakers, 192), dim=1))

    def embed(self, mel: torch.Tensor) -> torch.Tensor:
        """(batch, mels, frames) → (batch, 192)."""
        length = torch.full((len(mel),), mel.shape[-1])
        encoded, length = self.encoder(audio_signal=mel, length=length)
        return self.decoder(encoder_output=encoded, length=length)[1]

    def forward(self, mel: torch.Tensor, speaker: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and share of right answers."""
        cosine = functional.normalize(self.embed(mel), dim=1) @ functional.normalize(self.speakers, dim=1).T
        right = cosine.gather(1, speaker[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        # cos(θ + margin) where that is still falling, a straight line beyond (Deng et al. 2019).
        shifted = right * math.cos(margin) - (1 - right**2).sqrt() * math.sin(margin)
        shifted = torch.where(right > math.cos(math.pi - margin), shifted, right - margin * math.sin(margin))
        logits = SCALE * cosine.scatter(1, speaker[:, None], shifted)
        return functional.cross_entropy(logits, speaker), (cosine.argmax(1) == speaker).float().mean()


def mel_of(voices: list[Voice], config: dict) -> list[NDArray[np.float16]]:
    """NeMo's own log mels of whole recordings, not normalised: each ``(80, frames)``."""
    preprocessor = build_titanet({**config, "preprocessor": {**config["preprocessor"], "normalize": "NA"}}).preprocessor
    mels = []
    for voice in voices:
        wave = torch.from_numpy(voice.samples.astype(np.float32) / 32768)[None]
        mel, _ = preprocessor(input_signal=wave, length=torch.tensor([wave.shape[1]]))
        mels.append(mel[0].numpy().astype(np.float16))
    return mels


def augment(mel: NDArray[np.float32], mels: list[NDArray[np.float16]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Gain, channel, noise and babble on one log-mel crop ``(80, frames)``: sums in the log are products of filters."""
    bands = np.linspace(0, 1, len(mel), dtype=np.float32)[:, None]
    mel = mel + np.float32(rng.normal(0, 1.0))  # loudness
    if rng.random() < 0.7:  # a smooth channel: tilt and two slow waves
        for waves in (0.5, 1.0, 2.0):
            mel = mel + np.float32(rng.normal(0, 0.35)) * np.cos(
                np.pi * (waves * bands + np.float32(rng.uniform(0, 2)))
            )
    if rng.random() < 0.5:  # steady noise, white or tilted, 5 to 30 dB below the speech
        level = mel.max() - rng.uniform(4, 11)
        noise = level + rng.normal(0, 1) * (bands - 0.5) + np.log(rng.exponential(1, mel.shape) + 1e-3)
        mel = np.logaddexp(mel, noise).astype(np.float32)
    if rng.random() < 0.2:  # another voice, 7 to 20 dB below
        other = _crop(mels[rng.integers(len(mels))], mel.shape[1], rng)
        mel = np.logaddexp(mel, other - other.max() + mel.max() - rng.uniform(1.6, 4.6)).astype(np.float32)
    if rng.random() < 0.3:  # a masked band or stretch (SpecAugment, Park et al. 2019)
        mel = mel.copy()
        first = rng.integers(0, 70)
        mel[first : first + rng.integers(1, 10)] = mel.mean()
    if rng.random() < 0.3:  # speech that starts or ends inside the window
        mel = mel.copy()
        quiet, cut = mel.min(), int(mel.shape[1] * rng.uniform(0.1, 0.5))
        mel[:, slice(0, cut) if rng.random() < 0.5 else slice(-cut, None)] = quiet
    return mel


def _crop(mel: NDArray[np.float16], frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    start = int(rng.integers(0, max(1, mel.shape[1] - frames + 1)))
    piece = mel[:, start : start + frames].astype(np.float32)
    return np.pad(piece, ((0, 0), (0, frames - piece.shape[1])), mode="wrap")


def batch(
    mels: list[NDArray[np.float16]], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(BATCH, 80, frames) log mels, augmented and not normalised, and the speakers' numbers (BATCH,)."""
    frames = int(rng.integers(*CROP_FRAMES))
    picks = rng.choice(len(mels), BATCH, replace=len(mels) < BATCH)
    crops = [augment(_crop(mels[i], frames, rng), mels, rng) for i in picks]
    return torch.from_numpy(np.stack(crops)).float(), torch.from_numpy(labels[picks])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of LibriSpeech mini (manifest.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and losses")
    parser.add_argument("--weights", type=Path, help="file for the finished weights (OUT/titanet-nano.safetensors)")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--stop-at", type=int, help="stop early, to go on later")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--espeak", type=int, choices=(0, 1), default=1, help="add synthetic voices")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    settings = config()
    voices = [v for v in load_voices(args.speech, SAMPLE_RATE_HZ, espeak=bool(args.espeak)) if v.split == "train"]
    names = sorted({voice.speaker for voice in voices})
    labels = np.array([names.index(voice.speaker) for voice in voices])
    mels = mel_of(voices, settings)
    torch.manual_seed(args.seed)
    module = TitaNetNano(settings, len(names))

    def loss_of(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        mel, speaker = batch(mels, labels, rng)
        mel = (mel - mel.mean(-1, keepdim=True)) / (mel.std(-1, keepdim=True) + 1e-5)  # as NeMo does it
        loss, right = module(mel, speaker, margin=MARGIN * min(1.0, step / (0.3 * args.steps)))
        return loss, {"accuracy": right.item()}

    weights = args.weights or args.out / "titanet-nano.safetensors"

    def save(step: int) -> None:
        state = {k: v for k, v in module.state_dict().items() if k != "speakers" and not k.startswith(LEFT_OUT)}
        export(state, settings, weights, f"{step} of {args.steps} steps, {len(names)} speakers")

    loop = {"steps": args.steps, "seed": args.seed, "rate": args.rate, "stop_at": args.stop_at}
    train(module, loss_of, args.out, on_checkpoint=save, weight_decay=0.05, **loop)


if __name__ == "__main__":
    main()
