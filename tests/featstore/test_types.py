"""The nouns at their edges: what just fits, what just does not, and what a fingerprint is taken of."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import MIMI_GRID, Codebooks, FeatureSpec, FrameGrid, Turn, Utterance
from featstore.types import check_id

SPEC = FeatureSpec("f", 3, "float16", 16000, FrameGrid(0.1, 0.2), "net", "ab" * 32, {"weights": "demo", "hops": (1, 2)})
HALF = Utterance("a", "a.wav", 0.0, 1.0, "r")


def refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_turns() -> None:
    assert Turn(1.0, 1.0, "a").end_s == 1.0
    refused(lambda: Turn(1.0, 0.999, "a"), "turn of 'a': ends at 0.999 s before it starts at 1.0 s")
    for start_s, end_s, name in ((math.nan, 1.0, "start_s"), (0.0, math.inf, "end_s"), (-math.inf, 0.0, "start_s")):
        refused(lambda s=start_s, e=end_s: Turn(s, e, "a"), f"turn: {name} must be a finite number")


def test_utterances() -> None:
    assert math.isnan(replace(HALF, duration_s=math.nan).duration_s) and replace(HALF, start_s=0.0) == HALF
    refused(lambda: replace(HALF, start_s=-1e-9), "utterance 'a': start_s must be 0 or more")
    refused(lambda: replace(HALF, start_s=math.inf), "utterance 'a': start_s must be a finite number")
    for duration_s in (0.0, -1.0, math.inf):
        refused(lambda d=duration_s: replace(HALF, duration_s=d), "duration_s must be more than 0")
    for name in ("audio", "recording", "speaker", "split"):
        assert getattr(replace(HALF, **{name: "x" * 1024}), name) == "x" * 1024
        refused(lambda n=name: replace(HALF, **{n: "x" * 1025}), f"'a': {name} has 1025 characters, at most 1024")
    refused(lambda: replace(HALF, turns=(Turn(0, 1, "x" * 1025),)), "speaker of a turn has 1025 characters")


def test_ids() -> None:
    for id in ("x" * 1024, "a..b", "a/b.c", "C:x", "..a", "a b", "ü/…"):
        check_id(id)
    refused(lambda: check_id("x" * 1025), "id must have 1 to 1024 characters, found 1025")
    refused(lambda: check_id(""), "found 0")
    for id in ("a\0", "a\n", "\x7f", "\x85", "\ud800"):
        refused(lambda i=id: check_id(i), "holds a control character or half a surrogate pair")
    for id in ("/a", "\\a", "C:/a", "c:\\a", "..", "a/..", "../a", "a\\..\\b", "a/../b"):
        refused(lambda i=id: check_id(i), "points outside its root")


def test_where_frames_lie() -> None:
    """Frames of Mimi are centred on 0.04, 0.12, 0.20, … s."""
    assert (MIMI_GRID.first_centre_s, MIMI_GRID.step_s) == (0.04, 0.08)
    assert MIMI_GRID.centres_s(2, 5).tolist() == pytest.approx([0.20, 0.28, 0.36])
    assert [MIMI_GRID.index(time_s) for time_s in (-3.0, 0.0, 0.04, 0.0401, 0.12, 1e9)] == [
        0,
        0,
        0,
        1,
        1,
        12_500_000_000,
    ]
    first, last = FrameGrid(0.5, 1.0).active([[0.0, 0.5], [0.6, 2.5]], [[0.5, 0.6], [2.5, 2.5]])
    assert first.tolist() == [[0, 0], [1, 2]] and last.tolist() == [[0, 1], [2, 2]]
    for step_s in (0.0, -0.08):
        refused(lambda s=step_s: FrameGrid(0.0, s), "step_s must be more than 0")
    refused(lambda: FrameGrid(math.nan, 0.08), "first_centre_s must be a finite number")
    refused(lambda: FrameGrid(0.0, math.inf), "step_s must be a finite number")


def test_specs_at_their_edges() -> None:
    for fits in (
        {"name": "a" * 64},
        {"name": "9a.b_c-d"},
        {"dim": 1},
        {"dim": 65536},
        {"dtype": "float32"},
        {"sample_rate_hz": 1},
    ):
        replace(SPEC, **fits)
    for name in ("", "a" * 65, "A", "-a", ".a", "_a", "a/b", "a b", "ä"):
        refused(lambda n=name: replace(SPEC, name=n), "use 1 to 64 of a-z 0-9")
    for dim in (0, -1, 65537):
        refused(lambda d=dim: replace(SPEC, dim=d), f"dim must be 1 to 65536, found {dim}")
    refused(lambda: replace(SPEC, dtype="float64"), "dtype must be float16, float32 or int16, found 'float64'")
    refused(lambda: replace(SPEC, sample_rate_hz=0), "sample_rate_hz must be more than 0")
    assert [replace(SPEC, dtype=dtype).whole for dtype in ("float16", "float32", "int16")] == [False, False, True]


def test_a_fingerprint_is_of_every_attribute() -> None:
    plain = {
        **{
            "name": "f",
            "dim": 3,
            "dtype": "float16",
            "sample_rate_hz": 16000,
            "model": "net",
            "weights_sha256": "ab" * 32,
        },
        **{"grid": {"first_centre_s": 0.1, "step_s": 0.2}, "settings": {"weights": "demo", "hops": [1, 2]}},
    }
    assert SPEC.to_json() == plain and FeatureSpec.from_json(json.loads(json.dumps(plain))) == SPEC
    assert SPEC.fingerprint == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
    others = [
        *({"name": "g"}, {"dim": 4}, {"dtype": "float32"}, {"sample_rate_hz": 16001}, {"model": "other"}),
        *({"weights_sha256": ""}, {"settings": {}}, {"grid": FrameGrid(0.1, 0.3)}, {"grid": FrameGrid(0.2, 0.2)}),
    ]
    assert len({SPEC.fingerprint, *(replace(SPEC, **other).fingerprint for other in others)}) == 1 + len(others)
    for wrong, words in (
        ({"dim": 3.0}, "dim must be int, found 3.0"),
        ({"dim": True}, "dim must be int, found True"),
        ({"name": 3}, "name must be str"),
        ({"model": None}, "model must be str"),
        ({"sample_rate_hz": "16000"}, "sample_rate_hz must be int"),
        ({"more": 1}, "more"),
        ({"grid": {"first_centre_s": 0.1}}, "step_s"),
        ({"grid": None}, "not a feature spec"),
    ):
        refused(lambda w=wrong: FeatureSpec.from_json({**plain, **w}), f"not a feature spec: .*{words}|^{words}")
    refused(
        lambda: FeatureSpec.from_json({k: v for k, v in plain.items() if k != "model"}), "not a feature spec: 'model'"
    )


def test_what_must_stand_beside_every_number() -> None:
    def warned(**settings: object) -> str | None:
        return replace(SPEC, settings=settings).warning

    assert warned(weights="random:7") == "f: UNTRAINED weights (random:7): its numbers say nothing about net"
    assert warned(weights="demo") == "f: small demo weights: its numbers say nothing about the published net"
    assert [warned(weights=w) for w in ("file", "hf:x/random:y", "demo2")] == [None] * 3 and warned() is None


def test_codebooks_that_fit_each_other() -> None:
    rng = np.random.default_rng(0)
    books, projections = rng.normal(size=(3, 4, 2)).astype("<f4"), rng.normal(size=(2, 5, 2)).astype("<f4")
    of = np.array([0, 1, 1], "<i4")
    whole = Codebooks(books, projections, of)
    expected = [[projections[of[k]] @ books[k, b] for b in range(4)] for k in range(3)]
    assert whole.table.dtype == np.float32 and whole.table.shape == (3, 4, 5)
    np.testing.assert_allclose(whole.table, expected, rtol=1e-5)
    digest = hashlib.sha256()
    for name, array, told in (
        ("books", books, "(3, 4, 2) <f4"),
        ("projections", projections, "(2, 5, 2) <f4"),
        ("projection_of", of, "(3,) <i4"),
    ):
        digest.update(f"{name} {told}\n".encode() + array.tobytes())
    strided = Codebooks(np.repeat(books, 2, axis=2)[..., ::2], projections, of)
    assert whole.sha256 == strided.sha256 == digest.hexdigest()
    for wrong in (
        (books.astype("f8"), projections, of),
        (books, projections, of.astype("i8")),
        (books[0], projections, of),
        (books[..., :1], projections, of),
        (books, projections, of[:2]),
        (books, projections, np.array([0, 1, 2], "<i4")),
        (books, projections, np.array([0, 1, -1], "<i4")),
    ):
        refused(lambda w=wrong: Codebooks(*w), r"codebooks: expected books \(n_q, bins, inner\)")


def test_what_open_hands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr("featstore.remote.reader.open_remote", lambda url, **more: asked.append((url, more)))
    featstore.open("s3://b/p/")
    featstore.open(Path("https://host/s"), verify=True, cache=tmp_path, cache_bytes=7)
    assert asked == [
        ("s3://b/p", {"verify": False, "cache": None, "cache_bytes": 512 << 20}),
        ("https://host/s", {"verify": True, "cache": tmp_path, "cache_bytes": 7}),
    ]
