"""Audio of every kind comes in right or is refused in one clear line."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from featstore import Utterance
from featstore.corpora import audio
from featstore.corpora.audio import load
from tests.fakes import tone


def write(path: Path, data: np.ndarray, rate_hz: int, subtype: str | None = None) -> str:
    sf.write(path, data, rate_hz, subtype=subtype)
    return str(path)


def utterance(audio: str, start_s: float = 0.0, duration_s: float = float("nan")) -> Utterance:
    return Utterance("u", audio, start_s, duration_s, "r")


def test_resampling_equals_one_shot_soxr(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 70).astype(np.float32)  # three blocks
    path = write(tmp_path / "a.wav", noise, 8000, "FLOAT")
    for rate_hz in (16000, 24000):
        found = load(path, rate_hz)
        expected = soxr.resample(noise, 8000, rate_hz, quality="HQ")
        assert abs(len(found) - len(expected)) <= 1
        np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-4)
    np.testing.assert_array_equal(load(path, 8000), noise)


@pytest.mark.parametrize(("rate_hz", "channels", "subtype"), [
    (8000, 1, "PCM_16"), (96000, 1, "PCM_24"), (44100, 2, "PCM_16"), (16000, 8, "PCM_16"), (16000, 1, "PCM_U8"),
    (16000, 1, "FLOAT"), (22050, 1, "ULAW"),
])  # fmt: skip
def test_any_rate_width_and_channels_give_the_same_tone(
    tmp_path: Path, rate_hz: int, channels: int, subtype: str
) -> None:
    data = np.repeat(tone(1.0, rate_hz)[:, None], channels, axis=1)
    found = load(write(tmp_path / "a.wav", data, rate_hz, subtype), 24000)
    assert len(found) == pytest.approx(24000, abs=2)
    assert found.dtype == np.float32
    inner = slice(2400, -2400)
    np.testing.assert_allclose(found[:24000][inner], tone(1.0, 24000)[: len(found)][inner], atol=0.02)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(0.5)
    path = write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1), 8000, "FLOAT")
    np.testing.assert_allclose(load(path, 8000), left / 2, atol=1e-6)


def test_a_segment_is_cut_where_the_manifest_says(tmp_path: Path) -> None:
    ramp = np.linspace(0.1, 0.9, 8000, dtype=np.float32)
    path = write(tmp_path / "a.wav", ramp, 8000, "FLOAT")
    np.testing.assert_array_equal(load(utterance(path, 0.25, 0.5), 8000), ramp[2000:6000])
    np.testing.assert_array_equal(load(utterance(path, 0.25), 8000), ramp[2000:])


def _with_samples(flac: bytes, count: int) -> bytes:
    """A FLAC file that claims another number of samples: 36 bits of STREAMINFO."""
    return flac[:21] + (flac[21] & 0xF0 | count >> 32).to_bytes() + (count & 0xFFFFFFFF).to_bytes(4) + flac[26:]


def bad_files(tmp_path: Path) -> dict[str, tuple[Utterance, str]]:
    good = write(tmp_path / "good.wav", tone(1.0), 8000)
    whole = Path(good).read_bytes()
    flac = write(tmp_path / "good.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 80000), 8000)
    files = {
        "empty.wav": b"",
        "text.wav": b"this is no audio at all, whatever its name says",
        "cut.wav": whole[: len(whole) // 2],
        "cut.flac": Path(flac).read_bytes()[:40000],
        "header.wav": whole[:20],
        "endless.flac": _with_samples(Path(flac).read_bytes(), 2**36 - 1),
        "slow.wav": whole[:24] + (1).to_bytes(4, "little") + whole[28:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    nan = tone(1.0)
    nan[4000] = np.nan
    write(tmp_path / "nan.wav", nan, 8000, "FLOAT")
    write(tmp_path / "zero.wav", np.zeros(0, np.float32), 8000)
    write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 8000)
    expect = {
        "absent.wav": "no such file",
        "empty.wav": "the file is empty",
        "text.wav": "not audio",
        "header.wav": "not audio|no samples",
        "cut.wav": "cut short",
        "cut.flac": "cut short|damaged|no samples",
        "endless.flac": "cut short|damaged",
        "slow.wav": "sampled at 1 Hz, expected 1000 Hz or more",
        "nan.wav": "NaN or infinite at 0.500 s",
        "zero.wav": "no samples",
        "silent.wav": "silent",
    }
    cases = {name: (utterance(str(tmp_path / name)), words) for name, words in expect.items()}
    cases["folder"] = (utterance(str(tmp_path)), "is a folder")
    cases["wrong duration"] = (utterance(good, 0.5, 0.7), r"the manifest says 0.5 s \+ 0.7 s, the file ends at 1.000 s")
    cases["start past the end"] = (utterance(good, 3.0), "the file ends at")
    return cases


CASES = ["absent.wav", "empty.wav", "text.wav", "header.wav", "cut.wav", "cut.flac", "endless.flac", "slow.wav",
         "nan.wav", "zero.wav", "silent.wav", "folder", "wrong duration", "start past the end"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_audio_is_one_clear_line(tmp_path: Path, case: str) -> None:
    source, words = bad_files(tmp_path)[case]
    with pytest.raises(ValueError, match=words) as error:
        load(source, 16000)
    assert source.audio in str(error.value)
    assert "\n" not in str(error.value)


def test_rounding_in_a_manifest_is_no_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0), 8000)
    assert len(load(utterance(path, 0.0, 1.04), 8000)) == 8000


def test_a_length_is_believed_as_samples_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 70), 8000)
    expected = load(path, 16000)
    monkeypatch.setattr(audio, "_BELIEVED_SAMPLES", 1000)
    np.testing.assert_array_equal(load(path, 16000), expected)

    def no_memory(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(ValueError, match="a.flac: more audio than this machine's memory holds"):
        load(path, 16000)


def test_a_disk_that_fails_is_not_bad_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, failures = write(tmp_path / "a.flac", tone(1.0), 8000), 1
    real = sf.SoundFile

    def sound_file(*arguments: object) -> sf.SoundFile:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sf.LibsndfileError(1)  # what libsndfile says of EIO at the beginning of a file
        return real(*arguments)

    def unreadable(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sf, "SoundFile", sound_file)
    assert len(load(path, 8000)) == 8000
    failures = 9
    with pytest.raises(ValueError, match="not audio"):
        load(path, 8000)
    monkeypatch.setattr(audio, "_check_wav_is_whole", lambda path: None)
    monkeypatch.setattr(audio, "open", unreadable, raising=False)
    with pytest.raises(OSError, match="Input/output error"):
        load(path, 8000)
    with pytest.raises(OSError, match="Input/output error"):
        audio.duration_s(path)


@pytest.mark.parametrize(
    ("name", "rate_hz", "subtype", "tolerance"),
    [("a.flac", 16000, "PCM_16", 0.01), ("a.wav", 8000, "PCM_16", 0.01), ("a.ogg", 16000, "VORBIS", 0.05),
     ("a.ogg", 24000, "OPUS", 0.05), ("a.mp3", 16000, "MPEG_LAYER_III", 0.05)],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_speech(
    tmp_path: Path, name: str, rate_hz: int, subtype: str, tolerance: float
) -> None:
    """Bursts of a tone: as long as the file says, each burst where and as loud as it was written."""
    loud = np.repeat([0.0, 1.0, 0.0, 0.5, 0.0, 1.0], rate_hz // 2)
    path = write(tmp_path / name, (loud * tone(3.0, rate_hz)).astype(np.float32), rate_hz, subtype)
    found = load(path, 24000)
    assert len(found) == pytest.approx(72000, abs=2)
    assert audio.duration_s(path) == pytest.approx(3.0, abs=1e-3)
    inner = found[: 6 * 12000].reshape(6, 12000)[:, 2400:-2400]
    rms = np.sqrt((inner**2).mean(1))
    assert rms == pytest.approx(0.5 / np.sqrt(2) * loud[:: rate_hz // 2], abs=tolerance)


def test_real_speech_of_every_kind_decodes(speech_dir: Path) -> None:
    eight_khz = next((speech_dir / "fsdd" / "recordings").glob("*.wav"))
    assert len(load(eight_khz, 24000)) == pytest.approx(sf.info(eight_khz).duration * 24000, abs=2)
    flac = next((speech_dir / "librispeech" / "test-other").rglob("*.flac"))
    assert np.abs(load(flac, 24000)).max() > 0.01
