"""Sound of three speakers who are tones, and whoever turns up in the tests of live."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tones import sound_of, turns_of

SECONDS = 24.0


@pytest.fixture(scope="session")
def turns():
    return turns_of(7, SECONDS)


@pytest.fixture(scope="session")
def wave(turns) -> np.ndarray:
    return sound_of(turns, SECONDS)
