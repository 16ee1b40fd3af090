"""Noise, and what comes after the microphone: spectra, SNRs, bands, codecs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, sosfilt

from featstore.simulation import channel
from featstore.simulation import noise as noise_module
from featstore.simulation.mix import mix
from featstore.simulation.noise import _stretched, coloured, hum
from featstore.simulation.recipe import CODECS, Channel, Noise, Recipe
from featstore.simulation.simulate import simulate
from featstore.simulation.speech import Piece
from featstore.types import Utterance
from tests.featstore.simulation.conftest import TONE_HZ

RATE = 8_000
TALK = Recipe("talk", 1, speakers=2, duration_s=30, overlap=0.1, sample_rate_hz=RATE, level_sd_db=0.0)


def level_db(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


def talk(seconds: float = 30.0) -> list[tuple[float, str, Piece]]:
    """Two voices, half a second of noise each every two seconds."""
    rng = np.random.default_rng(0)
    piece = Piece(rng.normal(0, 0.05, RATE // 2).astype(np.float32), 0.0, np.array([[0.0, 0.5]]))
    return [
        (at, name, piece) for name, first in (("s0", 0.2), ("s1", 1.2)) for at in np.arange(first, seconds - 1, 2.0)
    ]


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_asked(slope: float) -> None:
    wave = coloured(np.random.default_rng(0), 1 << 18, 16_000, slope)
    power = np.abs(np.fft.rfft(wave)) ** 2
    octave = [
        power[(f := np.fft.rfftfreq(len(wave), 1 / 16_000)) >= low][: int(low * len(wave) / 16_000)].mean()
        for low in (200, 400, 3200)
    ]
    assert f[1] > 0 and 10 * np.log10(octave[0] / octave[1]) == pytest.approx(3.01 * slope, abs=0.3)
    assert 10 * np.log10(octave[0] / octave[2]) == pytest.approx(4 * 3.01 * slope, abs=0.3)
    assert np.mean(wave**2) == pytest.approx(1.0, abs=0.15)
    low, at_50, at_100 = (power[(f >= a) & (f < b)].mean() for a, b in ((5, 45), (45, 55), (95, 105)))
    assert 10 * np.log10(low / at_50) == pytest.approx(0, abs=0.7)  # flat below 50 Hz
    assert 10 * np.log10(at_50 / at_100) == pytest.approx(3.01 * slope, abs=0.8)


def test_hum_is_50_or_60_hz_and_harmonics() -> None:
    bases = set()
    for seed in range(8):
        wave = hum(np.random.default_rng(seed), 2 * RATE, RATE)
        peaks = np.flatnonzero(np.abs(np.fft.rfft(wave)) > 1) / 2
        base = 50 if (peaks % 50 == 0).all() else 60
        assert peaks.tolist() == [base * k for k in range(1, 9)]
        bases.add(base)
    assert bases == {50, 60}


def test_blocks_fade_into_each_other_at_the_same_power() -> None:
    rng = np.random.default_rng(0)
    asked: list[int] = []
    wave = _stretched(lambda size: (asked.append(size), rng.standard_normal(size))[1], 95 * RATE, RATE)
    assert len(wave) == 95 * RATE and max(asked) == 20 * RATE  # memory for a block, not for the whole
    powers = np.square(wave.reshape(95, -1)).mean(axis=1)
    np.testing.assert_allclose(powers, 1, atol=0.1)
    assert len(_stretched(rng.standard_normal, 5 * RATE, RATE)) == 5 * RATE


def test_the_snr_is_that_of_the_mixture() -> None:
    """From outside: the same session with and without; speech is measured where there are turns."""
    for seed in range(6):
        noisy = replace(TALK, noise=Noise(coloured=1.0, hum=0.5, snr_db=(0.0, 20.0)))
        dry, turns, none = mix(talk(), TALK, np.random.default_rng(seed), 30 * RATE, [], [])
        wet, same, facts = mix(talk(), noisy, np.random.default_rng(seed), 30 * RATE, [], [])
        assert turns == same and none == {}
        speaking = np.zeros(len(dry), bool)
        for turn in turns:
            speaking[round(turn.start_s * RATE) : round(turn.end_s * RATE)] = True
        got = level_db(dry[speaking]) - level_db(wet - dry)
        assert facts["noise"]["snr_db"] == pytest.approx(got, abs=0.02)
        assert facts["noise"]["asked_snr_db"] == pytest.approx(got, abs=0.2)
        single = [facts["noise"][kind]["snr_db"] for kind in ("coloured", "hum") if kind in facts["noise"]]
        assert got <= min(single) + 0.1 and all(0 <= snr <= 20 for snr in single)


def test_one_kind_of_noise_does_not_change_another() -> None:
    def found(**shares: float) -> dict:
        recipe = replace(TALK, noise=Noise(**shares))
        return mix(talk(), recipe, np.random.default_rng(3), 30 * RATE, [], [])[2]["noise"]

    assert found(coloured=1.0)["coloured"] == found(coloured=1.0, hum=1.0)["coloured"]
    assert found(hum=1.0)["hum"] == found(coloured=1.0, hum=1.0)["hum"]


def strength(wave: np.ndarray, hz: float) -> float:
    return float(np.abs(np.mean(wave * np.exp(-2j * np.pi * hz * np.arange(len(wave)) / RATE))))


def test_who_babbles_is_not_in_the_session(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(
        TALK, name="bar", sessions=3, duration_s=(6, 6), noise=Noise(babble=1.0, snr_db=(0, 0), babble_voices=9)
    )
    quiet = simulate(corpus, replace(recipe, noise=None), tmp_path / "quiet", split="test")
    assert simulate(corpus, recipe, tmp_path / "loud", split="test").with_noise == 3
    assert quiet.with_noise is None
    for path in sorted((tmp_path / "loud" / "audio").iterdir()):
        loud, calm = soundfile.read(path)[0], soundfile.read(tmp_path / "quiet" / "audio" / path.name)[0]
        rttm = (tmp_path / "loud" / "rttm" / f"{path.stem}.rttm").read_text()
        (other,) = {"s5", "s6", "s7"} - {line.split()[7] for line in rttm.splitlines()}
        heard = {name: np.std(np.abs(np.fft.rfft(loud - calm))[int((TONE_HZ[name] - 20) * 6) : int((TONE_HZ[name] + 20) * 6)])
                 for name in ("s5", "s6", "s7")}  # fmt: skip
        assert max(heard, key=heard.get) == other and sorted(heard.values())[1] < 0.05 * heard[other]


def test_babble_is_of_so_many_voices_as_loud_as_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A voice is a click a second here: its walls' echo apart, a click for each voice, each somewhere else."""
    for name, level in (("loud", 0.5), ("soft", 0.05)):
        wave = np.zeros(2 * RATE)
        wave[100] = level
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE, subtype="FLOAT")
    others = [Utterance(n, str(tmp_path / f"{n}.wav"), 0.0, 2.0, n, n) for n in ("loud", "soft")]
    monkeypatch.setattr(noise_module, "_FAR_S", 1 / RATE)  # next to no echo
    for count in (1, 5):
        voices = noise_module._Sounds(others, np.random.default_rng(0), RATE, [])
        heard = noise_module._babble(voices, count, np.random.default_rng(1), 2 * RATE, RATE)
        clicks = np.abs(heard)[np.abs(heard) > 0.01 * np.abs(heard).max()]
        assert 2 * count >= len(clicks) >= count and clicks.max() < 1e4 * clicks.min()
    sounds = noise_module._Sounds(others, np.random.default_rng(0), RATE, [])
    powers = {round(float(np.mean(sounds.next(2 * RATE) ** 2)), 5) for _ in range(8)}
    assert powers == {1.0}


