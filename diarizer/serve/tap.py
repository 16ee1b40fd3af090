"""A head on somebody else's Mimi: what it computes anyway is heard, and nothing of it is changed."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer
    from diarizer.live import Live, Update

FEATURE, RATE_HZ = "mimi", 24_000
#: Frames that may wait for the head, a minute; of what comes then, turns are lost but not the clock.
MOST_WAITING = 750
logger = logging.getLogger(__name__)
#: New updates, seconds heard of this conversation, and whether it has just begun.
Told = Callable[["list[Update]", float, bool], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Heard:
    """What one call of ``encode`` gave: a piece of the clock.

    Attributes
    ----------
    first : number of its first frame since the conversation began.
    frames : (1, 512, frames), on the device where it was made.
    audio : (1, 1, samples), where the run hears more than Mimi's frames.
    event : when `frames` is there, on a GPU.
    """

    first: int
    frames: torch.Tensor
    audio: torch.Tensor | None
    event: Any


class Tap:
    """What `attach` makes: hears a Mimi until `detach`.

    Parameters
    ----------
    told : gets what is new, in a thread of the tap's own.
    gated : hear only between `begin` and `end`; otherwise everything, and each reset begins anew.

    Attributes
    ----------
    live : the engine; it works in the tap's thread.
    failures : what went wrong and was survived: frames that could not be heard, steps that failed.
    """

    def __init__(self, mimi: Any, live: Live, told: Told, *, audio: bool, gated: bool = False) -> None:
        self.live, self.failures = live, 0
        self._mimi, self._told, self._wants_audio = mimi, told, audio
        self._queue: SimpleQueue[Heard | str | Callable[[], None]] = SimpleQueue()
        self._hearing, self._gated = not gated, gated
        self._count = self._since_reset = 0
        self._latest: torch.Tensor | None = None
        self._frame_s = float(1 / mimi.frame_rate)
        # What the thread knows:
        self._next = self._offset = 0
        self._broken = self._begun = False
        # On this object alone: its class, and other Mimis, stay as they are.
        self._hook = mimi.downsample.register_forward_hook(self._frame)
        self._reset = mimi.reset_streaming
        mimi.reset_streaming = self._on_reset
        if audio:
            self._encode = mimi.encode
            mimi.encode = self._on_encode
        self._thread = threading.Thread(target=self._run, name="whowhen-head", daemon=True)
        self._thread.start()

    # ---- in the program's own thread: quick, and nothing may be raised

    def _frame(self, module: Any, args: Any, output: torch.Tensor) -> None:
        try:
            if self._hearing:
                if self._wants_audio:
                    self._latest = output
                else:
                    self._put(output, None)
        except Exception:
            self.failures += 1

    def _on_encode(self, x: torch.Tensor, *args: Any, **settings: Any) -> Any:
        codes = self._encode(x, *args, **settings)
        try:
            frames, self._latest = self._latest, None
            if self._hearing and frames is not None:
                self._put(frames, x)
        except Exception:
            self.failures += 1
        return codes

    def _put(self, frames: torch.Tensor, audio: torch.Tensor | None) -> None:
        first, self._count = self._count, self._count + frames.shape[-1]
        self._since_reset += frames.shape[-1]
        if self._queue.qsize() > MOST_WAITING:
            return
        event = None
        if frames.is_cuda:  # nothing waits here: the thread does, for this point of the stream
            event = torch.cuda.Event()
            event.record()
            frames, audio = frames.detach(), None if audio is None else audio.detach()
        else:
            frames, audio = frames.detach().clone(), None if audio is None else audio.detach().clone()
        self._queue.put(Heard(first, frames, audio, event))

    def _on_reset(self, *args: Any, **settings: Any) -> Any:
        done = self._reset(*args, **settings)
        try:
            # Moshi's server resets after the first frame: that frame is heard no more, but its time has passed.
            if self._hearing and self._since_reset:
                self._queue.put("skipped" if self._count == self._since_reset == 1 else "new")
                self._count = self._count if self._count == self._since_reset == 1 else 0
            self._since_reset = 0
        except Exception:
            self.failures += 1
        return done

    def begin(self) -> None:
        """A conversation begins: what was heard before was none."""
        self._count = self._since_reset = 0
        self._hearing = True
        self._queue.put("new")

    def end(self) -> None:
        """The conversation is over: open turns are closed."""
        self._hearing = not self._gated
        self._queue.put("end")

    def rename(self, speaker: str, name: str, done: Callable[[Exception | None], None]) -> None:
        """Call a voice by a name, in the thread's next pause; `done` is called there, with what `Live.rename` raised."""

        def work() -> None:
            try:
                self.live.rename(speaker, name)
            except ValueError as error:
                done(error)
            else:
                done(None)

        self._queue.put(work)

    def detach(self) -> None:
        """Leave the Mimi as it was, and end."""
        self._hook.remove()
        del self._mimi.reset_streaming
        if self._wants_audio:
            del self._mimi.encode
        self._queue.put("end")
        self._queue.put("stop")
        self._thread.join(60)

    # ---- in the thread

    def _run(self) -> None:
        while (item := self._queue.get()) != "stop":
            try:
                with torch.inference_mode():
                    self._take(item)
            except Exception:
                self.failures += 1
                self._broken = True  # until the next conversation
                logger.exception("the head failed; Mimi's own program is not touched, the next conversation is heard")

    def _take(self, item: Heard | str | Callable[[], None]) -> None:
        if callable(item):
            item()
        elif isinstance(item, Heard):
            if not self._broken:
                if item.first != self._next:  # too much waited, and some was not kept
                    logger.warning(
                        "%.1f s were not heard: the head is too slow", (item.first - self._next) * self._frame_s
                    )
                    self._close()
                    self._start(item.first)
                self._hear(item)
        elif item == "skipped":
            self._start(self._next)
        else:
            if not self._broken:
                self._close()
            self._broken = False
            self._start(0)
            if item == "new":
                self._told([], 0.0, True)

    def _start(self, frame: int) -> None:
        self.live.reset()
        self._next = self._offset = frame
        self._begun = False

    def _close(self) -> None:
        if self._begun:
            self._tell(self.live.finalize())
        self._begun = False

    def _hear(self, item: Heard) -> None:
        stream = torch.cuda.Stream(item.frames.device) if item.event is not None else None
        if stream is not None:
            stream.wait_event(item.event)
        with torch.cuda.stream(stream) if stream is not None else torch.no_grad():
            frames = item.frames[0].T.float().cpu().numpy()
            audio = None if item.audio is None else item.audio[0, 0].float().cpu().numpy()
        self._begun, self._next = True, item.first + len(frames)
        updates = self.live.push_frames({FEATURE: np.ascontiguousarray(frames)})
        if audio is not None:
            updates += self.live.push(audio, RATE_HZ)
        self._tell(updates)

    def _tell(self, updates: list[Update]) -> None:
        moved = [_later(update, self._offset * self._frame_s) for update in updates]
        self._told(moved, self._next * self._frame_s, False)


