"""Training an extraction: batches of crops by the seed and the step alone, so a run that was killed goes on to the weights
that it would have had; what dev says decides which are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.extraction import SILENCE
from evaluation.runs import LAST, MODEL
from trainers.checkpoint import load_steps, save_steps
from trainers.progress import Progress
from trainers.runs import Run, RunError
from trainers.schedule import descend, seeded, share_of_rate
from trainers.tse.config import TseConfig
from trainers.tse.crops import Crops, Example
from trainers.tse.data import TseData
from trainers.tse.network import Extractor, best_assignment, loss


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    loss_sum: float = 0.0  # since dev was looked at
    summed: int = 0
    silent: int = 0  # voices drawn where they say nothing, which teach nothing
    best: float | None = None  # SI-SDR on dev, dB
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0  # of that, for sound


class Training:
    """From the last checkpoint, if there is one, to the end of all steps.

    Parameters
    ----------
    on_step : told the state after each step; what it raises ends the run as a kill would.
    """

    def __init__(
        self,
        run: Run[TseConfig],
        data: TseData,
        device: torch.device,
        progress: Progress,
        on_step: Callable[[State], None] | None = None,
    ) -> None:
        self.run, self.config, self.device = run, run.config, device
        self.progress, self.on_step = progress, on_step
        self.speakers = sorted(data.speakers("train"))  # by which an audit sees who was trained on
        self.crops = Crops(data, "train", self.config)
        dev = Crops(data, "dev", self.config)
        asked = dev.fixed(self.config.dev_voices, self.config.seed)
        rng, at_once = np.random.default_rng([self.config.seed, 1]), self.config.batch_size
        self.dev = [dev.examples(asked[k : k + at_once], rng) for k in range(0, len(asked), at_once)]
        self.mixed = float(torch.cat([-_of_mixture(example) for example in self.dev]).mean())
        with seeded(self.config.seed):
            self.network = Extractor.of(self.config, len(data.centre))
        if self.config.condition == "embedding":
            self.network.centre.copy_(torch.from_numpy(data.centre))
        self.network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.lr)
        self.state = State()
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
        every = max(1, config.steps // config.looks)
        while state.step < config.steps:
            before = time.perf_counter()
            example = self.crops.draw(np.random.default_rng([config.seed, 2, state.step]))
            state.waited_s += time.perf_counter() - before
            value = self._step(example)
            state.step += 1
            state.loss_sum, state.summed = state.loss_sum + value, state.summed + 1
            look = state.step % every == 0 or state.step == config.steps
            if look:
                self._look()
            if look or (config.checkpoint_steps and state.step % config.checkpoint_steps == 0):
                self._save()
            best = "" if state.best is None else f", dev SI-SDR {state.best:.1f} dB"
            self.progress.update(state.step, config.steps, f"loss {value:.2f}{best}")
            if self.on_step is not None:
                self.on_step(state)

    def _losses(self, example: Example) -> Tensor:
        """(voices,) of those that say something."""
        references = example.references.to(self.device)
        heard = references.square().mean(-1) > SILENCE
        mixtures = example.mixtures.to(self.device)
        if self.config.condition == "none":
            found = self.network(mixtures)
            # Voices that are silent in this crop come last and are left out.
            order = torch.argsort(~heard, dim=1, stable=True)
            references = torch.gather(references, 1, order[..., None].expand_as(references))
            counts = heard.sum(1).clamp(max=found.shape[1])
            return best_assignment(found[counts > 0], references[counts > 0], counts[counts > 0])
        found = self.network(mixtures, example.embeddings.to(self.device))
        return loss(found, references[:, 0])[heard[:, 0]]

    def _step(self, example: Example) -> float:
        config = self.config
        self.network.train()
        values = self._losses(example)
        self.state.silent += len(example.counts) - len(values)
        if not len(values):
            return 0.0
        value = values.mean()
        rate = config.lr * share_of_rate(self.state.step, config.steps)
        descend(self.optimizer, value, self.network.parameters(), rate)
        return float(value.detach())

    def _look(self) -> None:
        state, run = self.state, self.run
        mean = state.loss_sum / state.summed
        if not math.isfinite(mean):
            raise RunError(f"{run.path}: the loss is no longer a number by step {state.step}; lower lr")
        self.network.eval()
        with torch.no_grad():
            heard = float(-torch.cat([self._losses(example) for example in self.dev]).mean())
        if state.best is None or heard > state.best:
            state.best, state.best_step = heard, state.step
            run.write_tensors(
                MODEL, self.network.state_dict(), {"size": self.network.size, "step": state.step, "dev": heard}
            )
        state.history.append(
            {"step": state.step, "train_loss": mean, "dev_si_sdr": heard, "dev_si_sdri": heard - self.mixed}
        )
        state.loss_sum, state.summed = 0.0, 0
        run.write_history(state.history)
        self.progress.line(f"step {state.step}: SI-SDR on dev {heard:.2f} dB, the mixtures' own {self.mixed:.2f} dB")

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self.began
        save_steps(self.run, self.network, self.optimizer, self.state)

    def _resume(self) -> None:
        def begin(facts: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
            self.state = State(**facts)
            return self.network, self.optimizer

        load_steps(self.run, begin)


def _of_mixture(example: Example) -> Tensor:
    """The loss of the mixtures themselves, (voices,) of those that say something."""
    heard = example.references.square().mean(-1) > SILENCE
    return loss(example.mixtures[:, None].expand_as(example.references), example.references)[heard]
