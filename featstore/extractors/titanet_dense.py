"""TitaNet once over a long stretch in place of once a window: an approximation of `titanet_windows`, many times faster.

Windows of 1.5 s every 80 ms put each spectrogram frame through the network 19 times. Here it goes through once: what a
window takes from all of its frames (the spectrogram's normalisation, squeeze-and-excite, the attention's context), a
frame takes from the 1.5 s around itself; only the attentive pooling is done window by window, from running sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from featstore.extractors.titanet_network import WindowNet
from featstore.extractors.titanet_windows import FRAME_SAMPLES, MIN_SAMPLES, WINDOW_SAMPLES, LogMel

_FRAME = FRAME_SAMPLES // 160  # spectrogram frames
_WINDOW = WINDOW_SAMPLES // 160
#: Spectrogram frames of a stretch, without its margins.
STRETCH = 6000
#: Frames whose attention is e⁻²⁰ of the stretch's largest count as that: float64 sums could not tell them from nothing.
_FLOOR = -20.0


def embed_dense(
    wave: Tensor,
    computed: range,
    log_mel: LogMel,
    net: WindowNet,
    told: Callable[[float], None] = lambda seconds: None,
) -> Tensor:
    """Embeddings of the 1.5 s around Mimi's frames, as `titanet_windows.embed_windows` but approximately.

    Parameters
    ----------
    wave : ``(samples,)`` float32 at 16 kHz.
    computed : frames to embed; frame i is centred on sample 640 + 1280 i.
    told : called with the seconds of audio of each stretch.

    Returns
    -------
    ``(len(computed), 192)`` float32.
    """
    wave = functional.pad(wave, (0, max(0, MIN_SAMPLES - len(wave))))
    mel = log_mel.whole(log_mel.emphasise(wave))
    centres = torch.tensor(computed, device=wave.device) * _FRAME + _FRAME // 2
    out, margin = [], _margin(net)
    for begin in range(0, int(centres[-1]) + 1, STRETCH):
        here = centres[(centres >= begin) & (centres < begin + STRETCH)]
        if len(here):
            first = max(0, begin - margin)
            out.append(_stretch(mel[first : begin + STRETCH + margin], here - first, net))
            told(min(STRETCH, len(mel) - begin) / 100)
    return torch.cat(out)


def _margin(net: WindowNet) -> int:
    """How far the network looks to each side, in frames; with such margins, stretches do not show.

    Half a window for the normalisation, each block's average, the attention's context and the pooling; half of every
    kernel.
    """
    return (len(net.blocks) + 3) * _WINDOW // 2 + net.half_kernels


def _stretch(mel: Tensor, centres: Tensor, net: WindowNet) -> Tensor:
    """``(frames, mels)`` and ``(windows,)`` centres in frames → ``(windows, 192)``."""
    dtype = net.embed.weight.dtype
    low, high = _reach(torch.arange(len(mel), device=mel.device), len(mel))
    count = (high - low)[:, None]
    mean, deviation = _moments(mel, None, low, high)
    # The constants are those of `WindowNet`.
    deviation = deviation * (count / (count - 1)) ** 0.5 + 1e-5
    x = ((mel - mean) / deviation).to(dtype)[None]
    for block in net.blocks:
        x = block(x, None, lambda out: _sums(out[0], low, high).div_(count).to(out.dtype)[None])
    x = x[0]
    pool = net.pool
    wide = x.float()
    context = torch.cat(_moments(wide, None, low, high, pool.eps), dim=1).to(dtype)
    hidden = torch.tanh(functional.relu_(pool.frame(x) + pool.context(context)) * pool.scale + pool.shift)
    score = pool.score(hidden).float()
    attention = (score - score.amax(0)).clamp_(min=_FLOOR).exp_()
    pooled = torch.cat(_moments(wide, attention, *_reach(centres, len(mel)), pool.eps), dim=1)
    embedding: Tensor = net.embed(pooled.to(dtype))
    return embedding.float()


def _reach(centres: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """First and last (exclusive) frame of the windows around `centres`, cut off at the ends."""
    return (centres - _WINDOW // 2).clamp(min=0), (centres + _WINDOW // 2).clamp(max=frames)


def _moments(x: Tensor, weight: Tensor | None, low: Tensor, high: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation (at least sqrt(eps)) of ``x[low:high]``, a row a window: two ``(windows, dim)``."""
    # Around the stretch's own mean and with wide products, lest the difference of two large numbers be what is left.
    wide = _widened(x)
    centre = wide.mean(0)
    wide = wide - centre
    weighted = wide if weight is None else wide * weight
    total = (high - low)[:, None] if weight is None else _sums(weight, low, high)
    mean = _sums(weighted, low, high) / total
    variance = _sums(weighted * wide, low, high) / total - mean.square()
    return (mean + centre).to(x.dtype), variance.clamp_(min=eps).sqrt_().to(x.dtype)


def _sums(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sums of ``x[low:high]``, a row a window, as differences of running sums."""
    running = functional.pad(_widened(x).cumsum(0), (0, 0, 1, 0))
    return running[high] - running[low]


def _widened(x: Tensor) -> Tensor:
    """In float64 where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
