"""Mimi's codes: the indices of its residual quantiser, at 12.5 Hz, as moshi's own `encode` gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors import ExtractorError, sources
from featstore.extractors import weights as weights_of
from featstore.extractors.mimi import DEFAULT_WEIGHTS, DIM, MIMI_FULL, MIMI_NANO, WEIGHTS_FILE, MimiExtractor
from featstore.types import MIMI_GRID, Codebooks, FeatureSpec

if TYPE_CHECKING:
    from moshi.quantization import SplitResidualVectorQuantizer

#: Mimi's tensors of it begin with this.
_PREFIX = "quantizer."
_MAX_BINS = 1 << 15  # the store keeps int16


def build_quantizer(config: Mapping[str, Any], device: str = "cpu") -> SplitResidualVectorQuantizer:
    """moshi's quantiser in eval mode; `config` is what stands in `MIMI_FULL` under "quantizer"."""
    from moshi.quantization import SplitResidualVectorQuantizer

    with torch.device(device):
        return SplitResidualVectorQuantizer(**config).eval()


def load_quantizer(source: sources.Source) -> SplitResidualVectorQuantizer:
    """The quantiser of the weights of `source`, all its books.

    Raises
    ------
    WeightsError : the file is damaged, of another architecture, or has no quantiser.
    """
    if source.path is None:
        model = build_quantizer((MIMI_FULL if source.full else MIMI_NANO)["quantizer"])
        weights_of.randomise(model, source.seed)
        generator = torch.Generator().manual_seed(source.seed)
        for name, books in sorted(model.named_buffers()):
            if name.endswith("embedding_sum"):
                books.normal_(generator=generator)
        return model
    state, config = weights_of.read_safetensors(source.path)
    state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not state:
        raise sources.WeightsError(
            f"{source.path.name}: no tensor {_PREFIX}…, so no quantiser: these are an encoder's weights alone. Codes need "
            "the whole of Mimi (hf:REPO, or --weights demo for the small one)"
        )
    try:
        model = build_quantizer((config or MIMI_FULL)["quantizer"], device="meta")
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise sources.WeightsError(
            f"{source.path.name}: its configuration does not make a quantiser: {error}"
        ) from None
    weights_of.load(model, state, source)
    return model


class MimiCodesExtractor:
    """The codes of Mimi's latents: whole numbers, and the codebooks that make vectors of them again.

    The first book (semantic, `rvq_first`) and the others (`rvq_rest`) quantise the same latent; what they stand for is
    added up. Long waves go through Mimi in pieces, whose latents differ from the whole's by a few millionths; so does a
    code where two entries of a book are equally near to that.

    Parameters
    ----------
    weights, device : as of `MimiExtractor`.
    precision : of the encoder; "auto" means float32, as half of it moves many codes.
    n_q : books, the first ones.

    Attributes
    ----------
    codebooks : what the store keeps beside the codes.

    Raises
    ------
    ExtractorError : weights, device or precision cannot be had, or no such number of books.
    """

    def __init__(
        self, weights: str = DEFAULT_WEIGHTS, device: str = "auto", precision: str = "auto", n_q: int = 8
    ) -> None:
        self._mimi = MimiExtractor(weights, device, "float32" if precision == "auto" else precision)
        source = sources.resolve(
            weights, file=WEIGHTS_FILE, demo="mimi-nano-quantizer.safetensors", suffixes=(".safetensors",)
        )
        quantizer = load_quantizer(source)
        if quantizer.dimension < 1 or quantizer.rvq_first.input_dimension != DIM or quantizer.cardinality > _MAX_BINS:
            raise sources.WeightsError(
                f"weights {source.label}: expected a quantiser of {DIM} dimensions and at most {_MAX_BINS} bins, found "
                f"{quantizer.rvq_first.input_dimension} and {quantizer.cardinality}"
            )
        if type(n_q) is not int or not quantizer.n_q_semantic <= n_q <= quantizer.total_codebooks:
            most = quantizer.total_codebooks
            raise ExtractorError(f"n_q must be a whole number, {quantizer.n_q_semantic} to {most}, found {n_q!r}")
        quantizer.set_num_codebooks(n_q)
        quantizer_sha256 = weights_of.state_sha256(quantizer.state_dict())
        self.codebooks = _codebooks(quantizer)
        self.device, self.batch_s, self.told = self._mimi.device, self._mimi.batch_s, self._mimi.told
        self._quantizer = quantizer.to(self.device)
        inner = self._mimi.spec
        self.spec = FeatureSpec(
            name="mimi-codes",
            dim=n_q,
            dtype="int16",
            sample_rate_hz=inner.sample_rate_hz,
            grid=MIMI_GRID,
            model=inner.model,
            weights_sha256=inner.weights_sha256,
            settings={
                **inner.settings,
                "bins": quantizer.cardinality,
                "codebooks_sha256": self.codebooks.sha256,
                "quantizer_sha256": quantizer_sha256,
            },
        )

    def extract(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int16]]:
        """See `featstore.extractors.Extractor.extract`: each ``(samples,)`` → ``(ceil(samples / 1920), n_q)`` int16."""
        with torch.inference_mode():
            self._mimi.told = self.told
            return [self._codes(latent) for latent in self._mimi.extract(waves)]

    def _codes(self, latent: NDArray[np.float32]) -> NDArray[np.int16]:
        codes = self._quantizer.encode(torch.from_numpy(latent).to(self.device).T[None])
        return codes[0].T.to(torch.int16).cpu().numpy()


def _codebooks(quantizer: SplitResidualVectorQuantizer) -> Codebooks:
    parts = [quantizer.rvq_first, quantizer.rvq_rest]
    books, of = [], []
    for number, part in enumerate(parts):
        for layer in list(part.vq.layers)[: part.n_q]:
            codebook: Any = layer._codebook
            books.append(codebook.embedding.detach().float().cpu().numpy())
            of.append(number)
    outputs: list[Any] = [part.output_proj for part in parts]
    projections = [output.weight[..., 0].detach().float().cpu().numpy() for output in outputs]
    return Codebooks(np.stack(books), np.stack(projections), np.array(of, np.int32))
