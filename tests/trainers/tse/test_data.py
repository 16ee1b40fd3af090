"""What an extraction hears: which mixtures and voices, cut out where, asked for by what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import featstore
from featstore import Store, Turn, Utterance
from tests.sessions import spec
from tests.voices import SIZE, make_voices
from trainers.config import ConfigError, FitConfig
from trainers.tse.config import TseConfig
from trainers.tse.crops import Crops, _placed
from trainers.tse.data import Mixture, TseData, Voice, load_data

SAMPLES = 100
NAMES = ("ann", "bob", "cyd", "dan", "eve", "fay")


def config(*settings: str) -> TseConfig:
    made = FitConfig.make("tse", settings=(f"crop_s={(SAMPLES - 1) / 16000}", "batch_size=4", "jitter=0", *settings))
    assert isinstance(made, TseConfig)
    return made


@pytest.fixture
def data(tmp_path: Path) -> TseData:
    """m0 of ann alone, m1 of bob and cyd, m2 of dan, eve and fay: `SAMPLES` of them, 50 samples inside of each file.

    What speaker k says is k in front and ramps up; mixtures are 100 more. Vectors are one-hot: a track's 2 k, the others' 2 k + 1.
    """

    def utterance(id: str, recording: str, speaker: str | None, level: float) -> Utterance:
        wave = np.concatenate([np.full(50, 9.0), level + np.arange(SAMPLES) / 1000, np.full(50, -9.0)])
        file = tmp_path / f"{id.replace('/', '-')}.wav"
        sf.write(file, wave.astype(np.float32) / 1000, 16000, subtype="FLOAT")
        return Utterance(id, str(file), 50 / 16000, SAMPLES / 16000, recording, speaker, "train")

    mixtures, at = [], 0
    for count in (1, 2, 3):
        id, voices = f"m{count - 1}", []
        for name in NAMES[at : at + count]:
            others = () if name == "ann" else (f"other/{name}", f"more/{name}")
            voices.append(Voice(utterance(f"{id}/{name}-1", id, name, NAMES.index(name)), others))
        mixtures.append(Mixture(utterance(id, id, None, 100 + count), tuple(voices)))
        at += count
    vectors = {}
    for k, name in enumerate(NAMES):
        track = next(v.track.id for m in mixtures for v in m.voices if v.speaker == name)
        vectors |= {track: np.eye(18, dtype=np.float32)[3 * k]}
        vectors |= {
            f"other/{name}": np.eye(18, dtype=np.float32)[3 * k + 1],
            f"more/{name}": np.eye(18, dtype=np.float32)[3 * k + 2],
        }
    return TseData({"train": mixtures, "dev": mixtures, "test": mixtures}, np.zeros(18, np.float32), vectors)


def told(example: object) -> list[tuple[int, int, list[int], int]]:
    """Of each row: the mixture's level, its first sample, the levels of its references, and which vector asks."""
    rows = []
    for mixture, vector, references, count in zip(
        example.mixtures, example.embeddings, example.references, example.counts, strict=True
    ):
        start = round(float(mixture[0]) * 1e6) % 1000
        ramp = torch.arange(start, start + SAMPLES - 1)
        torch.testing.assert_close(mixture * 1e6 % 1000, ramp.float(), atol=0.2, rtol=0)
        heard = references[: int(count)]
        for reference in heard:  # from where the mixture is from
            torch.testing.assert_close(reference * 1e6 % 1000, ramp.float(), atol=0.2, rtol=0)
        levels = [round(float(r[0] * 1000) - start / 1000) for r in heard]
        assert not references[int(count) :].any()
        rows.append((round(float(mixture[0]) * 1000 - start / 1000), start, levels, int(vector.argmax())))
    return rows


def test_a_voice_is_cut_out_where_its_mixture_is_and_every_start_that_fits_comes(data: TseData) -> None:
    crops, seen = Crops(data, "train", config("enrolled=0")), []
    for seed in range(12):
        rows = told(crops.draw(np.random.default_rng(seed)))
        assert len(rows) == 4
        for level, _, (voice,), vector in rows:
            assert voice in {101: (0,), 102: (1, 2), 103: (3, 4, 5)}[level] and vector == 3 * voice
        counts = [sum(row[0] == level for row in rows) for level in (101, 102, 103)]
        assert max(counts) <= 2  # of a mixture two voices at most
        seen += rows
    assert {start for _, start, _, _ in seen} == {0, 1} and {row[2][0] for row in seen} == set(range(6))
    order = [[row[0] for row in told(crops.draw(np.random.default_rng(seed)))] for seed in range(6)]
    assert len({tuple(levels) for levels in order}) > 2  # mixtures come in any order
    again = crops.draw(np.random.default_rng(3))
    assert torch.equal(again.mixtures, crops.draw(np.random.default_rng(3)).mixtures)