def test_a_stretch_of_noise_begins_anywhere_in_its_recording(tmp_path: Path) -> None:
    """Its own start counts; one that is too short comes again and again."""
    wave = np.arange(10 * RATE, dtype=np.float32) / (10 * RATE)
    soundfile.write(tmp_path / "n.wav", wave, RATE, subtype="FLOAT")
    sounds = noise_module._Sounds(
        [Utterance("n", str(tmp_path / "n.wav"), 4.0, 6.0, "n")], np.random.default_rng(0), RATE, []
    )
    cuts = [sounds._stretch(sounds.utterances[0], 2.0) for _ in range(50)]
    assert {cut.duration_s for cut in cuts} == {2.0}
    assert 4.0 <= min(c.start_s for c in cuts) < 4.5 and 7.5 < max(c.start_s for c in cuts) <= 8.0
    assert sounds._stretch(sounds.utterances[0], 7.0) is sounds.utterances[0]
    again = sounds.next(13 * RATE)
    np.testing.assert_array_equal(again[: 6 * RATE], again[6 * RATE : 12 * RATE])


def test_babble_needs_a_speaker_more(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(TALK, speakers=3, noise=Noise(babble=0.1))
    with pytest.raises(ValueError, match="needs 4 speakers .* split 'test' of the manifest has 3"):
        simulate(corpus, recipe, tmp_path / "out", split="test")


def test_recorded_noise(tmp_path: Path, corpus: list[Utterance]) -> None:
    """From a manifest; what cannot be read is listed, and where nothing can be, the session fails alone."""
    time = np.arange(40 * RATE) / RATE
    soundfile.write(tmp_path / "fan.wav", 0.1 * np.sin(2 * np.pi * 3333 * time), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "noise.jsonl").write_text(
        '{"audio_filepath": "fan.wav", "duration": 40}\n{"audio_filepath": "bad.wav"}\n'
    )
    noise = Noise(recorded=1.0, manifest=str(tmp_path / "noise.jsonl"), snr_db=(10, 10))
    report = simulate(corpus, replace(TALK, sessions=4, noise=noise), tmp_path / "out", split="train")
    assert report.sessions == report.with_noise == 4 and report.got_snr_db == pytest.approx(10)
    assert {failure["id"] for failure in report.failures} == {"bad"}
    for path in (tmp_path / "out" / "audio").iterdir():
        wave, _ = soundfile.read(path)
        assert strength(wave, 3333) > 20 * strength(wave, 3400)
    (tmp_path / "noise.jsonl").write_text('{"audio_filepath": "bad.wav"}\n')
    report = simulate(corpus, replace(TALK, noise=noise), tmp_path / "none", split="train")
    assert report.sessions == 0 and "no noise can be used" in report.failures[-1]["error"]
    (tmp_path / "noise.jsonl").unlink()
    with pytest.raises(ValueError, match=r"noise.jsonl"):
        simulate(corpus, replace(TALK, noise=noise), tmp_path / "gone", split="train")


# --- after the microphone ------------------------------------------------------------------------------------------


def test_a_band_is_cut_out_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    low = butter(4, 300, "highpass", fs=16_000, output="sos")
    expected = sosfilt(butter(8, 3400, "lowpass", fs=16_000, output="sos"), sosfilt(low, wave))
    monkeypatch.setattr(channel, "_BLOCK", 7_000)
    found = channel.band_limited(wave.copy(), 16_000, 300, 3400)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(channel.band_limited(wave.copy(), 16_000, 0, 8000), wave)
    power = np.abs(np.fft.rfft(found)) ** 2 / np.abs(np.fft.rfft(wave)) ** 2
    hz = np.fft.rfftfreq(len(wave), 1 / 16_000)
    for low_hz, high_hz, loss_db in ((400, 3000, (-1, 1)), (20, 150, (20, 90)), (5000, 7900, (25, 200))):
        inside = power[(hz > low_hz) & (hz < high_hz)]
        assert loss_db[0] < -10 * np.log10(np.median(inside)) < loss_db[1]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_codec_keeps_length_and_place(codec: str, rate: int) -> None:
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.normal(0, 0.1, 3 * 500), rate // 500)[: 3 * rate]  # below 250 Hz, most of it
    wave = np.zeros(3 * rate + 77, np.float32)
    wave[: len(slow)] = slow * np.hanning(len(slow))
    found = channel.coded(wave, rate, codec)
    assert found.dtype == np.float32 and len(found) == len(wave)
    size = 2 * len(wave)
    match = np.fft.irfft(np.conj(np.fft.rfft(wave, size)) * np.fft.rfft(found, size))
    assert min(int(match.argmax()), size - int(match.argmax())) <= rate // 2000
    assert np.corrcoef(found, wave)[0, 1] > (0.8 if codec == "gsm" else 0.95)
    assert np.array_equal(found, wave) == (codec == "none")
    np.testing.assert_array_equal(found, channel.coded(wave, rate, codec))


def test_a_channel_is_drawn_for_each_session_and_the_level_is_its_own() -> None:
    recipe = replace(
        TALK, level_db=(-45, -25), channel=Channel(bands_hz=((0, 4000), (300, 3400)), codecs=("none", "ulaw"))
    )
    drawn, levels = set(), []
    for seed in range(20):
        session, _, facts = mix(talk(), recipe, np.random.default_rng(seed), 30 * RATE, [], [])
        drawn.add((*facts["channel"]["band_hz"], facts["channel"]["codec"]))
        levels.append(level_db(session))
        assert facts["level_db"] == pytest.approx(levels[-1], abs=0.01)
    assert drawn == {(a, b, c) for a, b in ((0, 4000), (300, 3400)) for c in ("none", "ulaw")}
    assert -45.5 < min(levels) < -40 and -30 < max(levels) < -24.5
    session, _, facts = mix(talk(), replace(TALK, level_db=(3, 3)), np.random.default_rng(0), 30 * RATE, [], [])
    assert np.abs(session).max() == pytest.approx(0.99) and facts["level_db"] < 0  # as loud as can be


def test_each_kind_of_noise_is_in_its_share_of_the_sessions() -> None:
    """Over 400 sessions; a share of 0 is in none, of 1 in all."""
    noise = Noise(coloured=0.25, hum=0.75, snr_db=(5.0, 5.0))
    counts = {"coloured": 0, "hum": 0, "": 0}
    for seed in range(400):
        session = np.zeros(800, np.float32)
        facts = noise_module.add_noise(session, 0.01, noise, np.random.default_rng(seed), RATE, [], [])
        kinds = set(facts) - {"asked_snr_db", "snr_db"}
        assert kinds <= {"coloured", "hum"} and session.any() == bool(kinds)
        for kind in kinds or {""}:
            counts[kind] += 1
    assert counts["coloured"] / 400 == pytest.approx(0.25, abs=0.06) and counts["hum"] / 400 == pytest.approx(
        0.75, abs=0.06
    )
    assert counts[""] / 400 == pytest.approx(0.75 * 0.25, abs=0.06)
    always = replace(noise, coloured=1.0, hum=0.0)
    for seed in range(40):
        facts = noise_module.add_noise(
            np.zeros(800, np.float32), 0.01, always, np.random.default_rng(seed), RATE, [], []
        )
        assert set(facts) == {"coloured", "asked_snr_db", "snr_db"} and facts["coloured"] == {"snr_db": 5.0}
        assert (facts["asked_snr_db"], facts["snr_db"]) == pytest.approx((5.0, 5.0), abs=1e-3)


@pytest.mark.parametrize(
    ("codec", "container", "coding", "rate", "quality"),
    [
        ("ulaw", "WAV", "ULAW", 8000, {}),
        ("alaw", "WAV", "ALAW", 8000, {}),
        ("gsm", "WAV", "GSM610", 8000, {}),
        ("opus", "OGG", "OPUS", 16000, {"compression_level": 0.9}),
        ("mp3", "MP3", "MPEG_LAYER_III", 16000, {"compression_level": 0.9}),
    ],
)
def test_a_codec_is_the_one_it_is_called(
    tmp_path: Path, codec: str, container: str, coding: str, rate: int, quality: dict
) -> None:
    """At its own rate nothing is resampled: libsndfile's file of it, read back."""
    wave = (0.2 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.float32)
    soundfile.write(tmp_path / "a", wave, rate, format=container, subtype=coding, **quality)
    expected = soundfile.read(tmp_path / "a", dtype="float32")[0][: len(wave)]
    found = channel.coded(wave, rate, codec)
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert len(found) == len(wave) and not found[len(expected) :].any()


def test_a_channel_that_cuts_nothing_says_what_it_passes() -> None:
    """Up to half the sampling rate, whatever it was asked to pass beyond that."""
    recipe = replace(TALK, channel=Channel())
    session, _, facts = mix(talk(5.0), recipe, np.random.default_rng(0), 5 * RATE, [], [])
    dry, _, _ = mix(talk(5.0), TALK, np.random.default_rng(0), 5 * RATE, [], [])
    assert facts["channel"] == {"band_hz": [0.0, 4000.0], "codec": "none"}
    np.testing.assert_array_equal(session, dry)


def test_babble_comes_by_way_of_walls_of_0_3_seconds(tmp_path: Path) -> None:
    """A click's echo has fallen by 60 dB after so long: by 40 dB between its first and its last tenth of a second."""
    wave = np.zeros(4 * RATE)
    wave[100] = 0.5
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    others = [Utterance("a", str(tmp_path / "a.wav"), 0.0, 4.0, "a", "a")]
    fell = []
    for seed in range(12):
        sounds = noise_module._Sounds(others, np.random.default_rng(seed), RATE, [])
        heard = noise_module._babble(sounds, 1, np.random.default_rng(seed), 4 * RATE, RATE)
        begins = int(np.argmax(np.abs(heard) > 1e-3 * np.abs(heard).max()))
        if begins < 3 * RATE:
            parts = [heard[begins + round(at * RATE) : begins + round((at + 0.1) * RATE)] for at in (0.0, 0.2)]
            fell.append(level_db(parts[0]) - level_db(parts[1]))
    assert len(fell) > 5 and np.mean(fell) == pytest.approx(40, abs=2)
