"""Recordings through a run: what comes out, and that rate, channels, length and pieces change nothing."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

import diarizer.frames
from diarizer import load
from diarizer.answer import Answer
from diarizer.frames import hear
from diarizer.heads import CascadeHead, StitchedHead, Told
from diarizer.sound import Sound
from diarizer.voices import Voice, named
from evaluation.diarization import score
from evaluation.turns import Turns
from featstore import FingerprintMismatch, FrameGrid, Turn, Utterance
from tests.fakes import FakeExtractor
from tests.tones import RATE_HZ, sound_of, turns_of, voice, write
from trainers.diarization.whole import Stitching
from trainers.runs import RunError

pytestmark = pytest.mark.usefixtures("knows_fakes")
SECONDS = 40.0


@pytest.fixture(scope="module")
def turns() -> tuple[Turn, ...]:
    return turns_of(7, SECONDS)


def der(turns, found) -> float:
    return score({"x": Turns.of(turns)}, {"x": found}, uem={"x": np.array([[0.0, SECONDS]])}).corpus.der


def test_a_recording_comes_out_as_turns(tone_run, turns, tmp_path):
    path = write(tmp_path / "meeting.wav", sound_of(turns, SECONDS))
    answer = load(tone_run).diarize(path)
    assert der(turns, answer.turns) < 0.04
    assert answer.recording == "meeting"
    assert answer.turns.speakers == tuple(f"speaker{k + 1}" for k in range(3))  # by arrival
    assert all(0 <= sure <= 1 for sure in answer.sure)
    told = answer.to_json()
    assert sum(s["speaking_s"] for s in told["speakers"]) == pytest.approx(sum(t.end_s - t.start_s for t in answer.turns), abs=0.01)  # fmt: skip
    assert told["duration_s"] == SECONDS
    assert json.loads(json.dumps(told)) == told


def test_turns_end_with_the_recording():
    """Four frames of 0.08 s are more than 0.3 s of sound: the last of them ends with it."""
    active = np.array([[1, 0], [1, 0], [0, 0], [1, 1]], bool)
    sure = np.array([[0.5, 0.1], [0.75, 0.1], [0.1, 0.1], [0.25, 0.375]], np.float32)
    told = Told(active, sure, np.eye(2, dtype=np.float32), FrameGrid(0.04, 0.08))
    answer = Answer.of(told, "x", 0.3, {1: "Ann"})
    assert [(t.start_s, t.end_s, t.speaker) for t in answer.turns] == [
        *((0.0, 0.16, "speaker1"), (0.24, 0.3, "speaker1"), (0.24, 0.3, "Ann")),
    ]
    assert answer.sure.tolist() == [0.625, 0.25, 0.375] and answer.known == ("Ann",)
    assert answer.energy is None and answer.warnings == ()


@pytest.mark.parametrize(
    ("rate_hz", "channels", "kind"), [(8000, 2, "FLOAT"), (16000, 1, "PCM_16"), (44100, 3, "PCM_24")]
)
def test_any_rate_and_any_channels(tone_run, turns, tmp_path, rate_hz, channels, kind):
    wave = np.repeat(sound_of(turns, SECONDS, rate_hz=rate_hz)[:, None], channels, axis=1)
    sf.write(tmp_path / "x.wav", wave, rate_hz, kind)
    assert der(turns, load(tone_run)(tmp_path / "x.wav")) < 0.08


def test_how_long_the_rest_of_a_file_is(tmp_path):
    path = write(tmp_path / "x.wav", voice(1, 5.0))
    for start_s, duration_s, expected in ((0.0, np.nan, 5.0), (2.0, np.nan, 3.0), (2.0, 1.5, 1.5)):
        assert Sound(Utterance("u", str(path), start_s, duration_s, "x")).duration_s == pytest.approx(expected)


def test_an_array_says_the_same_as_its_file(tone_run, turns, tmp_path):
    wave = sound_of(turns, SECONDS)
    sf.write(tmp_path / "x.wav", wave, RATE_HZ, "FLOAT")
    made = load(tone_run)
    from_file, from_array = made(tmp_path / "x.wav"), made(wave, RATE_HZ)
    assert list(from_file) == list(from_array)
    stereo = made((np.stack([wave, wave], axis=1) * 32767).astype(np.int16), RATE_HZ)
    assert der(turns, stereo) < 0.08
    assert {label for _, _, label in from_file.to_annotation("x").itertracks(yield_label=True)} == set(
        from_file.speakers
    )


def test_pieces_change_nothing(monkeypatch):
    """Frames of a recording in pieces are those of the recording in one go, whatever the length of the last piece."""
    encoder = FakeExtractor()
    for samples in (640 * 75 + 1, 640 * 100, 640 * 99 + 639):
        wave = voice(1, samples / RATE_HZ)[:samples]
        whole = encoder.extract([wave])[0]
        for piece_s in (300.0, 0.8, 2.0):
            monkeypatch.setattr(diarizer.frames, "PIECE_S", piece_s)
            monkeypatch.setattr(diarizer.frames, "BEFORE_S", 0.4)
            monkeypatch.setattr(diarizer.frames, "AFTER_S", 0.16)
            with hear(Sound.of_samples(wave, RATE_HZ), {"fake": encoder}) as heard:
                assert heard.num_frames == len(whole)
                stored = whole.astype(np.float16).astype(np.float32)
                np.testing.assert_array_equal(heard.read(["fake"], 0, len(whole)), stored)
                np.testing.assert_array_equal(heard.read(["fake"], 3, 9), stored[3:9])
                assert len(heard.energy) == len(whole)


def test_a_piece_comes_with_what_is_around_it():
    pieces = [np.arange(start, min(start + 4, 10), dtype=np.float32) for start in (0, 4, 8)]
    found = [(wave.tolist(), begin, length) for wave, begin, length in diarizer.frames._surrounded(pieces, 5, 2)]
    assert found == [
        ([0, 1, 2, 3, 4, 5], 0, 4),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4, 4),
        ([3, 4, 5, 6, 7, 8, 9], 5, 2),
    ]


def test_progress_is_told_in_seconds(tone_run, turns, monkeypatch):
    monkeypatch.setattr(diarizer.frames, "PIECE_S", 16.0)
    seen: list[float] = []
    load(tone_run).diarize(sound_of(turns, SECONDS), RATE_HZ, told=seen.append)
    assert seen == pytest.approx([16.0, 32.0, 40.0])


@pytest.mark.parametrize(("limits", "expected"), [({"speakers": 2}, 2), ({"speakers": 5}, 5), ({"max_speakers": 1}, 1), ({"min_speakers": 4}, 4), ({"min_speakers": 1, "max_speakers": 9}, 3)])  # fmt: skip
def test_as_many_speakers_as_asked_for(tone_run, turns, limits, expected):
    made = load(tone_run)
    answer = made.diarize(sound_of(turns, SECONDS), RATE_HZ, **limits)
    with hear(Sound.of_samples(sound_of(turns, SECONDS), RATE_HZ), made.encoders) as frames:
        told = made.head.tell(frames, _limits(limits))
    assert len(told.voices) == expected
    assert len(answer.turns.speakers) <= expected


def _limits(limits):
    from diarizer.diarizer import limits_of

    return limits_of(limits.get("speakers"), limits.get("min_speakers"), limits.get("max_speakers"))


def test_stored_features_say_the_same(tone_run, tone_store):
    made = load(tone_run)
    answer = made.diarize_stored(tone_store, "test/0")
    assert score({"x": Turns.of(tone_store.utterance("test/0").turns)}, {"x": answer.turns}).corpus.der < 0.08
    assert answer.duration_s == 30.0


def test_known_voices_get_their_names(tone_run, turns):
    made = load(tone_run)
    known = sorted({t.speaker for t in turns})[:2]
    for speaker in known:
        made.enrol(f"Name {speaker}", voice(int(speaker[1:])), RATE_HZ)
    made.enrol("Somebody else", voice(next(k for k in range(6) if f"s{k}" not in {t.speaker for t in turns})), RATE_HZ)
    answer = made.diarize(sound_of(turns, SECONDS), RATE_HZ)
    assert sorted(answer.known) == [f"Name {speaker}" for speaker in known]
    assert "Somebody else" not in answer.turns.speakers
    assert "speaker1" in answer.turns.speakers
    truth = Turns.of(turns)
    mapped = truth.renamed({speaker: f"Name {speaker}" for speaker in known})
    assert score({"x": mapped}, {"x": answer.turns}).mappings["x"] | {"speaker1": ""} == {
        **{f"Name {speaker}": f"Name {speaker}" for speaker in known},
        "speaker1": "",
    }


def test_an_enrolled_voice_is_that_of_its_recording(tone_run, turns):
    """Five seconds of it are heard, and it is the voice which that speaker has in a meeting; a few words beside it are
    an accident."""
    made = load(tone_run)
    with hear(Sound.of_samples(sound_of(turns, SECONDS), RATE_HZ), made.encoders) as frames:
        voices = made.head.tell(frames, _limits({})).voices
    for speaker in {turn.speaker for turn in turns}:
        found = made.enrol("Ann", voice(int(speaker[1:])), RATE_HZ)
        assert found.speech_s == pytest.approx(5.0, abs=0.25) and np.linalg.norm(found.vector) == pytest.approx(1)
        cosines = np.sort(voices @ found.vector)
        assert cosines[-1] > 0.95 and cosines[-2] < 0.5
    other = sound_of((Turn(0.5, 8.5, "s1"), Turn(9.0, 10.0, "s3")), 10.5)
    assert made.enrol("Ann", other, RATE_HZ).vector @ made.enrol("Bob", voice(1), RATE_HZ).vector > 0.99
    with pytest.raises(ValueError, match=r"two people speak in it \((6\d|7[0-4])% and (2[5-9]|3\d)% of the time"):
        made.enrol("Ann", sound_of((Turn(0.5, 8.5, "s1"), Turn(9.0, 12.5, "s3")), 13.0), RATE_HZ)


def test_voices_are_one_as_near_as_clusters_are():
    """A cosine distance of 0.3 at most is a cosine of 0.7 at least."""
    cascade = SimpleNamespace(config=SimpleNamespace(features=("f",)), choice=SimpleNamespace(threshold=0.3))
    stitched = SimpleNamespace(config=SimpleNamespace(features=("f",)))
    assert CascadeHead(cascade).same == StitchedHead(stitched, Stitching("f", apart=0.3)).same == pytest.approx(0.7)


def test_a_voice_too_unlike_to_be_known_takes_no_name_from_another():
    """0.9 and 0.8 to Ann, 0.4 and -0.5 to Bob: all four in one sum would give Ann the second voice."""
    known = {"Ann": Voice(np.eye(3, dtype=np.float32)[0], 9.0), "Bob": Voice(np.eye(3, dtype=np.float32)[1], 9.0)}
    cosines = np.array([[0.9, 0.4], [0.8, -0.5]], np.float32)
    voices = np.column_stack([cosines, np.sqrt(1 - (cosines**2).sum(1))])
    assert named(voices, known, 0.7) == {0: "Ann"}
    assert named(voices, known, 0.3) == {0: "Bob", 1: "Ann"}


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (voice(1, 2.0), "too short"),
        (voice(1)[: RATE_HZ // 5], "too short"),
        (np.zeros(RATE_HZ * 6, np.float32), "silent"),
        (0.0005 * np.random.default_rng(0).standard_normal(RATE_HZ * 6).astype(np.float32), "nobody is heard"),
        (sound_of((Turn(0, 4, "s1"), Turn(4, 8, "s3")), 8.0), "two people"),
    ],
)
def test_what_is_no_voice_is_refused_with_the_reason(tone_run, wave, why):
    made = load(tone_run)
    with pytest.raises(ValueError, match=why):
        made.enrol("Ann", wave, RATE_HZ)
    assert not made.voices


def test_another_encoder_is_refused(tone_run, monkeypatch):
    monkeypatch.setattr(FakeExtractor, "__init__", _other)
    with pytest.raises(
        FingerprintMismatch,
        match=r"fingerprint [0-9a-f]{16}, this encoder has .*weights_sha256 0{12}….*--weights fake=PATH",
    ):
        load(tone_run).encoders  # noqa: B018


def test_an_encoder_that_changed_is_not_put_down_to_its_weights(tone_run, monkeypatch):
    def coarser(self, *args, **kwargs):
        _made(self, *args, **kwargs)
        self.spec = dataclasses.replace(self.spec, grid=FrameGrid(0.0, 0.5))

    monkeypatch.setattr(FakeExtractor, "__init__", coarser)
    with pytest.raises(
        FingerprintMismatch, match=r"grid FrameGrid.*The weights are the same: use the encoder"
    ) as caught:
        load(tone_run).encoders  # noqa: B018
    assert "--weights" not in str(caught.value)


_made = FakeExtractor.__init__


def _other(self, *args, **kwargs):
    _made(self, *args, **kwargs)
    self.spec = dataclasses.replace(self.spec, weights_sha256="0" * 64)


def test_weights_of_a_file_have_to_be_named(tone_run, tmp_path, monkeypatch):
    class FromFile(FakeExtractor):
        def __init__(self, weights: str) -> None:
            super().__init__()

    monkeypatch.setattr("tests.fakes.FakeExtractor", FromFile)
    with pytest.raises(RunError, match=r"weights of a file \(SHA-256 ffffffffffff…\).*--weights fake=PATH"):
        load(tone_run).encoders  # noqa: B018
    assert load(tone_run, weights={"fake": "there.safetensors"}).encoders["fake"].spec.name == "fake"
    with pytest.raises(RunError, match="trained on fake"):
        load(tone_run, weights={"mimi": "x"}).encoders  # noqa: B018


def test_a_part_of_a_file_is_heard_alone(tone_run, turns, tmp_path):
    path = write(tmp_path / "x.wav", sound_of(turns, SECONDS))
    part = load(tone_run).diarize(Utterance("part", str(path), 10.0, 20.0, "x"))
    assert part.duration_s == 20.0
    cut = Turns.of(turns).cropped(10.0, 30.0)
    assert score({"x": cut}, {"x": part.turns}).corpus.der < 0.1
