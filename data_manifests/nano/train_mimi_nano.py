"""Train mimi-nano: a small Mimi encoder whose latents must tell what is said, and more softly in which voice.

``python -m data_manifests.nano.train_mimi_nano --speech DIR --out RUN [--weights FILE]``; again to go on after a stop.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from data_manifests.nano.data import Voice, crop, load_voices
from data_manifests.nano.mimi_targets import FRAME_SAMPLES, LAGS, MELS, SAMPLE_RATE_HZ, UNITS, Targets, Units
from data_manifests.nano.training import export, train
from featstore.extractors.mimi import MIMI_NANO, build_mimi

FRAMES = 30  # latents a crop: 2.4 s, the transformer's whole context
BATCH = 8
LEVEL = 0.05  # root mean square of every recording in the targets
#: Weights of the losses. What is said weighs more than the voice, so most of the latents' variance is content.
CONTENT, MEL, PERIOD, TIMBRE = 0.3, 0.5, 0.25, 0.1
OUTPUTS = (6 * MELS, 2 * LAGS, MELS, 6 * UNITS)  # mel, autocorrelation, the recording's mean mel, units
ENCODER_PARTS = ("encoder.", "encoder_transformer.", "downsample.")


def config() -> dict:
    """MIMI_NANO with the attention context (in 25 Hz steps) the training crops can teach."""
    config = copy.deepcopy(MIMI_NANO)
    config["transformer"]["context"] = 2 * FRAMES
    return config


@dataclass(frozen=True)
class Recordings:
    """Voices with what is taken out of their targets: loudness (voices,), mean mel (voices, MELS), cepstra's spread."""

    voices: list[Voice]
    rms: NDArray[np.float32]
    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def measure(cls, voices: list[Voice], targets: Targets, units: Units, seed: int) -> Recordings:
        """Statistics of each recording; `units` is fitted on a thousand frames of each."""
        rms, means, spreads, features = [], [], [], []
        rng = np.random.default_rng(seed)
        for voice in voices:
            wave = voice.samples[: len(voice.samples) // FRAME_SAMPLES * FRAME_SAMPLES].astype(np.float32) / 32768
            rms.append(max(1e-4, float(np.sqrt(np.mean(wave**2)))))
            mel = targets.mel(torch.from_numpy(wave / rms[-1] * LEVEL)[None])
            means.append(mel.mean(1))
            spreads.append((mel @ units.cosines.T).std(1))
            frames = units.features(mel - means[-1][:, None], spreads[-1])[0].numpy()
            features.append(frames[rng.permutation(len(frames))[:200]])
        units.fit(np.concatenate(features), seed)
        return cls(voices, np.array(rms, np.float32), torch.cat(means), torch.cat(spreads))


class MimiNano(nn.Module):
    """The encoder under training and the decoder that is thrown away afterwards."""

    def __init__(self, noise: float, hidden: int = 512) -> None:
        super().__init__()
        mimi = build_mimi(config())
        self.mimi = nn.ModuleDict({name.rstrip("."): getattr(mimi, name.rstrip(".")) for name in ENCODER_PARTS})
        self._latent = mimi.encode_to_latent
        self.noise = noise
        self.decoder = nn.Sequential(nn.Linear(512, hidden), nn.GELU(), nn.Linear(hidden, sum(OUTPUTS)))

    def start(self, wave: torch.Tensor, seed: int) -> None:
        """Initialise the convolutions so that each one's output has unit spread on `wave` (Mishkin & Matas 2015).

        PyTorch's default leaves them nearly linear and nearly silent, and the latents then hardly move in time. The
        first layer's filters get scales from 1 to 30, so that the ELUs behind it bend at soft and at loud speech.
        """
        generator = torch.Generator().manual_seed(seed)
        convolutions = [layer for layer in self.mimi.modules() if isinstance(layer, nn.Conv1d)]

        def rescale(layer: nn.Conv1d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            spread = output.std() if layer is not convolutions[0] else output.std((0, 2))[None, :, None]
            wanted = 1.0 if layer is not convolutions[0] else torch.logspace(0, 1.5, output.shape[1])[None, :, None]
            gain = torch.as_tensor(wanted / spread)
            layer.weight.data *= gain.reshape(-1, 1, 1)
            return output * gain

        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        hooks = [layer.register_forward_hook(rescale) for layer in convolutions]
        with torch.no_grad():
            self.latent(wave)
        for hook in hooks:
            hook.remove()

    def latent(self, wave: torch.Tensor) -> torch.Tensor:
        """(batch, samples) → (batch, frames, 512)."""
        return self._latent(wave[:, None], quantize=False).transpose(1, 2)

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        latent = self.latent(wave)
        return latent, self.decoder(latent + self.noise * torch.randn_like(latent)).split(OUTPUTS, dim=-1)


def batch(
    recordings: Recordings, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64], torch.Tensor]:
    """What the encoder hears, what it must tell of, whose recording it is, and where that one speaks alone.

    Heard, (BATCH, samples): crops at any loudness over any channel, half with noise, one in five mixed with another
    voice. Told of, (BATCH, samples): the same before all that, at one loudness, the other voice included.
    """
    length = FRAMES * FRAME_SAMPLES
    picks = rng.integers(len(recordings.voices), size=BATCH)
    heard, clean, alone = [], [], []
    for pick in picks:
        wave = crop(recordings.voices[pick].samples, length, rng) / recordings.rms[pick] * LEVEL
        alone.append(bool(rng.random() > 0.2))
        through = _channel(wave, rng)
        if not alone[-1]:
            other = int(rng.integers(len(recordings.voices)))
            gain = np.float32(10 ** (rng.uniform(-10, 3) / 20) * LEVEL / recordings.rms[other])
            more = gain * crop(recordings.voices[other].samples, length, rng)
            wave, through = wave + more, through + _channel(more, rng)
        if rng.random() < 0.5:
            through = through + rng.standard_normal(length, dtype=np.float32) * 10 ** rng.uniform(-4, -2.2)
        clean.append(wave)
        heard.append(through * np.float32(10 ** (rng.uniform(-12, 9) / 20)))
    waves = [torch.from_numpy(np.stack(some)).float() for some in (heard, clean)]
    return waves[0], waves[1], picks, torch.tensor(alone)


def _channel(wave: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random frequency response: tilt and three slow waves over the logarithm of frequency, some 4 dB each."""
    spectrum = np.fft.rfft(wave)
    octaves = np.log2(1 + np.arange(len(spectrum), dtype=np.float32) / len(spectrum) * 120) / 6.9
    nepers = sum(
        rng.normal(0, 0.4) * np.cos(np.pi * (waves * octaves + rng.uniform(0, 2))) for waves in (0.5, 1.0, 2.0, 3.0)
    )
    return np.fft.irfft(spectrum * np.exp(nepers), n=len(wave)).astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of LibriSpeech mini (manifest.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and losses")
    parser.add_argument("--weights", type=Path, help="file for the finished weights (OUT/mimi-nano.safetensors)")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--stop-at", type=int, help="stop early, to go on later")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights to start from: a file that an earlier training made")
    parser.add_argument("--frozen", type=int, default=0, help="of SEANet's layers, counted from the waveform")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--power", type=float, default=0.01, help="weight of the latents' mean square in the loss")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--espeak", type=int, choices=(0, 1), default=1, help="add synthetic voices")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    voices = [v for v in load_voices(args.speech, SAMPLE_RATE_HZ, espeak=bool(args.espeak)) if v.split == "train"]
    torch.manual_seed(args.seed)
    module, targets, units = MimiNano(args.noise), Targets(), Units()
    recordings = Recordings.measure(voices, targets, units, args.seed)
    if args.start is None:
        module.start(batch(recordings, np.random.default_rng(args.seed))[0], args.seed)
    else:
        state = {f"mimi.{name}": tensor.float() for name, tensor in load_file(args.start).items()}
        unknown = module.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"{args.start}: not a mimi-nano, it also holds {unknown[0]}")
    for layer in module.mimi["encoder"].model[: args.frozen]:
        layer.requires_grad_(False)

    def loss_of(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        heard, clean, picks, alone = batch(recordings, rng)
        mean = recordings.mean[picks]
        with torch.no_grad():
            mel, period = targets(clean)
            mel = mel.view(BATCH, -1, MELS) - mean[:, None]
            unit = units(units.features(mel, recordings.spread[picks]))
        latent, (mel_guess, period_guess, mean_guess, unit_guess) = module(heard)
        numbers = {
            "unit_entropy": functional.cross_entropy(unit_guess.reshape(BATCH, -1, UNITS)[alone].mT, unit[alone]),
            "mel_l1": functional.l1_loss(mel_guess, mel.view_as(mel_guess)),
            "period_l1": functional.l1_loss(period_guess, period),
            "mean_mel_l1": functional.l1_loss(mean_guess, mean[:, None].expand_as(mean_guess)),
            "latent_power": latent.square().mean(),
        }
        loss = torch.stack(list(numbers.values())) @ torch.tensor([CONTENT, MEL, PERIOD, TIMBRE, args.power])
        # A collapsed encoder shows here: latents that do not change in time.
        numbers["latent_spread_in_time"] = latent.std(dim=1).mean()
        return loss, {name: value.item() for name, value in numbers.items()}

    weights = args.weights or args.out / "mimi-nano.safetensors"

    def save(step: int) -> None:
        state = {k.removeprefix("mimi."): v for k, v in module.state_dict().items() if k.startswith("mimi.")}
        told = "to predict acoustic units, log-mel and autocorrelation"
        export(state, config(), weights, f"{told}, {step} of {args.steps} steps")

    settings = {"steps": args.steps, "seed": args.seed, "rate": args.rate, "stop_at": args.stop_at}
    train(module, loss_of, args.out, on_checkpoint=save, **settings)


if __name__ == "__main__":
    main()
