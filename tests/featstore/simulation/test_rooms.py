"""Rooms: responses simulated and measured, what they do to a session, and what is said where there are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featstore.simulation.mix import mix
from featstore.simulation.recipe import Recipe, Rooms
from featstore.simulation.rooms import _places, in_room, measured_rooms, response, t60_s
from featstore.simulation.simulate import simulate
from featstore.simulation.speech import Piece
from featstore.types import Utterance

RATE = 16_000
ROOM = Rooms(share=1.0)


def decay(t60: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise that falls by 60 dB in `t60` seconds."""
    time = np.arange(round(seconds * RATE)) / RATE
    return np.random.default_rng(seed).standard_normal(len(time)) * 10 ** (-3 * time / t60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two measured rooms: in `dead` three places and no echo, in `live` two, its microphone array at 32 kHz."""
    for room, count, rate in (("dead", 3, RATE), ("live", 2, 32_000)):
        (tmp_path / "rooms" / room).mkdir(parents=True)
        for k in range(count):
            wave = np.zeros((rate, 2), np.float32)
            wave[100 * (k + 1), 0] = 0.5
            if room == "live":
                wave[3000 + 200 * k, 0] = -0.5
                wave[:, 1] = 0.9
            soundfile.write(tmp_path / "rooms" / room / f"{k}.wav", wave, rate, subtype="FLOAT")
    return tmp_path / "rooms"


def test_the_reverberation_time_of_a_known_decay() -> None:
    for t60 in (0.2, 0.45, 0.8):
        assert t60_s(decay(t60), RATE) == pytest.approx(t60, rel=0.06)
    click = np.zeros(100)
    click[0] = 1
    assert t60_s(click, RATE) == 0.0


def test_it_is_the_one_that_pyroomacoustics_measures() -> None:
    pra = pytest.importorskip("pyroomacoustics.experimental")
    for seed in range(3):
        wave = decay(0.5, seed=seed)
        assert t60_s(wave, RATE) == pytest.approx(pra.measure_rt60(wave, RATE, decay_db=20), rel=0.01)


def test_a_response_begins_with_its_direct_sound() -> None:
    """Also where an echo is louder; what came before is left but for 32 samples; its energy is 1."""
    wave = np.zeros(4000)
    wave[50], wave[1000], wave[1300] = 0.01, 0.2, -1.0
    found = response(wave)
    assert found.lead_samples == 32 and len(found.taps) == 4000 - 968
    assert found.taps[32] / found.taps[332] == pytest.approx(-0.2)
    assert np.square(found.taps).sum() == pytest.approx(1.0)
    assert response(wave[990:]).lead_samples == 10
    with pytest.raises(ValueError, match="without any sound"):
        response(np.zeros(9))


def test_speech_in_a_room_begins_where_it_began(folder: Path) -> None:
    """By hand: an echo of the same strength 0.0875 s later, at half the power each; both speakers in one room."""
    recipe = Recipe("mix", 1, speakers=2, duration_s=1, overlap=0.1, level_sd_db=0.0, rooms=Rooms(folder=str(folder)))
    click = np.zeros(160, np.float32)
    click[0] = 0.5
    placed = [
        (0.1, "a", Piece(click, 0.0, np.array([[0.0, 0.01]]))),
        (0.5, "b", Piece(click, 0.0, np.array([[0.0, 0.01]]))),
    ]
    seen = set()
    for seed in range(12):
        session, turns, facts = mix(placed, recipe, np.random.default_rng(seed), RATE, [], [])
        names = facts["room"]["responses"]
        assert len({name.split("/")[0] for name in names}) == 1 and len(set(names)) == 2
        live = names[0].startswith("live")
        seen.add(live)
        for start, name in zip((1600, 8000), names, strict=True):
            direct = start + int(np.abs(session[start - 40 : start + 40]).argmax()) - 40
            assert abs(direct - start) <= 4 if live else direct == start
            if not live:
                assert session[start] == pytest.approx(0.5)
                assert np.abs(session[start + 40 : start + 3000]).max() < 1e-6
            else:
                echo = np.abs(session[start + 1350 : start + 1600])
                assert abs(int(echo.argmax()) + 1350 - (1450 + 50 * int(name[-5]))) <= 2  # each place its own
                assert echo.max() == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
        assert [(t.start_s, t.speaker) for t in turns] == [(0.1, "a"), (0.5, "b")]
    assert seen == {True, False}


def test_a_share_of_the_sessions_is_in_a_room(tmp_path: Path, folder: Path, corpus: list[Utterance]) -> None:
    dry = Recipe("some", 40, speakers=2, duration_s=4, overlap=0.1, sample_rate_hz=8000)
    wet = replace(dry, rooms=Rooms(share=0.5, folder=str(folder)))
    simulate(corpus, dry, tmp_path / "dry", split="train")
    report = simulate(corpus, wet, tmp_path / "wet", split="train")
    assert report.in_room is not None and 12 <= report.in_room <= 28
    assert (report.asked_room_share, report.asked_t60_s) == (0.5, None)
    text = str(report)
    assert f"{report.in_room} sessions in a room (asked 0.50 of them)" in text and text.endswith(
        f"T60 {report.got_t60_s:.3f} s"
    )
    # Who speaks when is not touched by where.
    for path in (tmp_path / "dry" / "rttm").iterdir():
        assert path.read_bytes() == (tmp_path / "wet" / "rttm" / path.name).read_bytes()
    same = [
        p.read_bytes() == (tmp_path / "wet/audio" / p.name).read_bytes() for p in (tmp_path / "dry/audio").iterdir()
    ]
    assert sum(same) >= 40 - report.in_room  # a dry one is the same file; `dead` rooms come close


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: replace(ROOM, folder=str(folder / "absent")),
            "0 rooms with at most 0 responses, expected one with 4",
        ),
        (lambda folder: replace(ROOM, folder=str(folder)), "2 rooms with at most 3 responses, expected one with 4"),
    ],
)
def test_too_few_measured_places_is_one_line(
    tmp_path: Path, folder: Path, corpus: list[Utterance], spoil: Callable[[Path], Rooms], message: str
) -> None:
    recipe = Recipe("four", 1, speakers=4, duration_s=4, overlap=0.1, rooms=spoil(folder))
    with pytest.raises(ValueError, match=message):
        simulate(corpus, recipe, tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()


def test_a_response_that_cannot_be_read_fails_its_sessions_alone(
    tmp_path: Path, folder: Path, corpus: list[Utterance]
) -> None:
    (folder / "live" / "0.wav").write_bytes(b"RIFF nothing")
    recipe = Recipe("bad", 12, speakers=2, duration_s=4, overlap=0.1, rooms=Rooms(folder=str(folder)))
    report = simulate(corpus, recipe, tmp_path / "out", split="train")
    assert 0 < len(report.failures) < 12 and report.sessions == 12 - len(report.failures)
    assert all(f["error"].startswith(f"impulse response {folder}/live/0.wav: ") for f in report.failures)


def test_other_measured_rooms_do_not_mix_in(tmp_path: Path, folder: Path, corpus: list[Utterance]) -> None:
    recipe = Recipe("held", 1, speakers=2, duration_s=4, overlap=0.1, rooms=Rooms(folder=str(folder)))
    simulate(corpus, recipe, tmp_path / "out", split="train")
    (tmp_path / "y").mkdir()
    again = replace(recipe, rooms=Rooms(folder=str(folder.rename(tmp_path / "y" / "rooms"))))
    assert simulate(corpus, again, tmp_path / "out", split="train").made_now == 0
    soundfile.write(tmp_path / "y/rooms/dead/3.wav", np.ones(9), RATE)
    measured_rooms.cache_clear()
    with pytest.raises(ValueError, match="another manifest"):
        simulate(corpus, again, tmp_path / "out", split="train")


# --- simulated -----------------------------------------------------------------------------------------------------


def test_without_pyroomacoustics_one_line_says_what_to_install(
    tmp_path: Path, corpus: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    recipe = Recipe("none", 1, speakers=2, duration_s=4, overlap=0.1, rooms=ROOM)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[rooms\]', or name a folder") as caught:
        simulate(corpus, recipe, tmp_path / "out", split="train")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_simulated_rooms_are_what_was_asked() -> None:
    pytest.importorskip("pyroomacoustics")
    asked, got = [], []
    for seed in range(6):
        rooms = replace(ROOM, distance_m=(0.5, 2.5), t60_s=(0.2, 0.7), length_m=(3, 6), width_m=(3, 6))
        responses, facts = in_room(rooms, ["a", "b", "c"], np.random.default_rng(seed), RATE)
        assert list(responses) == ["a", "b", "c"]
        assert 3 <= facts["size_m"][0] <= 6 and 2.4 <= facts["size_m"][2] <= 3.5
        assert all(0.5 <= distance <= 2.5 for distance in facts["distance_m"]) and len(set(facts["distance_m"])) == 3
        asked.append(facts["asked_t60_s"])
        got.append(facts["t60_s"])
        for found in responses.values():  # the direct sound is among the loudest
            assert np.abs(found.taps[found.lead_samples]) > 0.2 * np.abs(found.taps).max()
    np.testing.assert_allclose(got, asked, rtol=0.25)
    assert np.mean(got) == pytest.approx(np.mean(asked), rel=0.12)


def test_a_seed_means_a_room_whatever_was_drawn_before() -> None:
    pra = pytest.importorskip("pyroomacoustics")
    rooms = replace(ROOM, t60_s=(0.25, 0.25))
    first, facts = in_room(rooms, ["a", "b"], np.random.default_rng(4), RATE)
    pra.random.seed(99)
    before = np.random.get_state()[1].copy()
    second, again = in_room(rooms, ["a", "b"], np.random.default_rng(4), RATE)
    assert np.array_equal(before, np.random.get_state()[1])
    other, _ = in_room(rooms, ["a", "b"], np.random.default_rng(5), RATE)
    assert facts == again and all(np.array_equal(first[name].taps, second[name].taps) for name in first)
    assert not np.array_equal(first["a"].taps[:500], other["a"].taps[:500])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance_m": (20.0, 21.0)}, "no 2 places 20 to 21 m from a microphone"),
        ({"t60_s": (0.01, 0.02)}, "no room of the size asked for can have t60_s = 0.0"),
    ],
)
def test_a_room_that_cannot_be_is_one_line(change: dict, message: str) -> None:
    pytest.importorskip("pyroomacoustics")
    with pytest.raises(ValueError, match=message):
        in_room(replace(ROOM, **change), ["a", "b"], np.random.default_rng(0), RATE)


def test_measured_places_are_each_taken_once_and_at_the_session_s_rate(folder: Path) -> None:
    """The echo of `live` comes 2900 and 2800 samples of 32 kHz after the click, by the place."""
    places = set()
    for seed in range(30):
        responses, facts = in_room(replace(ROOM, folder=str(folder)), ["a", "b"], np.random.default_rng(seed), RATE)
        assert len(facts["responses"]) == len(set(facts["responses"])) == 2
        assert len({name.split("/")[0] for name in facts["responses"]}) == 1  # of one room
        places |= set(facts["responses"])
        for name, found in zip(facts["responses"], responses.values(), strict=True):
            room, place = name.removesuffix(".wav").split("/")
            echo = np.abs(found.taps[found.lead_samples + 100 :])
            if room == "live":
                assert echo.argmax() + 100 == pytest.approx(
                    (3000 + 200 * int(place) - 100 * (int(place) + 1)) / 2, abs=1
                )
            else:
                assert echo.max() < 0.01
            assert np.square(found.taps, dtype=np.float64).sum() == pytest.approx(1.0, rel=1e-3)
    assert places == {"dead/0.wav", "dead/1.wav", "dead/2.wav", "live/0.wav", "live/1.wav"}


def test_rooms_may_move(tmp_path: Path, folder: Path, corpus: list[Utterance]) -> None:
    """What is in the folder is what counts, not where it lies."""
    recipe = Recipe(
        "moved", 2, speakers=2, duration_s=4, overlap=0.1, sample_rate_hz=8000, rooms=Rooms(folder=str(folder))
    )
    simulate(corpus, recipe, tmp_path / "out", split="train")
    (tmp_path / "elsewhere").mkdir()
    other = folder.rename(tmp_path / "elsewhere" / folder.name)
    again = replace(recipe, sessions=3, rooms=Rooms(folder=str(other)))
    assert simulate(corpus, again, tmp_path / "out", split="train").made_now == 1


def test_where_who_speaks_is_in_a_simulated_room() -> None:
    """Not at a wall, and as far from the microphone as is told."""
    for seed in range(20):
        size_m = np.array([6.0, 4.0, 3.0])
        microphone, places = _places(replace(ROOM, distance_m=(1.0, 2.0)), size_m, 4, np.random.default_rng(seed))
        distances = np.sqrt(((places - microphone) ** 2).sum(axis=1))
        assert places.shape == (4, 3) and ((distances >= 1.0) & (distances <= 2.0)).all()
        assert (np.array([0.6, 0.4, 0.6]) <= microphone).all() and (microphone <= [5.4, 3.6, 1.8]).all()
        assert (np.array([0.6, 0.4, 0.9]) <= places).all() and (places <= [5.4, 3.6, 2.1]).all()
