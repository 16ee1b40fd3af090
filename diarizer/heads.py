"""What a run's head makes of frames: who is active when, by which voices, and how sure that is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diarizer.frames import Frames
from evaluation.frames import decode as decode_frames
from featstore import FrameGrid
from trainers.cascade.cascade import Cascade, Heard
from trainers.cascade.clusters import ANY, Limits, unit
from trainers.cascade.decoding import decode, smooth_counts
from trainers.cascade.inputs import finer
from trainers.diarization.follow import Following, alone_sums, follow, following_of
from trainers.diarization.stitch import voices_in
from trainers.diarization.whole import Stitching, WholeHead, load_head, stitching_of
from trainers.runs import Run, RunError

_AT_ONCE = 4096  # frames
# How fast certainty grows with what a turn's frames are nearer to its voice than to the next one.
_SURE = 20.0


class Told(NamedTuple):
    """What a head says of a recording.

    Attributes
    ----------
    active : (answers, voices) who speaks.
    sure : (answers, voices) 0 to 1, how sure each of these is.
    voices : (voices, dim) of length 1: what each sounds like.
    grid : where answers lie in time.
    notes : what must stand beside the answer.
    """

    active: NDArray[np.bool_]
    sure: NDArray[np.float32]
    voices: NDArray[np.float32]
    grid: FrameGrid
    notes: tuple[str, ...] = ()


class Head(Protocol):
    """A trained head.

    Attributes
    ----------
    features : that it hears.
    same : cosine above which two voices are one.
    """

    features: tuple[str, ...]
    same: float

    def tell(self, frames: Frames, limits: Limits) -> Told:
        """Who speaks when in a whole recording, one identity throughout."""
        ...

    def voices(self, frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
        """Voices heard alone: (voices, dim), the share of each, and how many seconds of one voice alone there are."""
        ...


class CascadeHead:
    """The cascade: counts say when, clusters say who."""

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.features = cascade.config.features
        self.same = 1 - cascade.choice.threshold

    def tell(self, frames: Frames, limits: Limits) -> Told:
        """See `Head.tell`."""
        cascade = self.cascade
        heard = cascade.hear(frames.read, frames.num_frames)
        voices = cascade.voices(heard, limits)
        evidence = cascade.beside(heard, voices)
        (active,) = decode([evidence], cascade.config.at_once, cascade.choice.decoding)
        sure = sureness(heard, evidence.cosines, active)
        return Told(active, sure, voices, finer(cascade.grid, cascade.config.substeps))

    def voices(self, frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
        """See `Head.voices`."""
        cascade = self.cascade
        heard = cascade.hear(frames.read, frames.num_frames)
        alone = smooth_counts(heard.counts, 3.0) == 1
        if not alone.any():
            return np.zeros((0, heard.frames.shape[1]), np.float32), np.zeros(0), 0.0
        voices = cascade.voices(heard)
        near = np.bincount((heard.pieces.vectors @ voices.T).argmax(1), heard.pieces.weights, len(voices))
        seconds = float(alone.sum()) * cascade.grid.step_s / cascade.config.substeps
        return voices, near / near.sum(), seconds


def sureness(heard: Heard, cosines: NDArray[np.float32], active: NDArray[np.bool_]) -> NDArray[np.float32]:
    """That so many speak, times that a voice is itself and not the likeliest of those that are silent."""
    many = active.sum(1)
    so_many = np.exp(heard.counts[np.arange(len(many)), many.clip(max=heard.counts.shape[1] - 1)])
    if active.shape[1] < 2:
        return so_many[:, None] * np.ones((1, active.shape[1]), np.float32)
    other = np.where(active, -1, cosines).max(1, keepdims=True)
    return so_many[:, None] / (1 + np.exp(-_SURE * (cosines - other)))


class StitchedHead:
    """Adapter and fusion: overlapping windows, whose channels are stitched to voices."""

    def __init__(self, head: WholeHead, how: Stitching) -> None:
        self.head, self.how = head, how
        self.features = head.config.features
        self.same = 1 - how.apart

    def tell(self, frames: Frames, limits: Limits) -> Told:
        """See `Head.tell`."""
        heard = self.head.hear(frames.read, frames.num_frames, self.how.who)
        active, activity, labels = self.head.active(heard, self.how, limits)
        return Told(active, activity, voices_in(heard, labels), self.head.grid)

    def voices(self, frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
        """See `Head.voices`."""
        heard = self.head.hear(frames.read, frames.num_frames, self.how.who)
        active, _, labels = self.head.active(heard, self.how)
        alone = active[active.sum(1) == 1]
        if not len(alone):
            return np.zeros((0, heard.vectors.shape[2]), np.float32), np.zeros(0), 0.0
        return voices_in(heard, labels), alone.mean(0), len(alone) * self.head.grid.step_s


class FollowedHead:
    """Adapter and fusion with a cache: a channel is a voice throughout. More voices, or as many as are asked for: stitched."""

    def __init__(self, head: WholeHead, how: Following) -> None:
        self.head, self.how = head, how
        self.stitched = StitchedHead(head, Stitching(how.who, how.apart, threshold=how.threshold, median=how.median))
        self.features, self.same = self.stitched.features, self.stitched.same

    def tell(self, frames: Frames, limits: Limits) -> Told:
        """See `Head.tell`."""
        channels = self.head.config.speakers
        if limits == ANY:
            stitched = self.stitched.tell(frames, limits)
            heard = int(stitched.active.any(0).sum())
            if heard > channels:
                return self._noted(stitched, f"and {heard} voices are heard:")
        active, activity = self._follow(frames)
        count = active.shape[1]
        if limits == ANY or limits.least <= count <= (limits.most or channels):
            return Told(active, activity, unit(self._sounds(frames, active)), self.head.grid)
        return self._noted(self.stitched.tell(frames, limits), f"and heard {count}: for as many as were asked for,")

    def _noted(self, stitched: Told, why: str) -> Told:
        note = (
            f"this run follows {self.head.config.speakers} speakers at most {why} windows were put together by how their voices "
            "sound, which tells people apart less well"
        )
        return stitched._replace(notes=(note,))

    def voices(self, frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
        """See `Head.voices`."""
        active, _ = self._follow(frames)
        alone = active[active.sum(1) == 1]
        shares = alone.mean(0) if len(alone) else np.zeros(active.shape[1])
        return unit(self._sounds(frames, active)), shares, len(alone) * self.head.grid.step_s

    def _follow(self, frames: Frames) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """(frames, voices) who is active, how active; of the channels that are anybody's."""
        activity = follow(self.head.follower(self.how), frames.read, frames.num_frames)
        active = decode_frames(activity, self.how.threshold, self.how.median)
        there = active.any(0)
        return active[:, there], activity[:, there]

    def _sounds(self, frames: Frames, active: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Sums of the frames in which each voice is alone, (voices, dim)."""
        sound = self.head.sound(self.how.who)
        sums: NDArray[Any] = np.zeros((active.shape[1], 1), np.float32)
        for first in range(0, len(active), _AT_ONCE):
            here = active[first : first + _AT_ONCE]
            read = frames.read(self.features, first, first + len(here))
            sums = sums + alone_sums(here, sound(read))
        return sums


def head_of(run: Run[Any], device: torch.device) -> Head:
    """The head of a run.

    Raises
    ------
    RunError : of a kind that does not say who spoke when in recordings; missing or damaged weights.
    """
    if run.config.kind == "cascade":
        return CascadeHead(Cascade.load(run, device))
    if run.config.kind in ("adapter", "fusion"):
        head = load_head(run, device)
        return FollowedHead(head, following_of(run)) if run.config.cache else StitchedHead(head, stitching_of(run))
    raise RunError(
        f"{run.path}: a run of kind {run.config.kind} does not say who spoke when in a recording; "
        "expected a cascade's, an adapter's or a fusion's"
    )
