"""The extraction's networks and losses, each once more as anyone would write it down."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.extraction import si_sdr
from trainers.config import FitConfig
from trainers.tse.config import TseConfig
from trainers.tse.measure import extract
from trainers.tse.network import RATE_HZ, Extractor, best_assignment, loss, unit


def waves(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_default_is_the_one_that_was_measured() -> None:
    assert FitConfig.make("tse").to_json() == {
        **{"kind": "tse", "protocol": "sound", "experiment": "", "seed": 0, "train_fraction": 1.0, "device": "auto"},
        **{"feature": "titanet", "condition": "embedding", "architecture": "tcn", "channels": 128, "blocks": 8},
        **{
            "repeats": 2,
            "window": 512,
            "hop": 128,
            "voices": 3,
            "least_voices": 1,
            "remixed": 0.0,
            "enrolled": 0.5,
            "jitter": 0.5,
        },
        **{"sets": "", "steps": 6000, "batch_size": 8, "crop_s": 3.0, "lr": 1e-3, "looks": 10, "dev_voices": 100},
        **{"test_mixtures": 1000, "rated": 100, "checkpoint_steps": 200},
    }
    small = FitConfig.make("tse", preset="small").to_json()
    assert {
        key: small[key]
        for key in ("architecture", "channels", "window", "hop", "crop_s", "least_voices", "remixed", "steps", "lr")
    } == {
        **{
            "architecture": "gru",
            "channels": 128,
            "window": 1024,
            "hop": 512,
            "crop_s": 2.0,
            "least_voices": 2,
            "remixed": 1.0,
            "steps": 3200,
            "lr": 2e-3,
        }
    }
    assert RATE_HZ == 16000


def test_the_loss_is_minus_si_sdr_up_to_a_ceiling() -> None:
    reference, noise = waves(3, 2000), waves(3, 2000, seed=1)
    for level in (0.3, 1.0, 5.0):
        estimate = 0.4 * reference + level * noise + 0.2
        expected = [-si_sdr(e.numpy(), r.numpy()) for e, r in zip(estimate, reference + 3, strict=True)]
        # what the ceiling of 30 dB adds to the noise: a thousandth of the signal
        expected = [10 * math.log10(10 ** (db / 10) + 1e-3) for db in expected]
        assert loss(estimate, reference + 3).tolist() == pytest.approx(expected, abs=1e-3)
    assert loss(2 * reference, reference).tolist() == pytest.approx([-30] * 3, abs=0.01)
    assert loss(2 * reference, reference, ceiling_db=20).tolist() == pytest.approx([-20] * 3, abs=0.01)


def test_the_best_assignment_of_the_voices_that_there_are() -> None:
    estimates, references = waves(2, 3, 500), torch.zeros(2, 3, 500)
    references[0] = estimates[0, [2, 0, 1]] + 0.5 * waves(3, 500, seed=2)
    references[1, :2] = estimates[1, [1, 2]] + 0.5 * waves(2, 500, seed=3)
    found = best_assignment(estimates, references, torch.tensor([3, 2]))
    for row, count in ((0, 3), (1, 2)):
        of = [
            np.mean([float(loss(estimates[row, e], references[row, r])) for r, e in enumerate(order)])
            for order in itertools.permutations(range(3), count)
        ]
        assert float(found[row]) == pytest.approx(min(of), rel=1e-5)
    assert unit(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])


def made(*settings: str, size: int = 5) -> Extractor:
    config = FitConfig.make("tse", settings=("channels=6", "blocks=3", "repeats=2", "window=64", "hop=16", *settings))
    assert isinstance(config, TseConfig)
    torch.manual_seed(0)
    return Extractor.of(config, size).eval()


def by_hand(
    network: Extractor, mixture: Tensor, embedding: Tensor | None, window: int, hop: int, voices: int
) -> Tensor:
    """From the mixture's spectrum at one loudness to the masked one, FiLM before each repeat."""
    hann = torch.hann_window(window)
    loudness = (mixture**2).mean(1).sqrt()[:, None]
    spectrum = torch.stft(mixture / loudness, window, hop, window=hann, return_complex=True)
    x = torch.log(spectrum.abs() + 1e-3)
    flat = x.flatten(1)
    x = (x - flat.mean(1)[:, None, None]) / (flat.std(1)[:, None, None] + 1e-3)
    x = network.enter(x)
    for number, part in enumerate(network.parts):
        if embedding is not None:
            layer = network.told[number]
            told = embedding * math.sqrt(embedding.shape[1]) @ layer.weight.T + layer.bias
            channels = x.shape[1]
            x = x * (1 + told[:, :channels, None]) + told[:, channels:, None]
        for block in part if isinstance(part, nn.Sequential) else [part]:
            if isinstance(part, nn.Sequential):
                x = x + block.net(x)
            else:
                heard, _ = block.net(block.norm(x.transpose(1, 2)))
                x = x + block.back(heard).transpose(1, 2)
    told = network.leave(x)
    bins, out = window // 2 + 1, []
    for voice in range(voices):
        real, imaginary = (
            2 * torch.tanh(told[:, (2 * voice + k) * bins : (2 * voice + k + 1) * bins] / 2) for k in (0, 1)
        )
        heard = torch.complex(real, imaginary) * spectrum
        out.append(torch.istft(heard, window, hop, window=hann, length=mixture.shape[1]) * loudness)
    return torch.stack(out, 1)