def test_who_is_asked_for_by_what(data: TseData) -> None:
    """By another utterance where that is drawn and there is one; by the track else."""
    for share, expected in ((0, {0}), (1, {1, 2}), (0.5, {0, 1, 2})):
        crops, kinds = Crops(data, "train", config(f"enrolled={share}", "least_voices=2")), []
        for seed in range(20):
            kinds += [row[3] % 3 for row in told(crops.draw(np.random.default_rng(seed)))]
        assert set(kinds) == expected
        if share == 0.5:
            assert 0.3 < np.mean(np.array(kinds) == 0) < 0.7
    alone = Crops(data, "train", config("enrolled=1"))
    assert [row[3] for row in told(alone.examples(alone.asked[:1], np.random.default_rng(0)))] == [
        0
    ]  # ann says nothing else
    del data.vectors["m1/bob-1"]
    lone = Crops(data, "train", config("enrolled=0"))
    (row,) = told(lone.examples([pair for pair in lone.asked if pair[1].speaker == "bob"], np.random.default_rng(0)))
    assert row[3] in (4, 5)  # his track has no embedding


def test_noise_on_an_embedding_is_as_long_as_it_may_be_and_training_s_alone(data: TseData) -> None:
    crops = Crops(data, "train", config("enrolled=0", "jitter=0.8"))
    asked = crops.asked[:1] * 300
    plain = crops.examples(asked, np.random.default_rng(0)).embeddings
    assert torch.equal(plain, torch.eye(18)[:1].expand(300, -1))
    crops.config = replace(crops.config, batch_size=300)
    crops.by_mixture = [asked[:2]] * 150
    found = crops.draw(np.random.default_rng(0)).embeddings
    torch.testing.assert_close(found.norm(dim=1), torch.ones(300))
    angles = found[:, 0].clamp(max=1).acos()
    moved = angles.tan()  # noise of a length up to 0.8, across nearly all of it
    assert 0.55 < moved.max() < 2.2 and moved.min() < 0.1 and 0.25 < moved.mean() < 0.55


def test_mixtures_of_few_voices_may_be_left_out_and_without_a_condition_all_voices_are_asked_for(data: TseData) -> None:
    asked = [(m.utterance.id, v.speaker) for m, v in Crops(data, "dev", config("least_voices=2")).asked]
    assert asked == [("m1", "bob"), ("m1", "cyd"), ("m2", "dan"), ("m2", "eve"), ("m2", "fay")]
    every = Crops(data, "train", config("condition=none", "batch_size=9"))
    rows = sorted(told(every.draw(np.random.default_rng(0))))
    assert [(row[0], row[2]) for row in rows] == [(101, [0]), (102, [1, 2]), (103, [3, 4, 5])]
    data.vectors.clear()
    assert [v.speaker for _, v in Crops(data, "train", config()).asked] == ["bob", "cyd", "dan", "eve", "fay"]


