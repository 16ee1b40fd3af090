"""A head on one batch, and on many crops without training it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers.diarization.config import DiarizationConfig
from trainers.diarization.data import Batch, Crop, Source
from trainers.diarization.decode import FrameTally
from trainers.diarization.losses import hybrid_loss


def run_model(model: nn.Module, batch: Batch, config: DiarizationConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits of one batch and their loss; the reference protocol neither masks padding nor sorts inside the crop."""
    sound = config.protocol == "sound"
    # Without a mask attention can take its fastest kernels.
    mask, earlier = batch.mask if sound and batch.padded else None, batch.earlier
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(batch.inputs, mask) if earlier is None else model(batch.inputs, mask, earlier)
    known = None if earlier is None else earlier.known  # then labels stand on the channels where they belong
    return logits, hybrid_loss(
        logits,
        batch.labels,
        mask,
        sort_weight=config.sort_weight,
        pil_weight=config.pil_weight,
        resort=sound and known is None,
        known=known,
    )


@dataclass(frozen=True)
class Evaluation:
    """Loss and activities of a set of crops.

    Attributes
    ----------
    loss : mean over frames.
    der : frame-level, optimal mapping in each crop, at the best of the configured thresholds; for watching only.
    activity : (crops, length, speakers) float16 probabilities.
    """

    loss: float
    der: float
    activity: NDArray[np.float16]


@torch.no_grad()
def evaluate(
    model: nn.Module, source: Source, crops: Sequence[Crop], config: DiarizationConfig, device: torch.device
) -> Evaluation:
    """Run the model over crops without training it."""
    model.eval()
    sums, frames = 0.0, 0
    activity = np.empty((len(crops), source.length, config.speakers), np.float16)
    tally = FrameTally(config.thresholds)
    done = 0
    for batch in source.batches(crops, config.batch_size):
        logits, loss = run_model(model, batch, config, device)
        mask = batch.mask if config.protocol == "sound" else torch.ones_like(batch.mask)
        counted = int(mask.sum())
        sums, frames = sums + float(loss) * counted, frames + counted
        probability = logits.float().sigmoid()
        tally.add(probability, batch.labels, mask)
        activity[done : done + len(logits)] = probability.cpu().numpy()
        done += len(logits)
    return Evaluation(sums / max(frames, 1), tally.best_der(), activity)
