"""Training a proxy with one loss after another, each from its own start; what dev says decides. Then judges: more starts
of the loss that was best, trained alike, which have no part in what they judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.verification import det_curve
from trainers.progress import Progress
from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import Crops, ProxyData, Voices
from trainers.proxy.forms import logits_of, mixed
from trainers.proxy.losses import AngularMargin, contrastive, to_teacher
from trainers.proxy.network import Proxy
from trainers.runs import Run
from trainers.schedule import descend, seeded, share_of_rate
from trainers.steps import StepState, StepTraining

#: What the right codes have of the probability where logits are scored.
SOFT_SHARE = 0.5


@dataclass
class State(StepState):
    """Where a run stands; steps are counted over all losses."""

    best: dict[str, float] = field(default_factory=dict)  # loss or judge → lowest EER on dev


def candidate(name: str) -> str:
    """The file in a run's folder with the best weights of a loss, or of a judge."""
    return f"candidate-{name}.safetensors"


def judge_names(config: ProxyConfig) -> tuple[str, ...]:
    return tuple(f"judge{k + 1}" for k in range(config.judges))


def best_loss(config: ProxyConfig, state: State) -> str:
    """The loss with the lowest EER on dev, of those that were trained with so far."""
    return min((loss for loss in config.losses if loss in state.best), key=lambda loss: state.best[loss])


class Training(StepTraining):
    """A proxy with each of the losses after the other, then the judges; EER on dev decides which weights are kept.

    Parameters
    ----------
    teacher : (training utterances, size) of the loss "teacher"; None without it.
    """

    def __init__(
        self,
        run: Run[ProxyConfig],
        data: ProxyData,
        table: Tensor,
        teacher: NDArray[np.float32] | None,
        frames: int,
        device: torch.device,
        progress: Progress,
        on_step: Callable[[State], None] | None = None,
    ) -> None:
        self.config, self.table = run.config, table
        self.teacher = None if teacher is None else torch.from_numpy(teacher)
        self.crops = Crops(data.train, frames, self.config.speakers)
        self.dev = data.dev.pieces(frames)
        self.names = (*self.config.losses, *judge_names(self.config))
        total = self.config.steps * len(self.names)
        super().__init__(run, State(), total, device, progress, on_step, {"proxy.table": table})

    def _start(self) -> None:
        # What was trained last is what a checkpoint holds.
        self._begin(max(0, self.state.step - 1) // self.config.steps)

    def _begin(self, number: int) -> None:
        config = self.config
        self.number, self.name = number, self.names[number]
        self.loss = config.losses[number] if number < len(config.losses) else best_loss(config, self.state)
        self.loss_name = f"the loss {self.loss!r}"
        with seeded(config.seed, 1 + number):
            proxy = Proxy(self.table, config.channels, config.size)
            speakers = len(self.crops.names) if self.loss == "margin" else 1
            head = AngularMargin(config.size, speakers, config.angle, config.scale)
        self.model = nn.ModuleDict({"proxy": proxy, "head": head}).to(self.device)
        self.proxy, self.head = proxy, head
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    def _told(self, loss: float) -> str:
        return f"{self.name}, loss {loss:.3f}, dev EER {self.state.best.get(self.name, 1):.1%}"

    def _step(self) -> float:
        config = self.config
        number, inside = divmod(self.state.step, config.steps)
        if number != self.number:
            self._begin(number)
        rng = np.random.default_rng([config.seed, self.state.step])
        codes, mask, speakers, owners = self.crops.draw(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        proxy, head = self.proxy, self.head
        proxy.train()
        embeddings = proxy.embed(mixed(proxy, codes, config.soft, config.corrupted, generator), mask.to(self.device))
        if self.loss == "contrastive":
            value = contrastive(embeddings, speakers.to(self.device), config.negatives, config.cosine_margin)
        elif self.loss == "margin":
            value = head(embeddings, speakers.to(self.device))
        else:
            assert self.teacher is not None  # it was read
            value = to_teacher(embeddings, self.teacher[owners].to(self.device))
        rate = config.lr * share_of_rate(inside, config.steps)
        descend(self.optimizer, value, self.model.parameters(), rate)
        return float(value.detach())

    def _dev(self) -> dict[str, float]:
        state, proxy = self.state, self.proxy
        hard, soft = dev_eers(proxy, self.dev, self.config.seed, self.device)
        # Codes tell voices apart, logits train somebody's model: neither may be paid for by the other.
        eer = (hard + soft) / 2
        if eer < state.best.get(self.name, math.inf):
            state.best[self.name] = eer
            inside = state.step - self.number * self.config.steps
            facts = {**proxy.facts, "loss": self.loss, "step": inside, "dev_eer": eer}
            self.run.write_tensors(candidate(self.name), proxy.state_dict(), facts)
        # Numbers alone, as in every history: which of the losses, then of the judges.
        return {"number": self.number, "dev_eer": hard, "dev_eer_soft": soft}


def embed(
    proxy: Proxy,
    codes: list[NDArray[np.int16]],
    device: torch.device,
    change: Callable[[Tensor], Tensor] = lambda codes: codes,
    **settings: Any,
) -> NDArray[np.float32]:
    """Embeddings (utterances, size), each utterance alone and whole; `change` makes of its codes what goes in."""
    proxy.eval()
    with torch.no_grad():
        found = [proxy(change(torch.from_numpy(own.astype(np.int64))[None]).to(device), **settings) for own in codes]
    return torch.cat(found).cpu().numpy()


def all_pairs(voices: Voices) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Every pair of pieces, left, right and whether they are of one speaker; of one utterance only if speakers have but one."""
    left, right = np.triu_indices(len(voices.ids), 1)
    ids = np.asarray(voices.ids)
    same = voices.speakers[left] == voices.speakers[right]
    apart = ids[left] != ids[right]
    if (same & apart).any():
        left, right, same = left[apart], right[apart], same[apart]
    return left, right, same


def dev_eers(proxy: Proxy, dev: Voices, seed: int, device: torch.device) -> tuple[float, float]:
    """EER over all pairs of the pieces of dev: of codes, and of logits that give the right ones half of the probability."""
    left, right, same = all_pairs(dev)
    generator, bins = torch.Generator().manual_seed(seed), proxy.table.shape[1]

    def eer(vectors: NDArray[np.float32]) -> float:
        return float(det_curve((vectors[left] * vectors[right]).sum(1), same).eer[0])

    soft = embed(proxy, dev.codes, device, lambda own: logits_of(own, bins, SOFT_SHARE, generator))
    return eer(embed(proxy, dev.codes, device)), eer(soft)
