"""When: a small head that says how many speak, some times a frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_KERNEL, _DILATIONS = 9, (1, 2, 4, 8)
#: Frames that an answer hears on each side.
REACH = _KERNEL // 2 * sum(_DILATIONS)
_NOT_COUNTED = -100


class CountHead(nn.Module):
    """Frames → log-probabilities of 0, 1, 2, … speakers, `substeps` times a frame.

    Linear → residual blocks, each a dilated depthwise convolution over time and a pointwise MLP → Linear.
    """

    def __init__(self, dim: int, classes: int, *, width: int, dropout: float, substeps: int) -> None:
        super().__init__()
        self.dim, self.classes, self.substeps = dim, classes, substeps
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, dilation, dropout) for dilation in _DILATIONS)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes * substeps))

    def forward(self, frames: Tensor) -> Tensor:
        """(batch, frames, dim) → (batch, frames · substeps, classes)."""
        x = self.enter(frames)
        for block in self.blocks:
            x = block(x)
        return self.leave(x).reshape(len(x), -1, self.classes).log_softmax(-1)


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Conv1d(width, width, _KERNEL, padding="same", dilation=dilation, groups=width)
        self.mix = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) → the same shape."""
        return x + self.mix(self.time(self.norm(x).transpose(1, 2)).transpose(1, 2))


def classes_of(labels: Sequence[NDArray[np.uint8]], counted: float) -> int:
    """How many counts are told apart: the fewest (0, 1, …) that at least `counted` of all labels are among; 2 or more."""
    share = np.sum([np.bincount(each, minlength=256) for each in labels], axis=0).cumsum()
    return max(2, int(np.argmax(share >= counted * share[-1])) + 1)


#: Reads frames ``start:stop`` of session k on one scale, (frames, dim).
Reader = Callable[[int, int, int], NDArray[np.float32]]


def train(
    head: CountHead,
    labels: Sequence[NDArray[np.uint8]],
    read: Reader,
    *,
    crop_frames: int,
    batch_size: int,
    steps: int,
    lr: float,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Train on crops that start anywhere; sessions come up in proportion to their length. Yields a row a step.

    Parameters
    ----------
    labels : of each session, (frames · substeps,) how many speak; more than the head tells apart count as its most.
    """
    rng = np.random.default_rng([seed, 4])
    substeps = head.substeps
    lengths = np.array([len(each) // substeps for each in labels])
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2), pct_start=0.1)
    head.train()
    for step in range(1, steps + 1):
        before = time.perf_counter()
        frames = np.zeros((batch_size, crop_frames, head.dim), np.float32)
        target = np.full((batch_size, crop_frames * substeps), _NOT_COUNTED, np.int64)
        for row, k in enumerate(rng.choice(len(labels), batch_size, p=lengths / lengths.sum()).tolist()):
            start = int(rng.integers(max(1, lengths[k] - crop_frames + 1)))
            part = read(k, start, min(start + crop_frames, int(lengths[k])))
            frames[row, : len(part)] = part
            told = labels[k][start * substeps : (start + len(part)) * substeps]
            target[row, : len(told)] = told.clip(max=head.classes - 1)
        waited_s = time.perf_counter() - before
        log_p = head(torch.from_numpy(frames).to(device))
        loss = nn.functional.nll_loss(
            log_p.flatten(0, 1), torch.from_numpy(target).to(device).flatten(), ignore_index=_NOT_COUNTED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        facts = {"step": step, "lr": schedule.get_last_lr()[0], "train_loss": float(loss.detach())}
        schedule.step()
        yield facts | {"seconds": time.perf_counter() - before, "waited_s": waited_s}
    head.eval()


@torch.inference_mode()
def predict(head: CountHead, frames: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Log-probabilities of a whole recording, (frames · substeps, classes), of its frames on one scale."""
    if head.training:
        head.eval()
    log_p: NDArray[np.float32] = head(torch.from_numpy(frames)[None].to(device))[0].cpu().numpy()
    return log_p
