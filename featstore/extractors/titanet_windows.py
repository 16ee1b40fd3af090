"""TitaNet over many overlapping windows of one wave: the network's own numbers, without computing anything twice.

NeMo embeds one signal at a time. Windows that overlap share almost their whole spectrogram, so here it is computed
once, and goes through the network of `titanet_network`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from featstore.extractors.device import each
from featstore.extractors.titanet_network import WindowNet

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from torch import Tensor

SAMPLE_RATE_HZ = 16000
FRAME_SAMPLES = 1280
WINDOW_SAMPLES = 24000
#: Shorter waves are filled up with zeros: per-feature normalisation needs some frames to normalise over.
MIN_SAMPLES = 1600

# The spectrogram's own frames: 25 ms every 10 ms. Window starts (640 + 1280 i - 12000) are multiples of the hop.
_HOP, _SPAN, _FFT = 160, 400, 512
_REACH = _SPAN // 2
_MEL_FRAMES = WINDOW_SAMPLES // _HOP
_MEL_CHUNK = 8192


class LogMel(torch.nn.Module):
    """NeMo's log-mel spectrogram (pre-emphasis, Hann window, power, mel bank, log) with its own window and bank."""

    window: Tensor
    bank: Tensor

    def __init__(self, model: EncDecSpeakerLabelModel) -> None:
        super().__init__()
        featurizer = model.preprocessor.featurizer
        expected = {
            "sample_rate": SAMPLE_RATE_HZ,
            "hop_length": _HOP,
            "win_length": _SPAN,
            "n_fft": _FFT,
            "normalize": "per_feature",
            "frame_splicing": 1,
            "exact_pad": False,
            "mag_power": 2.0,
            "log": True,
            "log_zero_guard_type": "add",
        }
        for name, value in expected.items():
            found = getattr(featurizer, name)
            if found != value:
                raise ValueError(f"preprocessor {name}: expected {value!r} as in TitaNet, found {found!r}")
        self.preemphasis = float(featurizer.preemph or 0.0)
        self.guard = float(featurizer.log_zero_guard_value_fn(torch.zeros(1)))
        self.register_buffer("window", featurizer.window.float().clone())
        self.register_buffer("bank", featurizer.fb[0].t().float().contiguous())

    def emphasise(self, x: Tensor) -> Tensor:
        """Pre-emphasis along the last axis; the first sample stays."""
        return torch.cat([x[..., :1], x[..., 1:] - self.preemphasis * x[..., :-1]], dim=-1)

    def forward(self, spans: Tensor) -> Tensor:
        """``(..., 400)`` emphasised samples → ``(..., mels)``."""
        power = torch.fft.rfft(spans * self.window, n=_FFT).abs().square()
        return torch.log(power @ self.bank + self.guard)

    def whole(self, emphasised: Tensor) -> Tensor:
        """``(samples,)`` → ``(samples // 160, mels)``; frame k is centred on sample 160 k, zeros around the signal."""
        padded = functional.pad(emphasised, (_REACH, _REACH))
        spans = padded.unfold(0, _SPAN, _HOP)[: len(emphasised) // _HOP]
        return torch.cat([self(spans[at : at + _MEL_CHUNK]) for at in range(0, len(spans), _MEL_CHUNK)])


def bounds(frame: int, samples: int) -> tuple[int, int]:
    """First and last (exclusive) sample of the window centred on a frame, cut off at the wave's ends."""
    start = FRAME_SAMPLES // 2 + FRAME_SAMPLES * frame - WINDOW_SAMPLES // 2
    return max(0, start), min(samples, start + WINDOW_SAMPLES)


def embed_windows(
    wave: Tensor,
    computed: range,
    log_mel: LogMel,
    net: WindowNet,
    batch: int,
    told: Callable[[float], None] = lambda seconds: None,
) -> Tensor:
    """Embeddings of the 1.5 s windows centred on Mimi's frames.

    Parameters
    ----------
    wave : ``(samples,)`` float32 at 16 kHz.
    computed : frames to embed. Frame i is centred on sample 640 + 1280 i; its window is cut off at
        the wave's ends.
    batch : windows at once.
    told : called with the seconds of audio that each batch of full windows stands for.

    Returns
    -------
    ``(len(computed), 192)`` float32.
    """
    wave = functional.pad(wave, (0, max(0, MIN_SAMPLES - len(wave))))
    emphasised = log_mel.emphasise(wave)
    mel = log_mel.whole(emphasised)
    spans = [bounds(frame, len(wave)) for frame in computed]
    full = [at for at, (begin, end) in enumerate(spans) if end - begin == WINDOW_SAMPLES]
    cut = sorted(set(range(len(spans))) - set(full))

    out = wave.new_empty(len(spans), net.embed.out_features)

    def embed_cut(some: list[int]) -> None:
        out[some] = _cut_windows([spans[index] for index in some], wave, emphasised, mel, log_mel, net)

    each(embed_cut, [cut[at : at + batch] for at in range(0, len(cut), batch)], wave.device)
    if not full:
        return out
    first, step = spans[full[0]][0], FRAME_SAMPLES * computed.step
    # Views: no window is copied before its batch.
    mels = mel[first // _HOP :].unfold(0, _MEL_FRAMES, step // _HOP).transpose(1, 2)
    heads = wave[first:].unfold(0, _HOP + _REACH, step)
    tails = emphasised[first + WINDOW_SAMPLES - _HOP - _REACH :].unfold(0, _HOP + _REACH, step)

    def embed_full(at: int) -> None:
        stop = min(at + batch, len(full))
        windows = mels[at:stop].clone()
        windows[:, :2] = _first_frames(heads[at:stop], log_mel)
        windows[:, -1] = _last_frame(tails[at:stop], log_mel)
        out[full[0] + at : full[0] + stop] = net(windows)
        told((stop - at) * step / SAMPLE_RATE_HZ)

    each(embed_full, range(0, len(full), batch), wave.device)
    return out


def _first_frames(heads: Tensor, log_mel: LogMel) -> Tensor:
    """The two spectrogram frames that reach before their window, where zeros are: ``(n, 360)`` → ``(n, 2, mels)``."""
    heads = log_mel.emphasise(heads)
    first = functional.pad(heads[:, :_REACH], (_REACH, 0))
    second = functional.pad(heads, (_REACH - _HOP, 0))
    mel: Tensor = log_mel(torch.stack([first, second], dim=1))
    return mel


def _last_frame(tails: Tensor, log_mel: LogMel) -> Tensor:
    """The spectrogram frame that reaches past its window: emphasised ``(n, 360)`` → ``(n, mels)``."""
    mel: Tensor = log_mel(functional.pad(tails, (0, _REACH - _HOP)))
    return mel


def _cut_windows(
    spans: list[tuple[int, int]], wave: Tensor, emphasised: Tensor, mel: Tensor, log_mel: LogMel, net: WindowNet
) -> Tensor:
    """Embeddings of windows cut off by the wave's ends, in one batch with masks."""
    windows = mel.new_zeros(len(spans), _MEL_FRAMES, mel.shape[1])
    frames = []
    for row, (begin, end) in zip(windows, spans, strict=True):
        count = (end - begin) // _HOP
        row[:count] = mel[begin // _HOP : begin // _HOP + count]
        if begin > 0:
            row[:2] = _first_frames(wave[None, begin : begin + _HOP + _REACH], log_mel)[0]
        if end < len(wave):
            row[count - 1] = _last_frame(emphasised[None, end - _HOP - _REACH : end], log_mel)[0]
        frames.append(count)
    embeddings: Tensor = net(windows, torch.tensor(frames, device=wave.device))
    return embeddings