def _later(update: Update, by_s: float) -> Update:
    """The same, on a clock that began `by_s` earlier."""
    if not by_s:
        return update
    moved = [
        tuple(
            dataclasses.replace(turn, start_s=round(turn.start_s + by_s, 6), end_s=round(turn.end_s + by_s, 6))
            for turn in turns
        )
        for turns in (update.final, update.partial)
    ]
    return dataclasses.replace(update, time_s=round(update.time_s + by_s, 6), final=moved[0], partial=moved[1])


def attach(
    mimi: Any,
    made: Diarizer,
    told: Told,
    *,
    latency_s: float | None = None,
    gated: bool = False,
) -> Tap:
    """Hear a Mimi that runs anyway; see `diarizer.attach`.

    Raises
    ------
    ValueError : the run does not hear Mimi's frames, or cannot be used live; no Mimi, or one whose frames have another
        size or rate.
    """
    if FEATURE not in made.run.features:
        raise ValueError(f"run {made.run.path.name} hears {', '.join(made.run.features)}, not {FEATURE}'s frames")
    for name in ("downsample", "encode", "reset_streaming", "frame_rate", "dimension"):
        if not hasattr(mimi, name):
            raise ValueError(f"{type(mimi).__name__} is no Mimi: it has no {name}")
    spec = made.run.features[FEATURE]
    if (spec.dim, spec.grid.step_s) != (mimi.dimension, 1 / mimi.frame_rate):
        raise ValueError(
            f"the run hears frames of {spec.dim} numbers every {spec.grid.step_s} s, this Mimi makes "
            f"{mimi.dimension} every {1 / mimi.frame_rate} s"
        )
    others = set(made.run.features) - {FEATURE}
    with torch.random.fork_rng():  # networks begin as random numbers; the program's own are drawn as before
        live = made.live(given={FEATURE: 0}) if latency_s is None else made.live(latency_s, given={FEATURE: 0})
    return Tap(mimi, live, told, audio=bool(others), gated=gated)
