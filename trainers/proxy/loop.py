"""Training a proxy with one loss after another, each from its own start; what dev says decides. Then judges: more starts
of the loss that was best, trained alike, which have no part in what they judge.

Every draw depends on the seed and the step alone, so a run that was killed goes on to exactly the weights it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.runs import LAST
from evaluation.verification import det_curve
from trainers.checkpoint import load_steps, save_steps
from trainers.progress import Progress
from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import Crops, ProxyData, Voices
from trainers.proxy.forms import logits_of, mixed
from trainers.proxy.losses import AngularMargin, contrastive, to_teacher
from trainers.proxy.network import Proxy
from trainers.runs import Run, RunError
from trainers.schedule import descend, seeded, share_of_rate

#: What the right codes have of the probability where logits are scored.
SOFT_SHARE = 0.5


@dataclass
class State:
    """Where a run stands."""

    step: int = 0  # over all losses
    loss_sum: float = 0.0  # since dev was looked at
    summed: int = 0
    best: dict[str, float] = field(default_factory=dict)  # loss or judge → lowest EER on dev
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def candidate(name: str) -> str:
    """The file in a run's folder with the best weights of a loss, or of a judge."""
    return f"candidate-{name}.safetensors"


def judge_names(config: ProxyConfig) -> tuple[str, ...]:
    return tuple(f"judge{k + 1}" for k in range(config.judges))


def best_loss(config: ProxyConfig, state: State) -> str:
    """The loss with the lowest EER on dev, of those that were trained with so far."""
    return min((loss for loss in config.losses if loss in state.best), key=lambda loss: state.best[loss])


class Training:
    """From the last checkpoint, if there is one, to the end of all steps with all losses.

    Parameters
    ----------
    teacher : (training utterances, size) of the loss "teacher"; None without it.
    on_step : told the state after each step; what it raises ends the run as a kill would.
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
        self.run, self.config, self.table, self.device = run, run.config, table, device
        self.progress, self.on_step = progress, on_step
        self.teacher = None if teacher is None else torch.from_numpy(teacher)
        self.crops = Crops(data.train, frames, self.config.speakers)
        self.dev = data.dev.pieces(frames)
        self.state = State()
        self.names = (*self.config.losses, *judge_names(self.config))
        self._start(0)
        if (run.path / LAST).exists():
            self._resume()
        self.began = time.perf_counter() - self.state.seconds

    def to_the_end(self) -> None:
        """Train all steps that are left.

        Raises
        ------
        RunError : the loss is no longer a number.
        """
        config, state = self.config, self.state
        of = config.steps * len(self.names)
        every = max(1, config.steps // config.looks)
        while state.step < of:
            number, inside = divmod(state.step, config.steps)
            name = self.names[number]
            if not inside:
                self._start(number)
            value = float(self._step(inside))
            state.step += 1
            state.loss_sum, state.summed = state.loss_sum + value, state.summed + 1
            inside += 1
            look = inside % every == 0 or inside == config.steps
            if look:
                self._look(number, inside)
            if look or (config.checkpoint_steps and state.step % config.checkpoint_steps == 0):
                self._save()
            self.progress.update(state.step, of, f"{name}, loss {value:.3f}, dev EER {state.best.get(name, 1):.1%}")
            if self.on_step is not None:
                self.on_step(state)

    def _start(self, number: int) -> None:
        config = self.config
        self.loss = config.losses[number] if number < len(config.losses) else best_loss(config, self.state)
        with seeded(config.seed, 1 + number):
            proxy = Proxy(self.table, config.channels, config.size)
            speakers = len(self.crops.names) if self.loss == "margin" else 1
            head = AngularMargin(config.size, speakers, config.angle, config.scale)
        self.proxy = proxy
        self.model = nn.ModuleDict({"proxy": proxy, "head": head}).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    def _step(self, inside: int) -> Tensor:
        config = self.config
        rng = np.random.default_rng([config.seed, self.state.step])
        codes, mask, speakers, owners = self.crops.draw(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        proxy, head = self.proxy, self.model["head"]
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
        return value.detach()

    def _look(self, number: int, inside: int) -> None:
        state, run, name = self.state, self.run, self.names[number]
        mean = state.loss_sum / state.summed
        if not math.isfinite(mean):
            raise RunError(f"{run.path}: the loss is no longer a number with {self.loss!r} by step {inside}; lower lr")
        proxy = self.proxy
        hard, soft = dev_eers(proxy, self.dev, self.config.seed, self.device)
        # Codes tell voices apart, logits train somebody's model: neither may be paid for by the other.
        eer = (hard + soft) / 2
        if eer < state.best.get(name, math.inf):
            state.best[name] = eer
            facts = {**proxy.facts, "loss": self.loss, "step": inside, "dev_eer": eer}
            run.write_tensors(candidate(name), proxy.state_dict(), facts)
        # Numbers alone, as in every history: which of the losses, then of the judges, and steps over all of them.
        row = {
            "step": state.step,
            "number": number,
            "train_loss": mean,
            "dev_eer": hard,
            "dev_eer_soft": soft,
        }
        state.history.append(row)
        state.loss_sum, state.summed = 0.0, 0
        run.write_history(state.history)

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self.began
        save_steps(self.run, self.model, self.optimizer, self.state, {"proxy.table"})

    def _resume(self) -> None:
        def begin(facts: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
            self.state = State(**facts)
            self._start(min((self.state.step - 1) // self.config.steps, len(self.names) - 1))
            return self.model, self.optimizer

        load_steps(self.run, begin, {"proxy.table": self.table})


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
