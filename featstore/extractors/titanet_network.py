"""TitaNet's network rearranged for many windows at once: NeMo's weights, and its numbers to float32 rounding.

Batch norm is folded into the convolutions, frames come before channels, and there are no masks where all windows are
full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from nemo.collections.asr.parts.submodules.jasper import JasperBlock
    from nemo.collections.asr.parts.submodules.tdnn_attention import AttentivePoolLayer
    from torch import Tensor


class WindowNet(torch.nn.Module):
    """TitaNet from normalised log-mel windows to embeddings, with the weights of NeMo's model."""

    def __init__(self, model: EncDecSpeakerLabelModel) -> None:
        super().__init__()
        blocks = [_Block(block) for block in model.encoder.encoder]
        self.blocks = torch.nn.ModuleList(blocks)
        #: Half of every kernel: how many frames the convolutions look to each side.
        self.half_kernels: int = sum(weight.shape[-1] // 2 for block in blocks for weight in block.depthwise)
        self.pool = _AttentivePool(model.decoder._pooling)
        if len(model.decoder.emb_layers) != 1:
            raise ValueError(f"decoder: expected one embedding layer, found {len(model.decoder.emb_layers)}")
        norm, conv = model.decoder.emb_layers[0]
        scale, shift = _affine(norm)
        weight = conv.weight[..., 0]
        self.embed = _linear(weight * scale, conv.bias + weight @ shift)

    def forward(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeddings of windows.

        Parameters
        ----------
        mel : ``(windows, mel frames, mels)``, not normalised.
        frames : ``(windows,)`` how many mel frames of each count; None where all do.

        Returns
        -------
        ``(windows, 192)`` float32.
        """
        dtype = self.embed.weight.dtype
        mask: Tensor | None = None
        count: Tensor | int = mel.shape[1]
        if frames is not None:
            mask = (torch.arange(mel.shape[1], device=mel.device) < frames[:, None])[..., None]
            count = frames[:, None]
        mean, deviation = _mean_deviation(mel, mask)
        # Source of count - 1 and 1e-5: NeMo's normalize_batch. The latter also keeps silence finite.
        deviation = deviation * (count / (count - 1)) ** 0.5 + 1e-5
        x = ((mel - mean[:, None]) / deviation[:, None]).to(dtype)
        for block in self.blocks:
            x = block(x, mask, lambda out: out.mean(1, keepdim=True) if mask is None else _masked_mean(out, mask))
        embedding: Tensor = self.embed(self.pool(x, mask))
        return embedding.float()


class _Block(torch.nn.Module):
    """NeMo's JasperBlock: separable convolutions with batch norm, squeeze-and-excite, maybe a residual."""

    def __init__(self, block: JasperBlock) -> None:
        super().__init__()
        kinds = [type(part).__name__ for part in block.mconv]
        one = ["MaskedConv1d", "MaskedConv1d", "BatchNorm1d"]
        repeat = kinds.count("BatchNorm1d")
        if kinds != [*[*one, "ReLU", "Dropout"] * (repeat - 1), *one, "SqueezeExcite"]:
            raise ValueError(f"encoder block: expected separable convolutions and squeeze-excite, found {kinds}")
        self.depthwise = torch.nn.ParameterList()
        self.pointwise = torch.nn.ModuleList()
        for at in range(0, 5 * repeat, 5):
            depth, point, norm = (block.mconv[at].conv, block.mconv[at + 1].conv, block.mconv[at + 2])
            if (depth.stride, depth.dilation, point.kernel_size) != ((1,), (1,), (1,)) or depth.kernel_size[0] % 2 == 0:
                raise ValueError("encoder block: expected stride 1, dilation 1 and odd kernels")
            folded = _folded(point, norm)
            if depth.kernel_size == (1,):
                # Only a factor a channel: into the next layer with it.
                folded.weight = _frozen(folded.weight * depth.weight[:, 0, 0])
            # As two-dimensional over (1, frames): channels-last convolutions are many times faster on CPUs.
            self.depthwise.append(_frozen(depth.weight[:, :, None]))
            self.pointwise.append(folded)
        excite = block.mconv[-1]
        if excite.context_window >= 0:
            raise ValueError(f"encoder block: expected squeeze-excite over all frames, found {excite.context_window}")
        self.squeeze, self.excite = (_linear(excite.fc[at].weight) for at in (0, 2))
        self.residual = None if block.res is None else _folded(block.res[0][0].conv, block.res[0][1])

    def forward(self, x: Tensor, mask: Tensor | None, average: Callable[[Tensor], Tensor]) -> Tensor:
        """``(windows, frames, channels)`` → the same with this block's channels; `average` is over a window's frames."""
        out = x
        for index, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            out = functional.relu_(out) if index else out
            kernel = depthwise.shape[-1]
            if kernel > 1:
                image = (out if mask is None else out * mask).transpose(1, 2)[:, :, None]
                image = functional.conv2d(image, depthwise, padding=(0, kernel // 2), groups=image.shape[1])
                out = image[:, :, 0].transpose(1, 2)
            out = pointwise(out)
        out = out.mul_(torch.sigmoid(self.excite(functional.relu_(self.squeeze(average(out))))))
        if self.residual is not None:
            out += self.residual(x)
        return functional.relu_(out)


class _AttentivePool(torch.nn.Module):
    """NeMo's AttentivePoolLayer: mean and deviation over frames, weighted by attention per channel."""

    def __init__(self, pool: AttentivePoolLayer) -> None:
        super().__init__()
        if type(pool).__name__ != "AttentivePoolLayer":
            raise ValueError(f"decoder: expected pool_mode attention, found {type(pool).__name__}")
        tdnn, _, score = pool.attention_layer
        weight = tdnn.conv_layer.weight
        if weight.shape[-1] != 1 or score.weight.shape[-1] != 1:
            raise ValueError("decoder: expected attention with kernels of one frame")
        # The layer reads [x, mean, deviation]; the last two are the same in every frame: multiply them once.
        channels = weight.shape[1] // 3
        self.frame = _linear(weight[:, :channels, 0])
        self.context = _linear(weight[:, channels:, 0], tdnn.conv_layer.bias)
        scale, shift = _affine(tdnn.bn)
        self.scale, self.shift = _frozen(scale), _frozen(shift)
        self.score = _linear(score.weight[..., 0], score.bias)
        self.eps: float = pool.eps

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``(windows, frames, channels)`` → ``(windows, 2 * channels)``."""
        # In float32: squares of half-precision numbers leave its range.
        wide = x.float()
        context = self.context(torch.cat(_mean_deviation(wide, mask, self.eps), dim=1).to(x.dtype))[:, None]
        hidden = torch.tanh(functional.relu_(self.frame(x) + context) * self.scale + self.shift)
        score = self.score(hidden)
        if mask is not None:
            score = score.masked_fill(~mask, -math.inf)
        # A softmax over frames, left undivided.
        attention = (score - score.amax(1, keepdim=True)).float().exp_()
        return torch.cat(_mean_deviation(wide, attention, self.eps), dim=1).to(x.dtype)


def _mean_deviation(x: Tensor, weight: Tensor | None, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation (at least sqrt(eps)) over frames: ``(n, frames, dim)`` → two ``(n, dim)``."""
    if weight is None:
        mean = x.mean(1)
        variance = (x - mean[:, None]).square_().mean(1)
    else:
        total = weight.sum(1)
        mean = (x * weight).sum(1) / total
        variance = (x - mean[:, None]).square_().mul_(weight).sum(1) / total
    return mean, variance.clamp_min(eps).sqrt()


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return ((x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).to(x.dtype)


def _frozen(x: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(x.detach().clone(), requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None = None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = _frozen(weight)
    if bias is not None:
        layer.bias = _frozen(bias)
    return layer


def _affine(norm: torch.nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Batch norm in eval mode as scale and shift."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm: expected running statistics, found none")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _folded(conv: torch.nn.Conv1d, norm: torch.nn.BatchNorm1d) -> torch.nn.Linear:
    """A convolution with a kernel of one frame, and the batch norm after it, as one linear layer."""
    scale, shift = _affine(norm)
    bias = shift if conv.bias is None else shift + conv.bias * scale
    return _linear(conv.weight[..., 0] * scale[:, None], bias)