@pytest.mark.parametrize("architecture", ["tcn", "gru"])
def test_a_network_by_hand(architecture: str) -> None:
    mixture, embedding = 0.03 * waves(2, 700), unit(waves(2, 5, seed=4))
    network = made(f"architecture={architecture}")
    with torch.no_grad():
        found = network(mixture, embedding)
        expected = by_hand(network, mixture, embedding, 64, 16, 1)[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert found.shape == mixture.shape
        torch.testing.assert_close(network(7 * mixture, embedding), 7 * found, rtol=1e-4, atol=1e-6)
        assert (network(mixture, embedding.flip(0)) - found).abs().max() > 1e-4
        several = made(f"architecture={architecture}", "condition=none", "voices=2")
        found = several(mixture)
        torch.testing.assert_close(found, by_hand(several, mixture, None, 64, 16, 2), rtol=1e-4, atol=1e-6)
    assert found.shape == (2, 2, 700) and several.size == 0 and len(several.told) == 0


def test_settings_are_the_network_s_sizes_and_as_made_half_of_the_mixture_comes_out() -> None:
    network = made("voices=4")
    assert (network.size, network.voices, network.window, network.hop) == (5, 1, 64, 16)
    assert [m.dilation[0] for m in network.modules() if isinstance(m, nn.Conv1d) and m.kernel_size == (3,)] == [
        1,
        2,
        4,
    ] * 2
    assert [layer.weight.shape for layer in network.told] == [(12, 5)] * 2 and network.enter.weight.shape == (6, 33, 1)
    recurrent = [m for m in made("architecture=gru", "repeats=3").modules() if isinstance(m, nn.GRU)]
    assert len(recurrent) == 3 and all(m.bidirectional and m.batch_first and m.hidden_size == 6 for m in recurrent)
    for network, given in ((made(), (unit(waves(1, 5)),)), (made("condition=none", "voices=2"), ())):
        with torch.no_grad():
            network.leave[1].weight.zero_()
            mixture = waves(1, 640)
            found = network(mixture, *given).reshape(-1, 640)
        assert len(found) == network.voices
        for voice in found:
            torch.testing.assert_close(voice, 2 * math.tanh(0.25) * mixture[0], rtol=1e-4, atol=1e-4)


def test_what_comes_out_is_the_mean_of_two_answers_half_a_hop_apart() -> None:
    torch.manual_seed(0)
    network = Extractor(size=4, channels=8, blocks=2, repeats=1, window=64, hop=32)
    wave = torch.randn(1003)
    vectors = unit(torch.randn(2, 4))
    found = extract(network, wave.numpy(), vectors.numpy(), torch.device("cpu"))
    with torch.no_grad():
        late = network(torch.nn.functional.pad(wave, (16, 16)).expand(2, -1), vectors)[:, 16:-16]
        early = network(torch.nn.functional.pad(wave, (0, 32)).expand(2, -1), vectors)[:, :-32]
    torch.testing.assert_close(torch.from_numpy(found), (late + early) / 2)
    assert not torch.allclose(late, early, atol=1e-3)
    torch.nn.init.zeros_(network.leave[-1].weight)  # one mask for all, wherever the spectra begin
    half = extract(network, wave.numpy(), vectors.numpy(), torch.device("cpu"))
    torch.testing.assert_close(torch.from_numpy(half), (wave * 2 * math.tanh(0.25)).expand(2, -1), atol=1e-5, rtol=0)
