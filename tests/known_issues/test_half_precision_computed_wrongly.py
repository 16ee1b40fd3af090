"""A half precision that was asked for was taken unseen, also where the machine computes it wrongly.

oneDNN's bfloat16 convolutions on a CPU with AMX gave a small Mimi features whose cosine to float32's was 0.5, and
they went into the store without a word.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featstore.extractors import ExtractorError
from featstore.extractors.device import choose_precision


def test_it_is_refused() -> None:
    exact = np.random.default_rng(0).standard_normal((20, 8))
    answers = {"float32": exact, "bfloat16": exact + 0.01, "float16": np.where(np.arange(8) < 3, 0, exact)}
    cpu = torch.device("cpu")
    assert choose_precision("bfloat16", cpu, answers.__getitem__) == "bfloat16"
    with pytest.raises(ExtractorError, match=r"precision 'float16': on this machine \(cpu\).*use --precision float32"):
        choose_precision("float16", cpu, answers.__getitem__)
    answers["float16"] = np.full_like(exact, np.inf)
    with pytest.raises(ExtractorError, match="cosine to float32 is -1.000"):
        choose_precision("float16", cpu, answers.__getitem__)
