"""Training the set predictor; dev's assignment cosine decides which weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.runs import MODEL
from evaluation.unmixing import assigned
from trainers.progress import Progress
from trainers.runs import Run
from trainers.schedule import descend, seeded, share_of_rate
from trainers.steps import StepState, StepTraining
from trainers.unmix.config import UnmixConfig
from trainers.unmix.data import Mixture, UnmixData, batch_of, targets_of
from trainers.unmix.losses import set_loss
from trainers.unmix.network import Unmixer

_MOST_AT_ONCE = 64  # mixtures, where nothing is trained


@dataclass
class State(StepState):
    """Where a run stands."""

    best: float = -2.0  # dev's assignment cosine
    best_step: int = 0


def make_network(config: UnmixConfig, dim: int, size: int) -> Unmixer:
    """As the configuration says, weights drawn by its seed."""
    with seeded(config.seed, 1):
        return Unmixer(
            dim,
            size,
            config.slots,
            config.width,
            config.layers,
            config.heads,
            config.conv_frames,
            config.dropout,
            config.input_dropout,
            config.windows and config.heard_in in config.inputs,
            bool(config.windows_of),
            config.correction,
        )


class Training(StepTraining):
    """The set predictor; dev's assignment cosine decides which weights are kept."""

    def __init__(
        self,
        run: Run[UnmixConfig],
        data: UnmixData,
        network: Unmixer,
        device: torch.device,
        progress: Progress,
        on_step: Callable[[State], None] | None = None,
    ) -> None:
        self.config, self.data, self.network = run.config, data, network.to(device)
        names = sorted({speaker for m in data.train for speaker in m.speakers})
        self.numbers = {name: k for k, name in enumerate(names)}
        super().__init__(run, State(), run.config.steps, device, progress, on_step)

    def _start(self) -> None:
        network = self.model = self.network
        decay = [p for p in network.parameters() if p.ndim > 1 and p is not network.queries]
        rest = [p for p in network.parameters() if p.ndim == 1 or p is network.queries]
        groups = [{"params": decay, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr)

    def _told(self, loss: float) -> str:
        return f"loss {loss:.3f}, dev cosine {self.state.best:.3f}"

    def _step(self) -> float:
        config, state, network = self.config, self.state, self.network
        rng = np.random.default_rng([config.seed, state.step])
        # Epoch after epoch in an order of its own: every mixture comes before any comes again.
        count = len(self.data.train)
        size = min(config.batch_size, count)
        first = state.step * size
        chosen = [self._order(k // count)[k % count] for k in range(first, first + size)]
        batch = [self.data.train[k] for k in chosen]
        frames, mask = batch_of(batch)
        network.train()
        with seeded(config.seed, 2, int(rng.integers(1 << 62))):
            embeddings, logits = network(frames.to(self.device), mask.to(self.device))
        loss = set_loss(
            embeddings,
            logits,
            *(t.to(self.device) for t in targets_of(batch, self.numbers)),
            existence=config.existence,
            apart=config.apart,
            apart_margin=config.apart_margin,
            contrast=config.contrast,
            scale=config.scale,
        )
        rate = config.lr * share_of_rate(state.step, config.steps)
        descend(self.optimizer, loss, network.parameters(), rate)
        return float(loss.detach())

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.config.seed, 4, epoch]).permutation(len(self.data.train))

    def _dev(self) -> dict[str, float]:
        state, run = self.state, self.run
        sets, existence = predict(self.network, [m.frames for m in self.data.dev], self.device)
        chosen = [surest(e, x, len(m.voices)) for e, x, m in zip(sets, existence, self.data.dev, strict=True)]
        cosine = float(np.mean([assigned(s, m.voices)[2].mean() for s, m in zip(chosen, self.data.dev, strict=True)]))
        if cosine > state.best:
            state.best, state.best_step = cosine, state.step
            facts = {"step": state.step, "dev_cosine": cosine, "classes": list(self.numbers)}
            run.write_tensors(MODEL, self.network.state_dict(), facts)
        return {"dev_cosine": cosine}


def surest(embeddings: NDArray[np.float32], existence: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` slots (count, size) that are surest to hold a voice; all of them where there are fewer."""
    return embeddings[np.argsort(-existence, kind="stable")[:count]]


def predict(
    network: Unmixer, frames: Sequence[NDArray[np.float16]], device: torch.device
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Of each piece of frames: embeddings (slots, size), and the probability (slots,) that a slot holds a voice."""
    network.eval()
    sets: list[NDArray[np.float32]] = []
    sure: list[NDArray[np.float32]] = []
    pieces = [Mixture("", f, np.zeros((0, 0), np.float32), (), ()) for f in frames]
    with torch.no_grad():
        for first in range(0, len(pieces), _MOST_AT_ONCE):
            given, mask = batch_of(pieces[first : first + _MOST_AT_ONCE])
            embeddings, logits = network(given.to(device), mask.to(device))
            sets += list(embeddings.cpu().numpy())
            sure += list(torch.sigmoid(logits).cpu().numpy())
    return sets, sure
