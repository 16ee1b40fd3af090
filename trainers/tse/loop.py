"""Training an extraction; SI-SDR on dev decides which weights are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.extraction import SILENCE
from evaluation.runs import MODEL
from trainers.progress import Progress
from trainers.runs import Run
from trainers.schedule import descend, seeded, share_of_rate
from trainers.steps import StepState, StepTraining
from trainers.tse.config import TseConfig
from trainers.tse.crops import Crops, Example
from trainers.tse.data import TseData
from trainers.tse.network import Extractor, best_assignment, loss


@dataclass
class State(StepState):
    """Where a run stands."""

    silent: int = 0  # voices drawn where they say nothing, which teach nothing
    best: float | None = None  # SI-SDR on dev, dB
    best_step: int = 0
    waited_s: float = 0.0  # of its seconds, for sound


class Training(StepTraining):
    """An extraction; SI-SDR on dev decides which weights are kept."""

    def __init__(
        self,
        run: Run[TseConfig],
        data: TseData,
        device: torch.device,
        progress: Progress,
        on_step: Callable[[State], None] | None = None,
    ) -> None:
        self.config, self.data = run.config, data
        self.speakers = sorted(data.speakers("train"))  # by which an audit sees who was trained on
        self.crops = Crops(data, "train", self.config)
        dev = Crops(data, "dev", self.config)
        asked = dev.fixed(self.config.dev_voices, self.config.seed)
        rng, at_once = np.random.default_rng([self.config.seed, 1]), self.config.batch_size
        self.dev = [dev.examples(asked[k : k + at_once], rng) for k in range(0, len(asked), at_once)]
        self.mixed = float(torch.cat([-_of_mixture(example) for example in self.dev]).mean())
        super().__init__(run, State(), run.config.steps, device, progress, on_step)

    def _start(self) -> None:
        with seeded(self.config.seed):
            network = Extractor.of(self.config, len(self.data.centre))
        if self.config.condition == "embedding":
            network.centre.copy_(torch.from_numpy(self.data.centre))
        self.model = self.network = network.to(self.device)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=self.config.lr)

    def _told(self, loss: float) -> str:
        best = "" if self.state.best is None else f", dev SI-SDR {self.state.best:.1f} dB"
        return f"loss {loss:.2f}{best}"

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

    def _step(self) -> float:
        before = time.perf_counter()
        example = self.crops.draw(np.random.default_rng([self.config.seed, 2, self.state.step]))
        self.state.waited_s += time.perf_counter() - before
        return self._learn(example)

    def _learn(self, example: Example) -> float:
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

    def _dev(self) -> dict[str, float]:
        state, run = self.state, self.run
        self.network.eval()
        with torch.no_grad():
            heard = float(-torch.cat([self._losses(example) for example in self.dev]).mean())
        if state.best is None or heard > state.best:
            state.best, state.best_step = heard, state.step
            run.write_tensors(
                MODEL, self.network.state_dict(), {"size": self.network.size, "step": state.step, "dev": heard}
            )
        self.progress.line(f"step {state.step}: SI-SDR on dev {heard:.2f} dB, the mixtures' own {self.mixed:.2f} dB")
        return {"dev_si_sdr": heard, "dev_si_sdri": heard - self.mixed}


def _of_mixture(example: Example) -> Tensor:
    """The loss of the mixtures themselves, (voices,) of those that say something."""
    heard = example.references.square().mean(-1) > SILENCE
    return loss(example.mixtures[:, None].expand_as(example.references), example.references)[heard]
