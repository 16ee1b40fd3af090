"""Live progress of training on stderr: loss, DER on dev, steps a second, time left, share of time spent on input."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from trainers.config import ConfigError
from trainers.runs import Run

# Reading the loss waits for the device, so look at it seldom.
_LOOK_EVERY_S = 1.0


class Progress:
    """One bar over all epochs and, off a terminal, one line an epoch."""

    def __init__(self, run: Run, state: Any, *, shown: bool) -> None:
        config = run.config
        self._console = Console(stderr=True, quiet=not shown, soft_wrap=True)
        self._config = config
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(config.kind, total=None, figures="")
        self._dev = f"dev DER {state.history[-1]['dev_der']:.1%}" if state.history else ""
        self._looked = time.monotonic()
        self._began = (time.monotonic(), state.step)
        self._log = _tensorboard(run, state.step) if config.tensorboard and shown else None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()
        if self._log is not None:
            self._log.close()

    def epoch(self, state: Any, steps_in_epoch: int) -> None:
        """A new epoch begins (or is gone on with)."""
        total = self._config.epochs * steps_in_epoch
        self._bar.update(self._task, total=total, completed=state.step)

    def step(self, state: Any, loss: Any, input_share: float) -> None:
        """A step is done."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        rate = (state.step - self._began[1]) / max(now - self._began[0], 1e-9)
        self._bar.update(
            self._task,
            completed=state.step,
            description=f"{self._config.kind} {state.epoch}/{self._config.epochs}",
            figures=f"loss {float(loss.detach()):.4f} {self._dev} {rate:.2f} steps/s, input {input_share:.1%}",
        )

    def row(self, row: dict[str, Any]) -> None:
        """An epoch is done: say so in a line that stays."""
        self._dev = f"dev DER {row['dev_der']:.1%}"
        for name in ("train_loss", "dev_loss", "dev_der", "lr") if self._log is not None else ():
            self._log.add_scalar(name, row[name], row["step"])
        self._console.print(
            f"epoch {row['epoch']:3d}  step {row['step']:6d}  loss {row['train_loss']:.4f}  "
            f"dev loss {row['dev_loss']:.4f}  dev DER {row['dev_der']:6.2%}  "
            f"{row['steps_per_s']:.2f} steps/s  input {row['input_share']:.2%}",
            highlight=False,
        )


def _tensorboard(run: Run, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard=true needs the package tensorboard: pip install tensorboard, or leave it off "
            "(history.csv has the same figures)"
        ) from None
    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
