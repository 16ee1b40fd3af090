"""Features as sound comes: every encoder gives each frame once, as it would come out of the whole recording.

Mimi streams. Other encoders hear the last seconds again with every step; how far they hear to both sides is known, or
is tried out on noise. A frame that looks ahead comes late.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diarizer.frames import AFTER_S, BEFORE_S
from featstore.extractors import Extractor

#: Frames that an encoder hears before and after one, where that is known. TitaNet: windows of 1.5 s about the frame.
REACHES = {"mimi": (0, 0), "titanet": (10, 10)}
# Length of the noise that an unknown encoder is tried on, and how much of it is cut off; frames.
_TRIED, _CUT = 200, 75
_SAME = 1e-3  # of a frame's length


class Stream(Protocol):
    """Sound in, frames out.

    Attributes
    ----------
    ahead : frames of sound that a frame waits for.
    """

    ahead: int

    def feed(self, wave: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """The next frames (frames, dim), of whole frames of sound; the `last` may end inside of one."""
        ...

    def reset(self) -> None:
        """As new."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """What `restore` takes."""
        ...

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        ...


def stream_of(name: str, encoder: Extractor, reach: tuple[int, int], step_frames: int) -> Stream:
    """The stream of an encoder that reaches so far (`reach_of`), for steps of so many frames."""
    if name == "mimi":
        from featstore.extractors.mimi import MimiExtractor

        if isinstance(encoder, MimiExtractor):
            return Streamed(encoder, step_frames)
    return Again(encoder, *reach)


class Streamed:
    """Mimi, which remembers what it heard."""

    ahead = 0

    def __init__(self, encoder: Any, step_frames: int) -> None:
        from featstore.extractors.mimi import FRAME_SAMPLES
        from featstore.extractors.mimi_stream import MimiStream

        self._mimi = MimiStream(encoder, step_frames)
        self._samples = step_frames * FRAME_SAMPLES
        self.reset, self.state, self.restore = self._mimi.reset, self._mimi.state, self._mimi.restore

    def feed(self, wave: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """See `Stream.feed`."""
        pieces = [wave[at : at + self._samples] for at in range(0, len(wave), self._samples)]
        return np.concatenate([np.zeros((0, 512), np.float32), *map(self._mimi.feed, pieces)])


class Again:
    """Any encoder: the last seconds again with every step."""

    def __init__(self, encoder: Extractor, before: int, ahead: int) -> None:
        spec = encoder.spec
        self.ahead, self._before, self._encoder = ahead, before, encoder
        self._samples = round(spec.grid.step_s * spec.sample_rate_hz)
        # Where every n-th frame is computed, pieces have to begin at one of these.
        self._unit = int(spec.settings.get("hop_frames", 1))
        self.reset()

    def reset(self) -> None:
        """See `Stream.reset`."""
        self._wave: NDArray[np.float32] = np.zeros(0, np.float32)
        self._first = self._given = 0

    def feed(self, wave: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """See `Stream.feed`."""
        self._wave = np.concatenate([self._wave, wave])
        heard = self._first + -(-len(self._wave) // self._samples)
        upto = heard if last else max(self._given, heard - self.ahead)
        if upto == self._given:
            return np.zeros((0, self._encoder.spec.dim), np.float32)
        found = self._encoder.extract([self._wave])[0][self._given - self._first : upto - self._first]
        self._given = upto
        first = max(0, upto - self._before) // self._unit * self._unit
        self._wave, self._first = self._wave[(first - self._first) * self._samples :], first
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Stream.state`."""
        return {"wave": self._wave, "at": np.array([self._first, self._given])}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """See `Stream.restore`."""
        self._wave = arrays["wave"]
        self._first, self._given = arrays["at"].tolist()


def reach_of(name: str, encoder: Extractor) -> tuple[int, int]:
    """Frames that an encoder hears before and after one: as known, or as 16 s of noise tell when they are cut off.

    An encoder that hears further than that gets what recordings' pieces have: 20 s before and 4 s after.
    """
    if name in REACHES and encoder.spec.settings.get("mode", "exact") == "exact":
        return REACHES[name]
    spec = encoder.spec
    samples = round(spec.grid.step_s * spec.sample_rate_hz)
    noise = (0.1 * np.random.default_rng(0).standard_normal(_TRIED * samples)).astype(np.float32)
    whole, later, sooner = (
        encoder.extract([each])[0] for each in (noise, noise[_CUT * samples :], noise[: -_CUT * samples])
    )
    before, ahead = _differs(later - whole[_CUT:], whole), _differs((sooner - whole[:-_CUT])[::-1], whole)
    most = len(later) - 1
    return (
        before if before < most else round(BEFORE_S / spec.grid.step_s),
        ahead if ahead < most else round(AFTER_S / spec.grid.step_s),
    )


def _differs(difference: NDArray[np.float32], whole: NDArray[np.float32]) -> int:
    """How many frames from the cut on are others."""
    far = np.linalg.norm(difference, axis=1) > _SAME * np.linalg.norm(whole, axis=1).mean()
    return int(np.flatnonzero(far)[-1]) + 1 if far.any() else 0
