"""Adapter and fusion on whole recordings: how they hear one, what is chosen on dev, how test comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from evaluation.frames import decode, frames_to_turns
from evaluation.runs import RESULT
from evaluation.turns import Turns
from featstore import FrameGrid, Store
from trainers.cascade.choosing import with_those_beside
from trainers.cascade.clusters import ANY, Limits, pieces_of, unit
from trainers.cascade.inputs import Read, read
from trainers.cascade.measuring import Truth, summed
from trainers.checkpoint import load_best
from trainers.diarization.config import DiarizationConfig, FrozenConfig
from trainers.diarization.follow import Follower, Following, passes
from trainers.diarization.models import Adapter, adapter_sizes
from trainers.diarization.sessions import Session
from trainers.diarization.stitch import Heard, join, single_of, sound_of, starts_of, stitch
from trainers.runs import Run
from trainers.scale import OneScale, Scale

#: Windows begin so many times in the length of one.
OVERLAPS = 2
_BATCH = 16
PIECE_S, EDGE_S = 0.64, 0.24  # as the cascade's, see its settings
_APART = tuple(round(0.05 * k, 2) for k in range(2, 21))
#: Distances, what channels count there: by sound, mostly; and, of features that do not tell voices apart, by channel.
_FOLLOWED = (*((apart, 0.25) for apart in (0.3, 0.4, 0.5, 0.6, 0.7)), (0.5, 1.0))
_SHARES = (0.02, 0.05)
_AS_GOOD = 1.1  # times the least DER


@dataclass(frozen=True)
class Stitching:
    """What dev decides.

    Attributes
    ----------
    who : features whose frames say who, joined by ``+``.
    apart : cosine distance at which clusters are two voices.
    min_share : of the frames alone; a smaller cluster is no voice.
    threshold, median : of activities, as in `evaluation.frames.decode`.
    """

    who: str
    apart: float = 0.5
    min_share: float = 0.02
    threshold: float = 0.5
    median: int = 5


@dataclass(frozen=True, eq=False)
class WholeHead:
    """A trained adapter or fusion that answers for whole recordings."""

    model: nn.Module
    config: DiarizationConfig
    grid: FrameGrid
    dims: dict[str, int]
    device: torch.device

    @property
    def length(self) -> int:
        """Frames of a window."""
        return max(1, round(self.config.crop_s / self.grid.step_s))

    def hear(self, read: Read, num_frames: int, who: str) -> Heard:
        """What the head hears in overlapping windows; `who` is the feature that says who."""
        return self.hear_by(read, num_frames, (who,))[who]

    def hear_by(self, read: Read, num_frames: int, whos: Sequence[str]) -> dict[str, Heard]:
        """`hear` by each of several features that may say who: what the head says is the same, and asked for once."""
        starts = starts_of(num_frames, self.length, max(1, self.length // OVERLAPS))
        activity = np.zeros((len(starts), self.length, self.config.speakers), np.float32)
        alone = np.zeros((len(starts), self.config.speakers), np.int64)
        columns = {who: self.columns(who) for who in whos}
        vectors: dict[str, list[NDArray[np.float32]]] = {who: [] for who in whos}
        sounds = {who: np.zeros((num_frames, of.stop - of.start), np.float32) for who, of in columns.items()}
        for first in range(0, len(starts), _BATCH):
            here = starts[first : first + _BATCH].tolist()
            frames = np.zeros((len(here), self.length, sum(self.dims.values())), np.float32)
            real = min(self.length, num_frames)
            for row, start in zip(frames, here, strict=True):
                row[:real] = read(self.config.features, start, start + real)
            found = activities(self.model, frames, real, self.device)
            activity[first : first + len(here), :real] = found[:, :real]
            scaled = self.scaled(frames)[:, :real]
            for who, of in columns.items():
                for k, window in enumerate(unit(scaled[:, :, of]), first):
                    sounds[who][starts[k] : starts[k] + real] = window
                    told, alone[k] = sound_of(activity[k, :real], window)
                    vectors[who].append(told)
        single = single_of(starts, activity, num_frames)
        sizes = max(1, round(PIECE_S / self.grid.step_s)), round(EDGE_S / self.grid.step_s)
        return {
            who: Heard(starts, activity, np.stack(vectors[who]), alone, num_frames, pieces_of(heard, single, *sizes))
            for who, heard in sounds.items()
        }

    def active(
        self, heard: Heard, how: Stitching, limits: Limits = ANY
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.int64]]:
        """(frames, voices) who is active, how active, and which voice each window's channels are."""
        voices = stitch(heard, how.apart, how.min_share, limits)
        activity = join(heard, voices)
        return decode(activity, how.threshold, how.median), activity, voices

    def follower(self, how: Following) -> Follower:
        """A head with a cache at the start of a recording."""
        assert isinstance(self.config, FrozenConfig)  # no other has a cache
        return Follower(self.model, self.config, self.grid, self.device, self.sound(how.who), how.apart, how.said)

    def sound(self, who: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """What frames (…, dim) sound like by a feature, of length 1."""
        columns = self.columns(who)
        return lambda frames: unit(self.scaled(frames)[..., columns])

    def turns(self, active: NDArray[np.bool_]) -> Turns:
        return frames_to_turns(active, self.grid, [f"voice{k}" for k in range(active.shape[1])])

    def columns(self, who: str) -> slice:
        """Where a feature lies in the frames; all of them, if it is none of theirs."""
        begin = 0
        for name, dim in self.dims.items():
            if name == who:
                return slice(begin, begin + dim)
            begin += dim
        return slice(0, begin)

    def scaled(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames (…, dim) on the head's scale."""
        scale = cast(OneScale, self.model.scale)
        return Scale(scale.mean.cpu().numpy(), scale.size.cpu().numpy())(frames)


@torch.inference_mode()
def activities(model: nn.Module, frames: NDArray[np.float32], real: int, device: torch.device) -> NDArray[np.float32]:
    """What a head says of windows: (windows, frames, channels) 0 to 1 of frames (windows, frames, dim) as a store has them.

    Parameters
    ----------
    real : frames of each window; those behind are padding.
    """
    model.eval()
    mask = None
    if real < frames.shape[1]:
        mask = torch.arange(frames.shape[1], device=device).expand(len(frames), -1) < real
    found: NDArray[np.float32] = model(torch.from_numpy(frames).to(device), mask).float().sigmoid().cpu().numpy()
    return found


def load_head(run: Run[Any], device: torch.device) -> WholeHead:
    """The best weights of a run of the kind adapter or fusion.

    Raises
    ------
    RunError : missing or damaged.
    """
    config = run.config
    dims = {name: run.features[name].dim for name in config.features}
    model = Adapter(sum(dims.values()), **adapter_sizes(config))
    load_best(run, model)
    return WholeHead(model.to(device), config, run.features[config.features[0]].grid, dims, device)


def stitching_of(run: Run[Any]) -> Stitching:
    """What dev decided for this run; of a run that was fitted before there was anything to decide, the defaults."""
    try:
        chosen = run.read_json(RESULT)["stitching"]
        return Stitching(**{key: chosen[key] for key in ("who", "apart", "min_share", "threshold", "median")})
    except (OSError, KeyError, ValueError):
        return Stitching(run.config.features[-1])


def measure_whole(
    head: WholeHead,
    store: Store,
    dev: Sequence[Session],
    test: Sequence[Session],
) -> dict[str, Any]:
    """Choose on dev, measure test.

    Returns
    -------
    What result.json holds: "whole", errors over all test sessions and by recording; "stitching" or, of a head with a
    cache, "following": what was chosen.
    """
    result: dict[str, Any]
    if head.config.cache:
        following, dev_der = choose_following(head, store, dev)
        result = {"following": asdict(following) | {"dev_der": dev_der}}
        turns = [
            head.turns(decode(twice, following.threshold, following.median))
            for _, twice in _followed(head, store, test, following)
        ]
    else:
        best, figures = choose(head, store, dev)
        result = {"stitching": asdict(best) | {"dev_der": figures["der"], "overlaps": OVERLAPS}}
        turns = [head.turns(head.active(_listen(head, store, s, (best.who,))[best.who], best)[0]) for s in test]
    errors = Truth(test, head.grid).score(turns)
    return {"whole": summed(errors).to_json() | {"recordings": {n: e.to_json() for n, e in errors.items()}}, **result}


def choose_following(head: WholeHead, store: Store, dev: Sequence[Session]) -> tuple[Following, float | None]:
    """Who says which voices are one, how far these are apart, and the decoding; and the DER on dev with these.

    Of least DER on dev gone through once and twice, the mean of both: so it is good live too, where there is no second time.
    """
    truth, config = Truth(dev, head.grid), head.config
    rows: list[tuple[float, float, Following]] = []
    for who in config.features:
        for apart, said in _FOLLOWED:
            found = _followed(head, store, dev, Following(who, apart, said=said))
            for median in config.medians:
                for threshold in config.thresholds:
                    once, twice = (
                        _number(truth.total([head.turns(decode(each, threshold, median)) for each in ones]).der)
                        for ones in zip(*found, strict=True)
                    )
                    rows.append((once + twice, twice, Following(who, apart, threshold, median, said)))
    _, der, best = min(rows, key=lambda row: row[0])
    return best, der if np.isfinite(der) else None


def _followed(
    head: WholeHead, store: Store, sessions: Sequence[Session], how: Following
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    follower = head.follower(how)
    return [
        passes(follower, lambda names, start, stop, id=s.id: read(store, names, id, start, stop), s.num_frames)  # type: ignore[misc]
        for s in sessions
    ]


def _listen(head: WholeHead, store: Store, session: Session, whos: Sequence[str]) -> dict[str, Heard]:
    return head.hear_by(
        lambda names, start, stop: read(store, names, session.id, start, stop), session.num_frames, whos
    )


def choose(head: WholeHead, store: Store, dev: Sequence[Session]) -> tuple[Stitching, dict[str, Any]]:
    """The stitching of low DER on dev: first who and where clusters end, then what decides on activity.

    Where clusters end is the middle of the valley: of the distances around the best whose DER is as good, give or take a
    tenth of it. A step too far joins two voices for good, a step too short splits one.
    """
    truth = Truth(dev, head.grid)
    config = head.config
    middle = config.thresholds[len(config.thresholds) // 2], config.medians[len(config.medians) // 2]
    listened = [_listen(head, store, session, config.features) for session in dev]
    heard_by = {who: [each[who] for each in listened] for who in config.features}
    rows: list[tuple[float, Stitching]] = []
    for who, heard in heard_by.items():
        for share in _SHARES:
            ders = np.array([_der(head, truth, heard, Stitching(who, apart, share, *middle)) for apart in _APART])
            smooth = with_those_beside(ders.tolist())
            rows.append((min(smooth), Stitching(who, _APART[_middle(ders, int(np.argmin(smooth)))], share)))
    how = min(rows, key=lambda row: row[0])[1]
    heard = heard_by[how.who]
    joined = [join(h, stitch(h, how.apart, how.min_share)) for h in heard]
    decoded = []
    for median in config.medians:
        for threshold in config.thresholds:
            turns = [head.turns(decode(activity, threshold, median)) for activity in joined]
            decoded.append(
                (_number(truth.total(turns).der), Stitching(how.who, how.apart, how.min_share, threshold, median))
            )
    der, best = min(decoded, key=lambda row: row[0])
    return best, {"der": der if np.isfinite(der) else None}


def _middle(ders: NDArray[np.float64], best: int) -> int:
    """The middle of the stretch around `best` that is as good as it."""
    good = ders <= ders[best] * _AS_GOOD
    first = best - int(np.argmin(np.append(good[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(good[best:], False))) - 1
    return (first + last + 1) // 2


def _der(head: WholeHead, truth: Truth, heard: Sequence[Heard], how: Stitching) -> float:
    return _number(truth.total([head.turns(head.active(each, how)[0]) for each in heard]).der)


def _number(der: float) -> float:
    return np.inf if np.isnan(der) else der
