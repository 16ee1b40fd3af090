"""Fixtures shared by every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tones import knows_fakes, tone_run, tone_store  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """Real speech for development; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("WHOWHEN_SPEECH", ROOT.parent / "shared" / "data" / "speech"))
    if not (folder / "manifest.jsonl").exists():
        pytest.skip(
            "real speech (LibriSpeech mini, AMI clips) is not on this machine: set WHOWHEN_SPEECH to its folder"
        )
    return folder
