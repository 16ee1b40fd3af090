"""A fitted cascade: frames of a whole recording in, who spoke when out; and how a run keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.frames import frames_to_turns
from evaluation.runs import MODEL
from evaluation.turns import Turns
from featstore import FrameGrid, Store
from trainers.cascade.clusters import ANY, Limits, Pieces, groupings, pieces_of, unit, voices_of, voices_within
from trainers.cascade.config import CascadeConfig
from trainers.cascade.counting import REACH, CountHead, predict
from trainers.cascade.decoding import Decoding, Evidence, decode, smooth_counts
from trainers.cascade.inputs import Read, finer, read
from trainers.diarization.sessions import Session
from trainers.runs import Run, RunError
from trainers.scale import Scale

#: Price of a change of the count where stretches with one speaker are looked for, before there are voices.
SINGLE_CHANGE = 3.0
# So long a voice is one however little of a long recording that is; of less than this share of it there are others' scraps.
_ENOUGH_S, _SCRAPS = 10.0, 0.02
# Frames of a recording that are heard at once: ten minutes, so that memory does not grow with a recording's length.
_PIECE = 7500


@dataclass(frozen=True)
class Choice:
    """What dev decides: how pieces are grouped, where that ends, and what weighs how much in decoding."""

    clustering: str = "average"
    threshold: float = 0.5
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True, eq=False)
class Heard:
    """What both parts heard in a recording, before anything is chosen.

    Attributes
    ----------
    counts : (answers, classes) log-probabilities of 0, 1, 2, … speakers.
    frames : (frames, dim) of the feature that says who, on one scale, of length 1.
    pieces : where one speaker is heard.
    """

    counts: NDArray[np.float32]
    frames: NDArray[np.float32]
    pieces: Pieces


@dataclass(frozen=True, eq=False)
class Cascade:
    """The parts of a fitted cascade.

    Attributes
    ----------
    grid : of the frames that it takes.
    """

    config: CascadeConfig
    grid: FrameGrid
    head: CountHead
    when: Scale
    who: Scale
    device: torch.device
    choice: Choice = field(default_factory=Choice)

    def counts(self, when: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-probabilities (frames · substeps, classes) of frames (frames, dim) as the store has them."""
        return predict(self.head, self.when(when), self.device)

    def heard(self, counts: NDArray[np.float32], who: NDArray[np.float32]) -> Heard:
        """What there is to decide on.

        Parameters
        ----------
        counts : see `counts`, or the truth in their place.
        who : (frames, dim) as the store has them.
        """
        return self._heard(counts, unit(self.who(who)))

    def hear(self, read: Read, num_frames: int) -> Heard:
        """`heard` of a recording of any length, of which `read` gives the frames as a store would have them."""
        counts, who = [], np.empty((num_frames, len(self.who.mean)), np.float32)
        for start in range(0, num_frames, _PIECE):
            stop = min(start + _PIECE, num_frames)
            first, last = max(0, start - REACH), min(stop + REACH, num_frames)
            found = self.counts(read(self.config.when_features, first, last))
            counts.append(found[(start - first) * self.config.substeps :][: (stop - start) * self.config.substeps])
            who[start:stop] = unit(self.who(read(self.config.who_features, start, stop)))
        return self._heard(np.concatenate(counts), who)

    def _heard(self, counts: NDArray[np.float32], frames: NDArray[np.float32]) -> Heard:
        config, step_s = self.config, self.grid.step_s
        many = smooth_counts(counts, SINGLE_CHANGE).reshape(-1, config.substeps)
        single = (many == 1).all(1)
        if not single.any():  # nobody speaks alone: voices out of what there is
            single = (many > 0).any(1)
        sizes = max(1, round(config.piece_s / step_s)), round(config.edge_s / step_s)
        return Heard(counts, frames, pieces_of(frames, single, *sizes))

    def evidence(self, heard: Heard, labels: NDArray[np.int64]) -> Evidence:
        """What is decoded, with pieces in these clusters."""
        return self.beside(heard, voices_of(heard.pieces, labels, self._min_share(heard.pieces)))

    def voices(self, heard: Heard, limits: Limits = ANY) -> NDArray[np.float32]:
        """The voices of a recording, (voices, dim) of length 1, grouped as chosen; as many as `limits` allow."""
        choice = self.choice
        if limits == ANY:
            (labels,) = groupings(heard.pieces, choice.clustering, (choice.threshold,), self.config.seed).values()
            return voices_of(heard.pieces, labels, self._min_share(heard.pieces))
        how = (choice.clustering, choice.threshold, self._min_share(heard.pieces))
        return voices_within(heard.pieces, *how, limits, self.config.seed)

    def _min_share(self, pieces: Pieces) -> float:
        """The share of the time below which a cluster is no voice: as set, but nobody with `_ENOUGH_S` is lost by it."""
        enough = _ENOUGH_S / max(float(pieces.weights.sum()) * self.grid.step_s, _ENOUGH_S)
        return min(self.config.min_share, max(enough, _SCRAPS))

    def beside(self, heard: Heard, voices: NDArray[np.float32]) -> Evidence:
        """What is decoded, with these voices."""
        cosines = np.repeat(heard.frames @ voices.T, self.config.substeps, axis=0)
        return Evidence(heard.counts, cosines, voices @ voices.T)

    def found(self, heard: Heard, choice: Choice) -> Evidence:
        """`evidence` with the pieces grouped as chosen."""
        labels = groupings(heard.pieces, choice.clustering, (choice.threshold,), self.config.seed)
        return self.evidence(heard, labels[choice.threshold])

    def diarize(self, recordings: Sequence[Heard]) -> list[Turns]:
        """Who spoke when in whole recordings: ``voice0``, ``voice1``, … from the first frame to the last."""
        found = [self.found(heard, self.choice) for heard in recordings]
        return self.turns(decode(found, self.config.at_once, self.choice.decoding))

    def turns(self, active: Sequence[NDArray[np.bool_]]) -> list[Turns]:
        """Turns of who is active, (answers, voices) a recording."""
        grid = finer(self.grid, self.config.substeps)
        return [frames_to_turns(each, grid, [f"voice{k}" for k in range(each.shape[1])]) for each in active]

    # ---- in and out

    def listen(self, store: Store, session: Session) -> Heard:
        """`heard` of a session of a store."""
        return self.hear(lambda names, start, stop: read(store, names, session.id, start, stop), session.num_frames)

    def save(self, run: Run) -> None:
        """Write the run's weights: all that is needed to use it again, beside the settings in its config."""
        tensors = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        for part, scale in (("when", self.when), ("who", self.who)):
            tensors |= {f"{part}.mean": torch.from_numpy(scale.mean), f"{part}.size": torch.from_numpy(scale.size)}
        facts = {
            "kind": self.config.kind,
            "classes": self.head.classes,
            "grid": asdict(self.grid),
            "when": {name: run.features[name].fingerprint for name in self.config.when_features},
            "who": {name: run.features[name].fingerprint for name in self.config.who_features},
            "choice": asdict(self.choice),
        }
        run.write_tensors(MODEL, tensors, facts)

    @classmethod
    def load(cls, run: Run, device: torch.device) -> Cascade:
        """What `save` wrote.

        Raises
        ------
        RunError : missing, damaged, or not of a cascade.
        """
        tensors, facts = run.read_tensors(MODEL)
        config = cast(CascadeConfig, run.config)
        try:
            when, who = (Scale(tensors[f"{p}.mean"].numpy(), tensors[f"{p}.size"].numpy()) for p in ("when", "who"))
            head = new_head(config, len(when.mean), facts["classes"])
            head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
            chosen = facts["choice"]
            choice = Choice(**{**chosen, "decoding": Decoding(**chosen["decoding"])})
            return cls(config, FrameGrid(**facts["grid"]), head.to(device), when, who, device, choice)
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise RunError(f"{run.path / MODEL}: not of a cascade, or damaged: {error}") from None

    def with_choice(self, choice: Choice) -> Cascade:
        """The same parts, decided otherwise."""
        return replace(self, choice=choice)


def new_head(config: CascadeConfig, dim: int, classes: int) -> CountHead:
    """The head of these settings, with new weights from torch's generator."""
    return CountHead(dim, classes, width=config.width, dropout=config.dropout, substeps=config.substeps)


def as_counts(many: NDArray[Any], classes: int) -> NDArray[np.float32]:
    """How many speak, (answers,), as log-probabilities that are next to certain, (answers, classes)."""
    return np.log(np.eye(classes, dtype=np.float32)[many.clip(max=classes - 1)] + np.float32(1e-9))
