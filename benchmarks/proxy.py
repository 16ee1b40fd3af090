"""What a speaker loss costs a step of training: through the proxy, or by decoding and a speaker model.

    python benchmarks/proxy.py [--batch 1] [--repeats 5] [--threads 1]

Both from the same logits (eight books of 2048, 3 s) to the gradient on them, in turns on the same cores in one run, with
frozen, untrained networks of the published sizes. The other way is straight through, as it has to be: the codes' vectors →
Mimi's decoder → waveform → TitaNet-Large, and back. Beside it only its way forward, which gives no gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featstore.extractors.mimi import MIMI_FULL, build_mimi, uncompiled
from featstore.extractors.titanet_nemo import TITANET_FULL, build_titanet
from trainers.proxy import Proxy

FRAMES, N_Q, BINS, DIM = 38, 8, 2048, 512


class Decoded(torch.nn.Module):
    """The codec's vectors (batch, frames, dim) → unit TitaNet embeddings of what they sound like."""

    def __init__(self) -> None:
        super().__init__()
        self.mimi, self.titanet = build_mimi(MIMI_FULL), build_titanet(TITANET_FULL)

    def forward(self, frames: Tensor) -> Tensor:
        with uncompiled():
            latents = self.mimi._to_encoder_framerate(frames.transpose(1, 2))
            (latents,) = self.mimi.decoder_transformer(latents)
            wave = self.mimi.decoder(latents)
        wave = functional.interpolate(wave, scale_factor=2 / 3, mode="linear")[
            :, 0
        ]  # 24 to 16 kHz, as cheaply as can be
        # NeMo's preprocessor takes no gradients; the same steps with them.
        parts = self.titanet.preprocessor.featurizer
        spectrum = torch.stft(wave, 512, 160, 400, torch.hann_window(400), return_complex=True)
        mel = (parts.fb @ spectrum.abs().square() + 2**-24).log()
        mel = (mel - mel.mean(2, keepdim=True)) / (mel.std(2, keepdim=True) + 1e-5)
        encoded, length = self.titanet.encoder(audio_signal=mel, length=torch.full((len(mel),), mel.shape[2]))
        return functional.normalize(self.titanet.decoder(encoder_output=encoded, length=length)[1], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    decoded = Decoded().eval().requires_grad_(False)
    table = torch.randn(N_Q, BINS, DIM)
    proxies = {channels: Proxy(table, channels).eval().requires_grad_(False) for channels in (512, 128)}
    logits = torch.randn(args.batch, FRAMES, N_Q, BINS, requires_grad=True)
    target = functional.normalize(torch.randn(1, 192), dim=1)

    def back(embeddings: Tensor) -> None:
        logits.grad = None
        (1 - (embeddings * target).sum(1)).mean().backward()

    def forward_only() -> None:
        with torch.inference_mode():
            decoded(proxies[128].frames(logits.argmax(-1)))

    ways: dict[str, Callable[[], None]] = {
        "decoding and TitaNet, forward and backward": lambda: back(
            decoded(proxies[128].frames(logits, straight_through=True))
        ),
        "decoding and TitaNet, forward only": forward_only,
    }
    for channels, proxy in proxies.items():
        for form in ("soft", "straight-through"):

            def step(proxy: Proxy = proxy, hard: bool = form != "soft") -> None:
                back(proxy(logits, straight_through=hard))

            ways[f"proxy, {channels} channels, {form}, forward and backward"] = step
    took: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(args.repeats + 1):
        for way, run in ways.items():  # in turns: what else the machine does meets all of them
            began = time.perf_counter()
            run()
            if repeat:
                took[way].append(time.perf_counter() - began)
    middle = {way: float(np.median(times)) for way, times in took.items()}
    both, forward = (middle[way] for way in list(ways)[:2])
    print(f"batch {args.batch}, {FRAMES * 0.08:.1f} s, {args.threads} threads")
    for way, seconds in middle.items():
        print(
            f"{way}: {1000 * seconds:.1f} ms, {both / seconds:.0f}× and {forward / seconds:.1f}× less than the first two"
        )


if __name__ == "__main__":
    main()
