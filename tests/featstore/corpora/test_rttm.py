"""RTTM in and out, line by line: what is read as it stands, what is told, what is refused; and pieces of long audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from featstore import Turn, Utterance
from featstore.corpora.audio import load, pieces
from featstore.corpora.rttm import lines, one_word, read_columns, read_rttm, write_rttm
from tests.fakes import tone


def test_turns_by_recording_and_by_time(tmp_path: Path) -> None:
    """In any order, of several recordings in turns; blank lines, comments, tabs and a byte-order mark are nothing."""
    (tmp_path / "a.rttm").write_text(
        "\ufeffSPEAKER m 1 5.0 1.5 <NA> <NA> b <NA> <NA>\n"
        ";; a comment\n\n"
        "SPEAKER\tn\t1\t0.25\t0.5\t<NA>\t<NA>\tc\n"
        "SPEAKER m 1   0 6 <NA> <NA> a <NA>\n"
        "SPEAKER m 1 0 2 <NA> <NA> d <NA> <NA>\n"
        "LEXEME m 1 0 1 word\n"
        "SPEAKER n 2 0.1 0 <NA> <NA> c <NA> <NA>\n"
        "SPEAKER o 1 7 0 <NA> <NA> e <NA> <NA>\n"
        "SPKR-INFO m 1 <NA>\n"
        "SPEAKER m 1 -0.5 1.0 <NA> <NA> a <NA> <NA>\n"
    )
    told: list[str] = []
    columns = read_columns(tmp_path / "a.rttm", told.append)
    assert columns == {
        "m": ([5.0, 0.0, 0.0, -0.5], [6.5, 6.0, 2.0, 0.5], ["b", "a", "d", "a"]),
        "n": ([0.25], [0.75], ["c"]),
        "o": ([], [], []),
    }
    where = f"{tmp_path / 'a.rttm'}: "
    assert told == [
        f"{where}2 records of other types passed over (first: line 7)",
        f"{where}2 turns of no length left out (first: line 8)",
        f"{where}1 turns that start before 0 s (first: line 11)",
        f"{where}recording 'n' has 2 channels, scored as one",
    ]
    assert read_rttm(tmp_path / "a.rttm") == {
        "m": (Turn(-0.5, 0.5, "a"), Turn(0.0, 2.0, "d"), Turn(0.0, 6.0, "a"), Turn(5.0, 6.5, "b")),
        "n": (Turn(0.25, 0.75, "c"),),
        "o": (),
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("SPEAKER m 1 0 1 <NA> <NA>", "expected 8 to 10 fields .*, found 7"),
        (
            "SPEAKER m 1 0 1 <NA> <NA> a <NA> <NA> more",
            "expected 8 to 10 fields .*, found 11; names cannot hold spaces",
        ),
        ("SPEKER m 1 0 1 <NA> <NA> a", "expected a line that starts with SPEAKER, found 'SPEKER'"),
        ("SPEAKER m 1 x 1 <NA> <NA> a", "expected a start in seconds, found 'x'"),
        ("SPEAKER m 1 nan 1 <NA> <NA> a", "expected a start in seconds, found 'nan'"),
        ("SPEAKER m 1 inf 1 <NA> <NA> a", "expected a start in seconds, found 'inf'"),
        ("SPEAKER m 1 0 1s <NA> <NA> a", "expected a duration in seconds, found '1s'"),
        ("SPEAKER m 1 0 inf <NA> <NA> a", "expected a duration in seconds, found 'inf'"),
        ("SPEAKER m 1 0 -1 <NA> <NA> a", "expected a duration of 0 or more seconds, found -1"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.rttm").write_text(f"SPEAKER m 1 0 1 <NA> <NA> a\n\n{line}\n")
    with pytest.raises(ValueError, match=f"a.rttm:3: {words}"):
        read_columns(tmp_path / "a.rttm")


def test_lines_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\ntwo\r\n\xe4\n")
    with pytest.raises(ValueError, match=r"a:3: not UTF-8 text; convert the file"):
        lines(tmp_path / "a")
    assert lines("unpacked.gz", "ä\nb".encode()) == ["ä", "b"]
    with pytest.raises(ValueError, match="unpacked.gz:1: not UTF-8"):
        lines("unpacked.gz", b"\xff")


def test_what_is_written(tmp_path: Path) -> None:
    """To the millisecond: start and end are rounded, and the length lies between them."""
    turns = {"m": [Turn(0.0004, 1.0006, "a"), Turn(2.0, 3.5, "b")], "ü": [Turn(1.2345, 1.2355, "a")]}
    write_rttm(tmp_path / "a.rttm", turns)
    assert (tmp_path / "a.rttm").read_text(encoding="utf-8").splitlines() == [
        "SPEAKER m 1 0.000 1.001 <NA> <NA> a <NA> <NA>",
        "SPEAKER m 1 2.000 1.500 <NA> <NA> b <NA> <NA>",
        "SPEAKER ü 1 1.234 0.002 <NA> <NA> a <NA> <NA>",
    ]
    for recording, speaker in (("a b", "c"), ("a", "b\tc"), ("", "c"), ("a", "")):
        with pytest.raises(ValueError, match="RTTM names must be one word without spaces, found"):
            write_rttm(tmp_path / "b.rttm", {recording: [Turn(0, 1, speaker)]})
    assert not (tmp_path / "b.rttm").exists()
    one_word("a-b/c")


@pytest.mark.parametrize("rate_hz", [8000, 16000])
@pytest.mark.parametrize("samples", [700, 8000, 10**6])
def test_long_audio_in_pieces_is_the_same_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, samples: int
) -> None:
    monkeypatch.setattr("featstore.corpora.audio._BLOCK_S", 1)
    rng = np.random.default_rng(0)
    sf.write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, (30000, 2)).astype(np.float32), 8000, subtype="FLOAT")
    for source in (str(tmp_path / "a.wav"), Utterance("a", str(tmp_path / "a.wav"), 0.5, 2.2, "a")):
        whole = load(source, rate_hz)
        found = list(pieces(source, rate_hz, samples))
        np.testing.assert_array_equal(np.concatenate(found), whole)
        assert [len(piece) for piece in found[:-1]] == [samples] * (len(whole) // samples - (len(whole) % samples == 0))
        assert 0 < len(found[-1]) <= samples


def test_pieces_of_what_is_no_audio(tmp_path: Path) -> None:
    sf.write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 8000)
    with pytest.raises(ValueError, match="silent"):
        list(pieces(tmp_path / "silent.wav", 8000, 100))
    with pytest.raises(ValueError, match="no such file"):
        list(pieces(tmp_path / "none.wav", 8000, 100))
    sf.write(tmp_path / "a.wav", tone(1.0), 8000)
    with pytest.raises(ValueError, match=r"the file ends at 1.000 s"):
        next(pieces(Utterance("a", str(tmp_path / "a.wav"), 0.5, 0.7, "a"), 8000, 100))
