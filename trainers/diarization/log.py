"""What a head tells while it trains: figures beside the bar, a line an epoch and, where asked for, TensorBoard's log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainers.checkpoint import State
from trainers.config import ConfigError
from trainers.diarization.config import DiarizationConfig
from trainers.progress import Progress
from trainers.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Reading the loss waits for the device, so look at it seldom.
_LOOK_EVERY_S = 1.0


class Log:
    """Tells `progress`; the first of several processes writes RUN/tensorboard too, where the configuration asks for it.

    Raises
    ------
    ConfigError : tensorboard is asked for and not installed.
    """

    def __init__(self, run: Run[DiarizationConfig], state: State, progress: Progress, *, first: bool) -> None:
        self._progress, self._epochs = progress, run.config.epochs
        self._looked = time.monotonic()
        self._board = _tensorboard(run, state.step) if run.config.tensorboard and first else None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def step(self, state: State, loss: Tensor, steps_in_epoch: int) -> None:
        """A step is done."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        dev = f" dev DER {state.history[-1]['dev_der']:.1%}" if state.history else ""
        self._progress.update(
            state.step,
            self._epochs * steps_in_epoch,
            f"epoch {state.epoch}/{self._epochs} loss {float(loss.detach()):.4f}{dev} "
            f"{state.timed_steps / state.busy_s:.2f} steps/s, input {state.waited_s / state.busy_s:.1%}",
        )

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done: say so in a line that stays."""
        if self._board is not None:
            for name in ("train_loss", "dev_loss", "dev_der", "lr"):
                self._board.add_scalar(name, row[name], row["step"])
        self._progress.line(
            f"epoch {row['epoch']:3d}  step {row['step']:6d}  loss {row['train_loss']:.4f}  "
            f"dev loss {row['dev_loss']:.4f}  dev DER {row['dev_der']:6.2%}  "
            f"{row['steps_per_s']:.2f} steps/s  input {row['input_share']:.2%}"
        )


def _tensorboard(run: Run[DiarizationConfig], step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard=true needs the package tensorboard: pip install tensorboard, or leave it off "
            "(history.csv has the same figures)"
        ) from None
    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
