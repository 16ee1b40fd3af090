"""Resemblyzer's speaker encoder as a feature: an embedding of the 1.6 s about each of Mimi's frames.

Resemblyzer (https://github.com/resemble-ai/Resemblyzer, Apache 2.0) carries its weights in its wheel: an LSTM on 40 mel
bands, trained with the generalised end-to-end loss (Wan et al., arXiv 1710.10467) on LibriSpeech-other and VoxCeleb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from featstore import FeatureSpec
from featstore.extractors import ExtractorError, checked_wave
from featstore.extractors.device import pick_device
from featstore.types import MIMI_GRID

RATE_HZ = 16000
#: A mel frame every 10 ms; a window has 160 of them, and begins every eighth: 80 ms, as Mimi's frames do.
MEL_HOP, MEL_FRAMES, STEP = 160, 160, 8
FRAME = STEP * MEL_HOP
#: Silence before the wave, so that the middle of the first window is the middle of the first frame.
BEFORE = (MEL_FRAMES - 1) * MEL_HOP // 2 - FRAME // 2
#: Quieter waves are brought to this level, as Resemblyzer does.
LEVEL_DB = -30.0
#: Windows at a time. Always as many, the last ones filled up: a frame's bytes must not depend on how long a wave is.
WINDOWS = 32


class Resemblyzer:
    """The encoder; `device` is all that can be set."""

    def __init__(self, device: str = "auto") -> None:
        package = find_spec("resemblyzer")  # found, not imported: importing it would ask for webrtcvad
        if package is None or package.origin is None:
            raise ExtractorError("extractor 'resemblyzer' needs its weights: pip install --no-deps resemblyzer")
        weights = Path(package.origin).with_name("pretrained.pt")
        self.device = str(pick_device(device))
        self.lstm = torch.nn.LSTM(input_size=40, hidden_size=256, num_layers=3, batch_first=True)
        self.linear = torch.nn.Linear(256, 256)
        network = torch.nn.ModuleDict({"lstm": self.lstm, "linear": self.linear}).to(self.device).eval()
        state = torch.load(weights, map_location="cpu", weights_only=True)  # noqa: TID251
        network.load_state_dict({k: v for k, v in state["model_state"].items() if k.split(".")[0] in network})
        #: What the frames are. Whatever changes the numbers is in it: another model has another fingerprint.
        self.spec = FeatureSpec(
            name="resemblyzer",
            dim=256,
            dtype="float16",
            sample_rate_hz=RATE_HZ,
            grid=MIMI_GRID,
            model="Resemblyzer (GE2E)",
            weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            settings={"weights": f"resemblyzer {version('resemblyzer')}", "window_s": MEL_FRAMES * MEL_HOP / RATE_HZ},
        )

    def extract(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Embeddings ``(frames, 256)`` of each wave, of length 1; one every 80 ms. ValueError: a wave that is none."""
        return [self._frames(checked_wave(wave, self.spec)) for wave in waves]

    @torch.inference_mode()
    def _frames(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        count = -(-len(wave) // FRAME)
        windows = torch.from_numpy(_mel(wave, count)).unfold(0, MEL_FRAMES, STEP)[:count].transpose(1, 2)
        found = []
        for part in windows.split(WINDOWS):
            filled = functional.pad(part, (0, 0, 0, 0, 0, WINDOWS - len(part))).to(self.device)
            _, (hidden, _) = self.lstm(filled.contiguous())
            found.append(functional.normalize(torch.relu(self.linear(hidden[-1])))[: len(part)].cpu())
        frames: NDArray[np.float32] = torch.cat(found).numpy()
        return frames


def _mel(wave: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Mel bands ``(10 ms frames, 40)`` from before the first window to after the last of `count`."""
    import librosa

    rms = float(np.sqrt(np.mean(wave**2, dtype=np.float64)))
    if 0 < rms < 10 ** (LEVEL_DB / 20):
        wave = wave * np.float32(10 ** (LEVEL_DB / 20) / rms)
    after = count * FRAME - len(wave) + MEL_FRAMES * MEL_HOP - BEFORE
    padded = np.pad(wave, (BEFORE, after))
    mel = librosa.feature.melspectrogram(y=padded, sr=RATE_HZ, n_fft=400, hop_length=MEL_HOP, n_mels=40)
    return np.ascontiguousarray(mel.T, dtype=np.float32)
