"""Anyone's proof on their own sound: sizes of pushes change nothing, another process goes on, frames are the recording's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from diarizer import load
from diarizer.live.engine import Live
from diarizer.live.sources import opened
from diarizer.live.streams import stream_of
from diarizer.live.turns import Update

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer

#: So much of a file is heard, and so many pushes of one sample each.
HEARD_S, ONES = 60.0, 2000
_MOST = 200_000
#: A frame of a stream differs from the recording's by less than this share of the frames' deviation.
ALIKE = 1e-3


#: What the other process runs; the folder comes behind it.
OTHER = "import sys; from diarizer.live.certificate import go_on; go_on(sys.argv[1])"


def certify(made: Diarizer, path: Path, latency_s: float) -> dict[str, Any]:
    """What holds of the first minute of a file.

    Returns
    -------
    "sizes", "process" : whether updates were the same, byte for byte; "frames" : by feature, the largest difference
    between a stream's frame and the recording's, as a share of the frames' deviation; "tap" : the same of Mimi as a
    running Moshi streams it; "holds" : all but the tap's.
    """
    samples, rate_hz = _first(path)
    live = made.live(latency_s)
    expected = _lines(pushed(live, samples, rate_hz, lambda: 1600))
    live.reset()
    draw = np.random.default_rng(0)
    sizes = iter([1] * ONES)
    found = _lines(pushed(live, samples, rate_hz, lambda: next(sizes, 0) or int(_MOST ** draw.uniform())))
    with tempfile.TemporaryDirectory() as folder:
        at = len(samples) // 2 + 1
        live.reset()
        before = _lines([u for k in range(0, at, 997) for u in live.push(samples[k : min(k + 997, at)], rate_hz)])
        (Path(folder) / "saved").write_bytes(live.save())
        np.save(Path(folder) / "rest.npy", samples[at:])
        facts = {"run": str(made.run.path), "weights": made.weights, "device": made.device}
        (Path(folder) / "facts.json").write_text(json.dumps(facts | {"rate_hz": rate_hz, "latency_s": latency_s}))
        ended = subprocess.run([sys.executable, "-c", OTHER, folder], capture_output=True, text=True)
        if ended.returncode:
            raise ValueError(f"the other process failed: {' '.join(ended.stderr.strip().splitlines()[-1:])}")
        after = (Path(folder) / "after.jsonl").read_text().splitlines()
    frames, tap = _frames(made, samples, rate_hz, live.timing.step)
    result = {
        "file": str(path),
        "heard_s": round(len(samples) / rate_hz, 3),
        "updates": len(expected),
        "sizes": found == expected,
        "process": before + after == expected,
        "frames": frames,
        "tap": tap,
    }
    return result | {
        "holds": result["sizes"] and result["process"] and all(value <= ALIKE for value in frames.values())
    }


def go_on(saved: str) -> None:
    """Go on from what `certify` saved in a folder, and write the updates beside it."""
    folder = Path(saved)
    facts = json.loads((folder / "facts.json").read_text())
    live = load(facts["run"], weights=facts["weights"], device=facts["device"]).live(facts["latency_s"])
    live.restore((folder / "saved").read_bytes())
    rest = np.load(folder / "rest.npy")  # noqa: TID251  # refuses pickles
    updates = live.push(rest, facts["rate_hz"]) + live.finalize()
    (folder / "after.jsonl").write_text("".join(line + "\n" for line in _lines(updates)))


def pushed(live: Live, samples: NDArray[np.float32], rate_hz: int, size: Callable[[], int]) -> list[Update]:
    """All updates of samples in pushes of these sizes."""
    return [u for part in _parts(samples, size) for u in live.push(part, rate_hz)] + live.finalize()


def _parts(samples: NDArray[np.float32], size: Callable[[], int]) -> Iterator[NDArray[np.float32]]:
    at = 0
    while at < len(samples):
        step = size()
        yield samples[at : at + step]
        at += step


def _lines(updates: list[Update]) -> list[str]:
    return [json.dumps(update.json()) for update in updates]


def _first(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        with opened(path) as file:
            samples = file.read(round(HEARD_S * file.samplerate), dtype="float32", always_2d=True).mean(1)
            rate_hz = file.samplerate
    except sf.SoundFileError as error:
        raise ValueError(f"{path}: cannot be heard: {error}") from None
    if len(samples) < rate_hz:
        raise ValueError(f"{path}: expected a second of sound or more, found {len(samples) / rate_hz:.2f} s")
    return samples.astype(np.float32), rate_hz


def _frames(
    made: Diarizer, samples: NDArray[np.float32], rate_hz: int, step_frames: int
) -> tuple[dict[str, float], dict[str, float]]:
    frames, tap = {}, {}
    for name, encoder in made.encoders.items():
        spec = encoder.spec
        wave = soxr.resample(samples, rate_hz, spec.sample_rate_hz, "HQ")
        whole = encoder.extract([wave])[0]
        stream = stream_of(name, encoder, made.reach(name), step_frames)
        size = round(step_frames * spec.grid.step_s * spec.sample_rate_hz)
        parts = [wave[at : at + size] for at in range(0, len(wave), size)]
        found = np.concatenate([stream.feed(part, part is parts[-1]) for part in parts])
        frames[name] = _apart(found, whole)
        if name == "mimi":
            from featstore.extractors.mimi_stream import MimiStream

            one = MimiStream(encoder, 1, widened=False)  # type: ignore[arg-type]
            size = size // step_frames
            tap[name] = _apart(
                np.concatenate([one.feed(wave[at : at + size]) for at in range(0, len(wave), size)]), whole
            )
    return frames, tap


def _apart(found: NDArray[np.float32], whole: NDArray[np.float32]) -> float:
    if found.shape != whole.shape:
        return float("inf")
    return float(np.abs(found - whole).max() / whole.std())