def test_mixtures_are_put_together_anew(data: TseData) -> None:
    """Other voices in the places of a mixture's own, at their levels and in its noise; what is asked for is cut where it is heard."""
    crops, seen = Crops(data, "train", config("least_voices=2", "remixed=1")), set()
    for seed in range(30):
        base = data.splits["train"][1 + seed % 2]
        made = crops._anew(base, np.random.default_rng(seed))
        names = [v.speaker for v in made.voices]
        assert len(set(names)) == len(names) == len(base.voices)
        seen |= set(names)
        noise = base.sound(base.utterance) - sum(base.sound(v.track) for v in base.voices)
        own = [made.sound(v.track) for v in made.voices]
        np.testing.assert_allclose(made.sound(made.utterance) - sum(own), noise, atol=1e-6)
        for new, old, voice in zip(own, base.voices, made.voices, strict=True):
            power = np.square(base.sound(old.track)).mean()
            assert np.square(new).mean() == pytest.approx(power, rel=1e-4)
            (true,) = [m.sound(v.track) for m in data.splits["train"] for v in m.voices if v is voice]
            np.testing.assert_allclose(new / np.linalg.norm(new), true / np.linalg.norm(true), atol=1e-5)
    assert seen == set(NAMES)  # ann too, who is alone in her mixture
    example = crops.draw(np.random.default_rng(5))
    assert len(example.mixtures) == 4 and not torch.equal(example.mixtures[0], example.mixtures[2])
    assert torch.equal(example.mixtures, crops.draw(np.random.default_rng(5)).mixtures)
    stored = {tuple(m.sound(m.utterance)[:-1].round(6)) for m in data.splits["train"]}
    assert not stored & {tuple(row.numpy()[:-1].round(6)) for row in example.mixtures}
    for vector, (reference,) in zip(example.embeddings, example.references, strict=True):
        k = int(vector.argmax()) // 3  # whose level is k in front, and louder or softer here
        true = next(m.sound(v.track) for m in data.splits["train"] for v in m.voices if v.speaker == NAMES[k])
        there = reference[:-1] / reference[:-1].norm()
        starts = [torch.from_numpy(true[a : a + SAMPLES - 1]) for a in (0, 1)]
        assert any(torch.allclose(there, one[: len(there)] / one[: len(there)].norm(), atol=1e-3) for one in starts)


def test_everybody_is_heard_as_often_in_them_however_many_tracks_there_are(data: TseData) -> None:
    bob = data.splits["train"][1].voices[0]
    data.splits["train"][1] = replace(data.splits["train"][1], voices=(bob,) * 12)
    crops = Crops(data, "train", config("least_voices=2", "remixed=1"))
    base = data.splits["train"][2]
    heard = [v.speaker for n in range(100) for v in crops._anew(base, np.random.default_rng(n)).voices]
    counts = [heard.count(name) for name in ("ann", "bob", "dan", "eve", "fay")]
    assert sum(counts) == 300 and max(counts) < 80  # of 60 each


def test_of_too_few_speakers_a_mixture_is_put_together_of_fewer(data: TseData) -> None:
    for m in data.splits["train"]:
        for voice in m.voices:
            if voice.speaker not in ("dan", "eve"):
                object.__setattr__(voice, "others", ())
                del data.vectors[voice.track.id]
    made = Crops(data, "train", config("remixed=1"))._anew(data.splits["train"][2], np.random.default_rng(0))
    assert {v.speaker for v in made.voices} == {"dan", "eve"}
    base = data.splits["train"][2]
    noise = base.sound(base.utterance) - sum(base.sound(v.track) for v in base.voices)
    rest = made.sound(made.utterance) - sum(made.sound(v.track) for v in made.voices)
    np.testing.assert_allclose(rest, noise, atol=1e-6)  # nobody is left of those who were there


def test_a_track_begins_anywhere() -> None:
    rng, wave = np.random.default_rng(0), np.arange(1, 4, dtype=np.float32)
    longer = {tuple(_placed(wave, 5, rng).astype(int)) for _ in range(40)}
    assert longer == {(1, 2, 3, 0, 0), (0, 1, 2, 3, 0), (0, 0, 1, 2, 3)}
    assert {tuple(_placed(wave, 2, rng).astype(int)) for _ in range(40)} == {(1, 2), (2, 3)}


def test_the_fixed_voices_are_so_many_of_a_seed(data: TseData) -> None:
    crops = Crops(data, "dev", config())
    chosen = [[v.speaker for _, v in crops.fixed(3, seed)] for seed in range(6)]
    assert all(len(of) == 3 and of == sorted(of) for of in chosen) and len({tuple(of) for of in chosen}) > 1
    assert chosen[0] == [v.speaker for _, v in crops.fixed(3, 0)] and len(crops.fixed(99, 0)) == 6


def test_a_crop_ends_where_its_utterance_does(data: TseData) -> None:
    """What lies in the file before and behind the utterance is nobody's."""
    mixture = data.splits["train"][0]
    whole = mixture.sound(mixture.utterance)
    assert len(whole) == SAMPLES and 0.1 < whole.min() < whole.max() < 0.102
    assert len(mixture.sound(mixture.utterance, 90, 40)) == 10
    np.testing.assert_array_equal(mixture.sound(mixture.utterance, 90, 7), whole[90:97])


# ---- a store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_voices(tmp_path_factory.mktemp("voices") / "store", mixtures=11)


