"""Train mimi-nano's quantiser: residual k-means on the latents of what mimi-nano was trained on.

``python -m data_manifests.nano.train_mimi_quantizer --speech DIR --weights FILE``; it takes a few minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from data_manifests.nano.data import load_voices
from data_manifests.nano.training import export
from featstore.extractors.mimi import DIM, SAMPLE_RATE_HZ, MimiExtractor

#: As in Mimi one book (`rvq_first`) stands beside the residual ones (`rvq_rest`); both hear the same latent.
CONFIG = {"dimension": 64, "n_q": 8, "bins": 256, "input_dimension": DIM, "output_dimension": DIM}
#: Dimensions of the first book: those of most variance. The rest's are the next 64, so that the sum of both counts none twice.
FIRST = 8


def latents(speech: Path, *, espeak: bool) -> NDArray[np.float32]:
    """Latents of every training voice at its own speed, (frames, 512)."""
    extractor = MimiExtractor("demo", device="cpu", precision="float32")
    voices = [v for v in load_voices(speech, SAMPLE_RATE_HZ, speeds=(1.0,), espeak=espeak) if v.split == "train"]
    return np.concatenate([extractor.extract([voice.samples.astype(np.float32) / 32768])[0] for voice in voices])


def books(x: NDArray[np.float32], count: int, bins: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`count` books of residual k-means, (count, bins, dim) as float16 holds them, and what they leave of `x`."""
    found = []
    for book in range(count):
        means = KMeans(bins, n_init=1, max_iter=30, random_state=seed + book).fit(x).cluster_centers_
        means = means.astype(np.float16).astype(np.float32)
        nearest = torch.cdist(torch.from_numpy(x), torch.from_numpy(means)).argmin(1).numpy()
        x = x - means[nearest]
        found.append(means)
    return np.stack(found), x


def fit(x: NDArray[np.float32], seed: int) -> tuple[dict[str, torch.Tensor], float]:
    """moshi's tensors of a quantiser of latents (frames, 512), and the share of their variance that it keeps."""
    _, directions = np.linalg.eigh(np.cov(x.T, dtype=np.float64))
    directions = directions[:, ::-1].T.astype(np.float16).astype(np.float32)  # rows, of most variance first
    dimension, bins, n_q = CONFIG["dimension"], CONFIG["bins"], CONFIG["n_q"]
    state, left = {}, x.copy()
    parts = {"rvq_first": (directions[:FIRST], 1), "rvq_rest": (directions[FIRST : FIRST + dimension], n_q - 1)}
    for name, (rows, count) in parts.items():
        projection = np.zeros((dimension, DIM), np.float32)
        projection[: len(rows)] = rows
        inside = x @ projection.T
        means, rest = books(inside, count, bins, seed)
        left -= (inside - rest) @ projection
        state[f"{name}.input_proj.weight"] = torch.from_numpy(projection)[..., None]
        state[f"{name}.output_proj.weight"] = torch.from_numpy(projection.T.copy())[..., None]
        for book, centres in enumerate(means):
            inner = f"{name}.vq.layers.{book}._codebook"
            state[f"{inner}.embedding_sum"] = torch.from_numpy(centres)
            state[f"{inner}.cluster_usage"] = torch.ones(bins)
            state[f"{inner}._initialized"] = torch.ones(1)
    return {f"quantizer.{k}": v for k, v in state.items()}, 1 - float(left.var(0).sum() / x.var(0).sum())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of LibriSpeech mini (manifest.jsonl)")
    parser.add_argument("--weights", type=Path, default=Path("mimi-nano-quantizer.safetensors"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--espeak", type=int, choices=(0, 1), default=1, help="add synthetic voices")
    args = parser.parse_args(arguments)
    x = latents(args.speech, espeak=bool(args.espeak))
    state, kept = fit(x, args.seed)
    export(state, {"quantizer": CONFIG}, args.weights, f"residual k-means of {len(x)} latents")
    print(f"{args.weights}: {len(x)} latents, {kept:.1%} of their variance kept")


if __name__ == "__main__":
    main()
