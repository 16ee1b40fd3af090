"""What extraction costs: this pipeline, the reference procedure, and the ceiling the arithmetic sets.

    python benchmarks/extraction.py MANIFEST [--weights random:0:full] [--device auto] [--utterances 24]

The reference procedure takes one file at a time: moshi's encoder on the whole wave, and TitaNet windows of 1.5 s every
0.2 s, each written to a temporary WAV file and embedded from there by NeMo; frames go to a .npy a file. Ours computes a
window every 0.08 s (and with hop_frames=3 every 0.24 s, for a comparison of like with like). Times do not include
loading weights. The ceiling is the floating-point operations of both encoders per second of audio, counted by torch,
against what this device does in a large float32 matrix product.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from omegaconf import open_dict
from torch.utils.flop_counter import FlopCounterMode

from featstore import Utterance
from featstore.corpora import audio
from featstore.corpora.manifest import read_manifest
from featstore.extractors import Extractor, create, mimi, sources, titanet
from featstore.jobs.extract import extract


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--weights", default="random:0:full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--utterances", type=int, default=24)
    options = parser.parse_args()
    utterances = read_manifest(options.manifest)[: options.utterances]
    seconds = sum(u.duration_s for u in utterances)
    ours = {
        "mimi": create("mimi", weights=options.weights, device=options.device),
        "titanet, every 0.24 s": create("titanet", weights=options.weights, device=options.device, hop_frames=3),
        "titanet, every 0.08 s": create("titanet", weights=options.weights, device=options.device),
        "titanet, dense": create("titanet", weights=options.weights, device=options.device, mode="dense"),
    }
    device = torch.device(ours["mimi"].device)
    peak = matmul_flops(device)
    print(
        f"{len(utterances)} utterances, {seconds:.0f} s; {options.weights}; {device}, {peak / 1e9:.0f} GFLOP/s (float32)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, run in reference(options.weights, device).items():
            for utterance in utterances[:1]:  # once without the clock
                run(utterance, Path(folder))
            began = time.perf_counter()
            for utterance in utterances:
                run(utterance, Path(folder))
            wall = time.perf_counter() - began
            print(f"{'reference ' + name:<34}{seconds / wall:8.2f} × real time")
        for name, extractor in ours.items():
            extract(utterances[:1], extractor, Path(folder) / f"warm {name}", workers=1)
            result = extract(utterances, extractor, Path(folder) / name, workers=2)
            flops = flops_per_s(extractor)
            speed = seconds / result.wall_s
            busy = ", ".join(f"{stage} {share:.0%}" for stage, share in sorted(result.busy.items()))
            print(
                f"{name:<34}{speed:8.2f} × real time; {flops / 1e9:.2f} GFLOP a second of audio: ceiling "
                f"{peak / flops:.1f} ×, reached {speed * flops / peak:.0%}; {busy}"
            )


def reference(weights: str, device: torch.device) -> dict[str, object]:
    """The reference procedure's two encoders, a call a file."""
    source = sources.resolve(weights, file=mimi.WEIGHTS_FILE, demo="mimi-nano.safetensors", suffixes=(".safetensors",))
    encoder = mimi.load_mimi(source)[0].to(device)
    source = sources.resolve(
        weights, file=titanet.WEIGHTS_FILE, demo="titanet-nano.safetensors", suffixes=(".nemo", ".safetensors")
    )
    speaker = titanet.load_titanet(source)[0].to(device)
    with open_dict(speaker._cfg):  # a section of the published checkpoint that NeMo's get_embedding reads
        speaker._cfg.train_ds = {"sample_rate": 16000}

    def run_mimi(utterance: Utterance, folder: Path) -> None:
        wave = torch.from_numpy(audio.load(utterance, 24000)).to(device)
        with torch.no_grad():
            latent = encoder.encode_to_latent(wave[None, None], quantize=False)
        np.save(folder / "mimi.npy", latent[0].T.cpu().numpy())

    def run_titanet(utterance: Utterance, folder: Path) -> None:
        wave = audio.load(utterance, 16000)
        found = []
        for start in range(0, max(1, len(wave) - 24000 + 1), 3200):
            soundfile.write(folder / "window.wav", wave[start : start + 24000], 16000)
            found.append(speaker.get_embedding(str(folder / "window.wav"))[0].cpu().numpy())
        np.save(folder / "titanet.npy", np.stack(found))

    return {"mimi": run_mimi, "titanet, every 0.2 s": run_titanet}


def flops_per_s(extractor: Extractor, seconds: float = 12.0) -> float:
    """Floating-point operations of convolutions and matrix products for one second of audio."""
    wave = np.random.default_rng(0).normal(size=int(seconds * extractor.spec.sample_rate_hz)).astype(np.float32) / 10
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees this thread only
    with FlopCounterMode(display=False) as counter:
        extractor.extract([wave])
    torch.set_num_threads(threads)
    return counter.get_total_flops() / seconds


def matmul_flops(device: torch.device, size: int = 2048, repeats: int = 5) -> float:
    """Operations per second of a float32 matrix product, the best of several."""
    a = torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
