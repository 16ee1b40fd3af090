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
from featstore.corpora.audio_files import audio_files
from featstore.testing import speech_like
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


@pytest.mark.parametrize(("name", "alike"), [("a.wav", 0.999), ("a.flac", 0.999), ("a.ogg", 0.9), ("a.mp3", 0.9)])
def test_made_up_speech_of_every_kind_decodes(tmp_path: Path, name: str, alike: float) -> None:
    wave = 5 * speech_like(8000, 2.0)
    found = load(write(tmp_path / name, wave, 8000), 24000)
    assert len(found) == pytest.approx(48000, abs=2)
    expected = soxr.resample(wave, 8000, 24000, quality="HQ")
    size = min(len(found), len(expected))
    assert np.corrcoef(found[:size], expected[:size])[0, 1] > alike
    assert found.std() == pytest.approx(expected.std(), rel=0.1)


def test_real_speech_of_every_kind_decodes(speech_dir: Path) -> None:
    eight_khz = next((speech_dir / "fsdd" / "recordings").glob("*.wav"))
    assert len(load(eight_khz, 24000)) == pytest.approx(sf.info(eight_khz).duration * 24000, abs=2)
    flac = next((speech_dir / "librispeech" / "test-other").rglob("*.flac"))
    assert np.abs(load(flac, 24000)).max() > 0.01


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_a_cut_is_seen_behind_chunks_of_any_size(tmp_path: Path, size: int) -> None:
    """RIFF fills a chunk of an odd size up by one byte, which the size does not count."""
    whole = Path(write(tmp_path / "plain.wav", tone(1.0), 8000)).read_bytes()
    chunk = b"note" + size.to_bytes(4, "little") + bytes(size + size % 2)
    data = b"RIFF" + (len(whole) - 8 + len(chunk)).to_bytes(4, "little") + whole[8:36] + chunk + whole[36:]
    (tmp_path / "a.wav").write_bytes(data)
    np.testing.assert_array_equal(load(str(tmp_path / "a.wav"), 8000), load(str(tmp_path / "plain.wav"), 8000))
    (tmp_path / "a.wav").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="cut short: the header promises 16000 bytes of samples, the file holds 15999"):
        load(str(tmp_path / "a.wav"), 8000)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_not_cut(tmp_path: Path, size: int) -> None:
    """Who writes to a pipe cannot come back to say how long it became."""
    data = Path(write(tmp_path / "plain.wav", tone(1.0), 8000)).read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:40] + size.to_bytes(4, "little") + data[44:])
    audio._check_wav_is_whole(tmp_path / "a.wav")
    if size:
        assert len(load(str(tmp_path / "a.wav"), 8000)) == 8000


def test_limits_by_hand(tmp_path: Path) -> None:
    """A manifest may pass the end by 0.05 s, and no more; below 0.00001 of full scale there is nothing to hear."""
    path = write(tmp_path / "a.wav", tone(1.0), 8000)
    assert len(load(utterance(path, 0.5, 0.55), 8000)) == 4000
    with pytest.raises(ValueError, match="the file ends at 1.000 s"):
        load(utterance(path, 0.5, 0.5505), 8000)
    with pytest.raises(ValueError, match="the file ends at"):
        load(utterance(path, 1.0, 0.01), 8000)
    with pytest.raises(ValueError, match="shorter than one sample"):
        load(utterance(path, 0.5, 0.00001), 8000)
    assert audio.duration_s(path) == 1.0
    for peak, heard in ((0.9e-5, False), (1.1e-5, True)):
        quiet = write(tmp_path / "q.wav", np.full(800, -peak, np.float32), 8000, "FLOAT")
        assert len(load(quiet, 8000, silence_ok=True)) == 800
        if heard:
            assert len(load(quiet, 8000)) == 800
        else:
            with pytest.raises(ValueError, match="silent"):
                load(quiet, 8000)
    # The second of a bad sample is the file's, also where a segment is read and blocks went before it.
    wave = tone(40.0)
    wave[35 * 8000] = np.inf
    late = write(tmp_path / "inf.wav", wave, 8000, "FLOAT")
    with pytest.raises(ValueError, match="NaN or infinite at 35.000 s"):
        load(utterance(late, 2.0), 8000)


@pytest.mark.parametrize(
    "suffix", ".wav .flac .ogg .opus .mp3 .aiff .aif .aifc .au .caf .w64 .rf64 .sph .nist .oga .WAV".split()
)
def test_what_is_called_like_audio_is_audio(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "deep").mkdir()
    for name in (f"deep/a{suffix}", f".b{suffix}", "c.txt"):
        (tmp_path / name).touch()
    assert audio_files(tmp_path) == audio_files(tmp_path / f"deep/a{suffix}") == [tmp_path / f"deep/a{suffix}"]
    assert audio_files(tmp_path / "c.txt") == audio_files(tmp_path / f".b{suffix}") == []
