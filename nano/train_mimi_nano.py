"""Train mimi-nano: a small Mimi encoder whose latents must tell the spectrum and the periodicity of its input.

``python -m nano.train_mimi_nano --speech DIR --out RUN [--weights FILE]``; run it again to go on after a stop.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featstore.extractors.mimi import MIMI_NANO, build_mimi
from nano.data import Voice, crop, load_voices
from nano.training import export, train

SAMPLE_RATE_HZ = 24000
FRAME_SAMPLES = 1920
FRAMES = 30  # latents a crop: 2.4 s, the transformer's whole context
BATCH = 8
MELS = 64
LAGS = 64
HOP_SAMPLES = 320  # six mel frames a latent
ENCODER_PARTS = ("encoder.", "encoder_transformer.", "downsample.")


def config() -> dict:
    """MIMI_NANO with the attention context (in 25 Hz steps) the training crops can teach."""
    config = copy.deepcopy(MIMI_NANO)
    config["transformer"]["context"] = 2 * FRAMES
    return config


class Targets(nn.Module):
    """What the latents must tell: (batch, samples at 24 kHz) → log-mel and autocorrelation, a row a latent.

    The first, ``(batch, frames, 6 * MELS)``, is the spectral envelope six times a latent; the second,
    ``(batch, frames, 2 * LAGS)``, the autocorrelation twice a latent at lags from 2.4 to 17 ms, which holds the pitch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(1024), persistent=False)
        self.register_buffer("long_window", torch.hann_window(2048), persistent=False)
        self.register_buffer("filters", _mel_filters(), persistent=False)
        lags = torch.logspace(math.log10(0.0024), math.log10(0.017), LAGS, dtype=torch.float64) * SAMPLE_RATE_HZ
        self.register_buffer("lags", lags.round().long(), persistent=False)

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Frames are centred inside their latent's own 1920 samples, so a causal encoder can know nearly all of them.
        power = self._power(wave, 1024, HOP_SAMPLES, self.window)
        mel = (torch.log(self.filters @ power + 1e-4).transpose(1, 2) + 4) / 3  # about zero mean, unit spread
        correlation = torch.fft.irfft(self._power(wave, 2048, FRAME_SAMPLES // 2, self.long_window), dim=1)
        period = correlation[:, self.lags] / (correlation[:, :1] + 1e-2)
        return mel.reshape(len(wave), -1, 6 * MELS), 3 * period.transpose(1, 2).reshape(len(wave), -1, 2 * LAGS)

    @staticmethod
    def _power(wave: torch.Tensor, size: int, hop: int, window: torch.Tensor) -> torch.Tensor:
        wave = functional.pad(wave, ((size - hop) // 2, (size - hop) // 2))
        return torch.stft(wave, size, hop, window=window, center=False, return_complex=True).abs() ** 2


class MimiNano(nn.Module):
    """The encoder under training and the decoder that is thrown away afterwards."""

    def __init__(self, noise: float, hidden: int = 512) -> None:
        super().__init__()
        mimi = build_mimi(config())
        self.mimi = nn.ModuleDict({name.rstrip("."): getattr(mimi, name.rstrip(".")) for name in ENCODER_PARTS})
        self._latent = mimi.encode_to_latent
        self.noise = noise
        self.decoder = nn.Sequential(nn.Linear(512, hidden), nn.GELU(), nn.Linear(hidden, 6 * MELS + 2 * LAGS))

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

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent = self.latent(wave)
        return latent, self.decoder(latent + self.noise * torch.randn_like(latent))


def batch(voices: list[Voice], rng: np.random.Generator) -> torch.Tensor:
    """(BATCH, samples): crops at random loudness, one in four mixed with another voice, one in four with noise."""
    waves = []
    for _ in range(BATCH):
        wave = _loud(crop(voices[rng.integers(len(voices))].samples, FRAMES * FRAME_SAMPLES, rng), rng)
        kind = rng.random()
        if kind < 0.25:
            wave = wave + _loud(crop(voices[rng.integers(len(voices))].samples, FRAMES * FRAME_SAMPLES, rng), rng)
        elif kind < 0.5:
            wave = wave + rng.standard_normal(len(wave), dtype=np.float32) * 10 ** rng.uniform(-4, -2)
        waves.append(wave)
    return torch.from_numpy(np.stack(waves)).float()


def _loud(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return wave * np.float32(10 ** (rng.uniform(-9, 6) / 20))


def _mel_filters() -> torch.Tensor:
    """(MELS, 513) triangles on O'Shaughnessy's mel scale, 0 to 12 kHz, in float32."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, 513, dtype=torch.float64)
    rise = (hz - edges[:-2, None]) / (edges[1:-1, None] - edges[:-2, None])
    fall = (edges[2:, None] - hz) / (edges[2:, None] - edges[1:-1, None])
    return torch.minimum(rise, fall).clamp_min(0).float()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of LibriSpeech mini (manifest.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and losses")
    parser.add_argument("--weights", type=Path, help="file for the finished weights (OUT/mimi-nano.safetensors)")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--stop-at", type=int, help="stop early, to go on later")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--power", type=float, default=0.01, help="weight of the latents' mean square in the loss")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--espeak", type=int, choices=(0, 1), default=1, help="add synthetic voices")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    voices = [v for v in load_voices(args.speech, SAMPLE_RATE_HZ, espeak=bool(args.espeak)) if v.split == "train"]
    torch.manual_seed(args.seed)
    module, targets = MimiNano(args.noise), Targets()
    module.start(batch(voices, np.random.default_rng(args.seed)), args.seed)

    def loss_of(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        wave = batch(voices, rng)
        mel, period = targets(wave)
        latent, guess = module(wave)
        mel_error = functional.l1_loss(guess[..., : 6 * MELS], mel)
        period_error = functional.l1_loss(guess[..., 6 * MELS :], period)
        power = latent.square().mean()
        numbers = {"mel_l1": mel_error, "period_l1": period_error, "latent_power": power}
        # A collapsed encoder shows here: latents that do not change in time.
        numbers["latent_spread_in_time"] = latent.std(dim=1).mean()
        loss = mel_error + 0.5 * period_error + args.power * power
        return loss, {name: value.item() for name, value in numbers.items()}

    weights = args.weights or args.out / "mimi-nano.safetensors"

    def save(step: int) -> None:
        state = {k.removeprefix("mimi."): v for k, v in module.state_dict().items() if k.startswith("mimi.")}
        about = {
            "trained": f"to predict log-mel and autocorrelation, {step} of {args.steps} steps",
            "licence": "see nano/MODEL_CARD.md",
        }
        export(state, config(), weights, about)

    settings = {"steps": args.steps, "seed": args.seed, "rate": args.rate, "stop_at": args.stop_at}
    train(module, loss_of, args.out, on_checkpoint=save, **settings)


if __name__ == "__main__":
    main()
