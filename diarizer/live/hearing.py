"""From pushes to frames on one clock: what a head reads, kept no longer than it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diarizer.live.sounds import Resampler, mono
from diarizer.live.streams import Stream
from featstore import FeatureSpec


class Hearing:
    """Sound through encoders, or frames that come from elsewhere; steps of one length, whatever the pushes are.

    Parameters
    ----------
    specs, ahead : of each feature, and how many frames of sound each frame waits for.
    streams : of the features that are made here of sound; the others are given.
    step, kept : frames of a step, and those that are read again after they were heard.
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        ahead: Mapping[str, int],
        streams: Mapping[str, Stream],
        step: int,
        kept: int,
    ) -> None:
        self.specs, self.ahead, self.streams, self.step, self.kept = specs, ahead, streams, step, kept
        self.step_s = next(iter(specs.values())).grid.step_s
        self.clear()

    def clear(self) -> None:
        """As new."""
        for stream in self.streams.values():
            stream.reset()
        self.rate_hz = 0
        self.resamplers: dict[str, Resampler] = {}
        self.waves: dict[str, NDArray[np.float32]] = {name: np.zeros(0, np.float32) for name in self.streams}
        self.frames: dict[str, NDArray[np.float32]] = {
            name: np.zeros((0, spec.dim), np.float32) for name, spec in self.specs.items()
        }
        self.first = dict.fromkeys(self.specs, 0)  # number of the first frame that is kept
        self.fed = self.heard = 0  # frames of sound that encoders, and the head, have had
        self.samples, self.before_s = 0, 0.0  # that came at this rate, and what came before them

    # ---- in

    def push(self, samples: ArrayLike, rate_hz: int) -> None:
        """See `Live.push`."""
        wave = mono(samples)
        if rate_hz != self.rate_hz:
            made = {n: Resampler(rate_hz, self.specs[n].sample_rate_hz) for n in self.streams}
            self.drain()
            self.before_s, self.samples = self.seconds, 0
            self.rate_hz, self.resamplers = rate_hz, made
        for name, resampler in self.resamplers.items():
            self.waves[name] = np.concatenate([self.waves[name], resampler.push(wave)])
        self.samples += len(wave)

    def drain(self) -> None:
        """What waits to be resampled waits no longer: the rate changes, or the stream ends."""
        for name, resampler in self.resamplers.items():
            self.waves[name] = np.concatenate([self.waves[name], resampler.finish()])

    def push_frames(self, frames: Mapping[str, NDArray[Any]]) -> None:
        """See `Live.push_frames`."""
        given = set(self.specs) - set(self.streams)
        if set(frames) != given or len({len(each) for each in frames.values()}) != 1:
            raise ValueError(
                f"expected as many frames of each of {', '.join(sorted(given)) or 'no feature'}, "
                f"found {', '.join(f'{name}: {len(each)}' for name, each in sorted(frames.items()))}"
            )
        for name, each in frames.items():
            if each.ndim != 2 or each.shape[1] != self.specs[name].dim or not np.isfinite(each).all():
                raise ValueError(f"{name}: expected finite frames (frames, {self.specs[name].dim}), found {each.shape}")
        for name, each in frames.items():
            self._keep(name, each)

    @property
    def seconds(self) -> float:
        """How long what came is."""
        if not self.streams:
            return min(self.count(name) for name in self.specs) * self.step_s
        return self.before_s + (self.samples / self.rate_hz if self.rate_hz else 0.0)

    def _keep(self, name: str, frames: NDArray[Any]) -> None:
        """As a store would have them."""
        kind = np.dtype(self.specs[name].dtype)
        self.frames[name] = np.concatenate([self.frames[name], frames.astype(kind).astype(np.float32)])

    # ---- the clock

    def steps(self) -> Iterator[int]:
        """Frames heard after each step for which there is enough; what no step reads again is forgotten."""
        while self._feed() and self._there(self.heard + self.step):
            self.heard += self.step
            yield self.heard
            for name in self.specs:
                self._forget(name, self.heard - self.kept)

    def _feed(self) -> bool:
        """Give encoders the sound of the next step; whether they have had it."""
        upto = self.heard + self.step
        sizes = {n: round(self.step * self.step_s * self.specs[n].sample_rate_hz) for n in self.streams}
        if self.fed < upto and self.streams:
            if any(len(self.waves[name]) < samples for name, samples in sizes.items()):
                return False
            for name, stream in self.streams.items():
                wave, self.waves[name] = self.waves[name][: sizes[name]], self.waves[name][sizes[name] :]
                self._keep(name, stream.feed(wave))
            self.fed = upto
        return True

    def _there(self, upto: int) -> bool:
        return all(self.count(n) >= upto - (self.ahead[n] if n in self.streams else 0) for n in self.specs)

    def finish(self) -> None:
        """No more will come: what is left of sound becomes frames."""
        for name, stream in self.streams.items():
            wave, self.waves[name] = self.waves[name], self.waves[name][:0]
            if len(wave) or self.fed:
                self._keep(name, stream.feed(wave, last=True))
        self.heard = max(self.heard, min(self.count(name) for name in self.specs))

    # ---- out

    def count(self, name: str) -> int:
        """Frames that there are of a feature, from the first on."""
        return self.first[name] + len(self.frames[name])

    def limits(self, last: bool) -> dict[str, int]:
        """Frames of each feature that may be read after a step; the `last` reads all."""
        return {n: self.count(n) if last else min(self.count(n), self.heard - self.ahead[n]) for n in self.specs}

    def read(self, names: Sequence[str], start: int, stop: int, limits: Mapping[str, int]) -> NDArray[np.float32]:
        """Frames of features side by side; of one that comes late, its last one in place of those that lack."""
        parts = []
        for name in names:
            index = np.arange(start, stop).clip(max=limits[name] - 1) - self.first[name]
            assert limits[name] <= 0 or (index >= 0).all()  # `kept` says what is read
            there = self.frames[name][index] if limits[name] > 0 else np.zeros((len(index), self.specs[name].dim))
            parts.append(there.astype(np.float32))
        return np.concatenate(parts, axis=1)

    def _forget(self, name: str, before: int) -> None:
        if (drop := min(before - self.first[name], len(self.frames[name]) - 1)) > 0:
            self.frames[name], self.first[name] = self.frames[name][drop:].copy(), self.first[name] + drop

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What `restore` takes: for JSON, and arrays."""
        numbers = {
            "rate_hz": self.rate_hz,
            "fed": self.fed,
            "heard": self.heard,
            "samples": self.samples,
            "before_s": self.before_s,
            "first": self.first,
        }
        arrays: dict[str, NDArray[Any]] = {f"frames/{name}": frames for name, frames in self.frames.items()}
        for name, stream in self.streams.items():
            arrays[f"waves/{name}"] = self.waves[name]
            arrays |= {f"stream/{name}/{key}": value for key, value in stream.state().items()}
        for name, resampler in self.resamplers.items():
            arrays |= {f"resampler/{name}/{key}": value for key, value in resampler.state().items()}
        return numbers, arrays

    def restore(self, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        self.clear()
        for name in ("rate_hz", "fed", "heard", "samples", "before_s", "first"):
            setattr(self, name, numbers[name])
        self.frames = {name: arrays[f"frames/{name}"] for name in self.specs}
        for name, stream in self.streams.items():
            self.waves[name] = arrays[f"waves/{name}"]
            stream.restore(within(arrays, f"stream/{name}/"))
            if self.rate_hz:
                self.resamplers[name] = Resampler(self.rate_hz, self.specs[name].sample_rate_hz)
                self.resamplers[name].restore(within(arrays, f"resampler/{name}/"))


def within(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Arrays whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
