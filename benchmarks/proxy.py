"""What a speaker loss costs a step of training: through the proxy, or by decoding and a speaker model.

    python benchmarks/proxy_step.py [--repeats 5] [--threads 1]

Both sides on the same cores in one run, untrained networks of the published sizes, 3 s of eight books. The proxy's side
goes from logits (2048 bins) to the gradient on them; the other one only forward, codes → Mimi's decoder → waveform →
TitaNet-Large, for its gradient ends at the codes anyway.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import soxr
import torch

from featstore.extractors.mimi import MIMI_FULL, build_mimi, uncompiled
from featstore.extractors.titanet_nemo import TITANET_FULL, build_titanet
from trainers.proxy import Proxy

FRAMES, N_Q, BINS, DIM = 38, 8, 2048, 512


def median_s(step: Callable[[], object], repeats: int) -> float:
    step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    mimi, titanet = build_mimi(MIMI_FULL).eval(), build_titanet(TITANET_FULL).eval()
    mimi.set_num_codebooks(N_Q)
    codes = torch.randint(BINS, (1, N_Q, FRAMES))

    def decoded() -> torch.Tensor:
        with torch.inference_mode(), uncompiled():
            wave = soxr.resample(mimi.decode(codes)[0, 0].numpy(), 24000, 16000)
            signal = torch.from_numpy(wave)[None]
            embedding: torch.Tensor = titanet(input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]]))[
                1
            ]
            return embedding

    target = torch.nn.functional.normalize(torch.randn(1, 192), dim=1)
    slow_s = median_s(decoded, args.repeats)
    print(f"decoding and TitaNet, forward: {1000 * slow_s:.0f} ms for {FRAMES * 0.08:.1f} s ({args.threads} threads)")
    for channels in (512, 128):
        proxy = Proxy(torch.randn(N_Q, BINS, DIM), channels).eval().requires_grad_(False)
        for straight_through in (False, True):
            logits = torch.randn(1, FRAMES, N_Q, BINS, requires_grad=True)

            def step(proxy: Proxy = proxy, logits: torch.Tensor = logits, hard: bool = straight_through) -> None:
                logits.grad = None
                (1 - (proxy(logits, straight_through=hard) * target).sum()).backward()

            fast_s = median_s(step, args.repeats)
            form = "straight-through" if straight_through else "soft"
            print(
                f"proxy, {channels} channels, {form}, forward and backward: {1000 * fast_s:.1f} ms, {slow_s / fast_s:.0f}× less"
            )


if __name__ == "__main__":
    main()