def test_what_is_read_from_a_store(store: Store) -> None:
    data = load_data(config(), store)
    for split, of in data.splits.items():
        ids = [m.utterance.id for m in of]
        assert ids == sorted(f"mix-{split}-{n}" for n in range(11)) and not data.notes
        assert data.speakers(split) == {f"{split}{k}" for k in range(4 if split == "train" else 3)}
    said = [id for id in store.ids if "train" in id and ("/" in id or "alone" in id)]
    centre = np.mean([store.pooled("titanet", [id])[0] for id in said], axis=0)
    np.testing.assert_allclose(data.centre, centre, atol=1e-4)
    assert set(data.vectors) == {id for id in store.ids if "/" in id or "alone" in id}
    for id in ("test1-alone0", data.splits["dev"][2].voices[0].track.id):
        out = store.pooled("titanet", [id])[0] - centre
        np.testing.assert_allclose(data.vectors[id], out / np.linalg.norm(out), atol=1e-4)
    mixture = data.splits["test"][1]
    assert mixture.utterance.id == "mix-test-1" and len(mixture.voices) == 2
    for voice in mixture.voices:
        name = voice.speaker
        # another mixture's track of other words (its number modulo 3), and what is said alone
        others = {
            id for id in store.ids if f"/{name}-" in id and not id.startswith("mix-test-1/") and not id.endswith("-1")
        }
        assert set(voice.others) == others | {f"{name}-alone0", f"{name}-alone1"}
    half, other = (load_data(config("train_fraction=0.5", f"seed={seed}"), store) for seed in (0, 1))
    kept = [[m.utterance.id for m in of.splits["train"]] for of in (half, other)]
    assert len(kept[0]) == 6 and kept[0] == sorted(kept[0]) and kept[0] != kept[1] and len(half.splits["test"]) == 11


def build(path: Path, **speakers: str) -> Store:
    """A mixture of one voice in each split; its speaker is as given, and so named in two of them where two are the same."""
    with featstore.writer(path, spec("titanet", SIZE)) as out:
        for split, name in speakers.items():
            id = f"m-{split}"
            out.add(Utterance(id, "x.wav", 0.0, 1.0, id, None, split, (Turn(0, 1, name),)), np.ones((3, SIZE)))
            out.add(Utterance(f"{id}/w", "x.wav", 0.0, 1.0, id, name, split), np.ones((3, SIZE)))
    return featstore.open(path)


@pytest.mark.parametrize("pair", [("train", "dev"), ("train", "test"), ("dev", "test")])
def test_a_speaker_in_two_splits_is_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    speakers = {"train": "ann", "dev": "bob", "test": "cyd"} | dict.fromkeys(pair, "zoe")
    with pytest.raises(ConfigError, match=f"1 speakers are in {pair[0]} and {pair[1]}, such as 'zoe'"):
        load_data(config(), build(tmp_path, **speakers))


def test_nobody_is_enrolled_by_the_mixture_itself_nor_by_what_was_kept_for_another_split(tmp_path: Path) -> None:
    store = build(tmp_path, train="ann", dev="bob", test="cyd")
    with featstore.writer(tmp_path, store.features["titanet"]) as out:
        for id, recording, split in (
            ("m-test/v", "m-test", "test"),
            ("spare", "spare", "kept"),
            ("own", "own", "test"),
            ("own/z", "own", "test"),
        ):
            out.add(Utterance(id, "x.wav", 0.0, 1.0, recording, "cyd", split), np.ones((3, SIZE)))
    (mixture,) = load_data(config(), featstore.open(tmp_path)).splits["test"]
    assert {v.track.id: set(v.others) for v in mixture.voices} == {f"m-test/{n}": {"own", "own/z"} for n in "vw"}


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    store = build(tmp_path, train="ann", dev="bob", test="cyd")
    with pytest.raises(ConfigError, match="least_voices=2: no training mixture has as many voices"):
        load_data(config("least_voices=2"), store)
    told = load_data(config(), store).notes
    assert told == ["3 of 3 voices say nothing else that has an embedding: they are not asked for by it"]
    mixtures = [id for id in store.ids if "/" not in id]
    with featstore.writer(tmp_path, spec("other", SIZE)) as out:
        for id in mixtures:
            out.add(store.utterance(id), np.ones((3, SIZE)))
    with pytest.raises(ConfigError, match="feature 'other' was extracted of no voice in train, dev"):
        load_data(config("feature=other"), featstore.open(tmp_path))
