"""Mimi's codes against moshi's own `encode`, and the codebooks that travel with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featstore.extractors import ExtractorError, create, mimi, mimi_codes, sources, weights
from featstore.testing import check_extractor, speech_like


@pytest.fixture(scope="module")
def codes() -> mimi_codes.MimiCodesExtractor:
    return create("mimi-codes", weights="random:0", device="cpu")


def moshis(weights_name: str, n_q: int) -> torch.nn.Module:
    """A whole MimiModel of moshi's with the same weights."""
    if weights_name == "demo":
        source, rest = (
            sources.resolve("demo", file="", demo=name, suffixes=(".safetensors",))
            for name in ("mimi-nano.safetensors", "mimi-nano-quantizer.safetensors")
        )
        state, config = weights.read_safetensors(source.path)
        more, inner = weights.read_safetensors(rest.path)
        model = mimi.build_mimi(config | inner)
        model.load_state_dict({k: v.float() for k, v in (state | more).items()}, strict=False)
    else:
        model = mimi.build_mimi(mimi.MIMI_NANO)
        weights.randomise(model, 0)
        model.quantizer = mimi_codes.load_quantizer(sources.Source(weights_name))
    model.set_num_codebooks(n_q)
    return model.eval()


def test_codes_hold_the_contract(codes: mimi_codes.MimiCodesExtractor) -> None:
    check_extractor(codes)
    spec = codes.spec
    assert (spec.name, spec.dim, spec.dtype, spec.sample_rate_hz) == ("mimi-codes", 8, "int16", 24000)
    assert (spec.settings["weights"], spec.settings["bins"]) == ("random:0", 64)
    assert "UNTRAINED" in spec.warning
    assert spec.settings["codebooks_sha256"] == codes.codebooks.sha256


@pytest.mark.parametrize(("name", "n_q"), [("random:0", 8), ("random:0", 3), ("demo", 8)])
@pytest.mark.parametrize("seconds", [1.234, 13.0])  # the second in two pieces
def test_codes_are_moshis(name: str, n_q: int, seconds: float) -> None:
    extractor = create("mimi-codes", weights=name, device="cpu", n_q=n_q)
    wave = speech_like(24000, seconds)
    model = moshis(name, n_q)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(wave)[None, None])
        vectors = model.quantizer.decode(expected)[0].T.numpy()
    (found,) = extractor.extract([wave])
    np.testing.assert_array_equal(found, expected[0].T.numpy())
    assert len(np.unique(found)) > 20
    table = extractor.codebooks.table
    assert table.shape == (n_q, extractor.spec.settings["bins"], 512)
    summed = sum(table[k][found[:, k]] for k in range(n_q))
    np.testing.assert_allclose(summed, vectors, atol=1e-5 * np.abs(vectors).max())


def test_the_number_of_books_and_the_quantiser_are_in_the_fingerprint(codes: mimi_codes.MimiCodesExtractor) -> None:
    fewer, other = (
        create("mimi-codes", device="cpu", **s) for s in ({"weights": "random:0", "n_q": 4}, {"weights": "random:1"})
    )
    assert len({e.spec.fingerprint for e in (codes, fewer, other)}) == 3
    assert fewer.spec.settings["quantizer_sha256"] == codes.spec.settings["quantizer_sha256"]
    assert other.spec.settings["quantizer_sha256"] != codes.spec.settings["quantizer_sha256"]


@pytest.mark.parametrize("n_q", [0, 9, "8", 2.0, True])
def test_books_that_are_not_there_are_refused(n_q: object) -> None:
    with pytest.raises(ExtractorError, match=r"^n_q must be a whole number, 1 to 8, found"):
        create("mimi-codes", weights="random:0", device="cpu", n_q=n_q)


def test_an_encoder_without_a_quantiser_is_refused() -> None:
    path = sources.resolve("demo", file="", demo="mimi-nano.safetensors", suffixes=(".safetensors",)).path
    with pytest.raises(ExtractorError, match="no quantiser: these are an encoder's weights alone"):
        create("mimi-codes", weights=str(path), device="cpu")


def test_a_whole_mimi_file_gives_codes_and_any_mimi_latents(tmp_path) -> None:
    from safetensors.torch import save_file

    model = mimi.build_mimi(mimi.MIMI_NANO)
    weights.randomise(model, 3)
    model.quantizer = mimi_codes.load_quantizer(sources.Source("random:3", seed=3))
    import json

    state = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "mimi.safetensors", metadata={"config": json.dumps(mimi.MIMI_NANO)})
    extractor = create("mimi-codes", weights=str(tmp_path / "mimi.safetensors"), device="cpu")
    wave = speech_like(24000, 2.0)
    with torch.inference_mode():
        expected = model.eval().encode(torch.from_numpy(wave)[None, None])[0].T.numpy()
    np.testing.assert_array_equal(extractor.extract([wave])[0], expected)
