"""In a file with a byte-order mark, what is not UTF-8 at the beginning of a line was said to be in the line before."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from featstore.corpora.rttm import lines


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_the_line_is_the_files(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a.rttm").write_bytes(mark + b"one\ntwo\n\xe4\n")
    with pytest.raises(ValueError, match=r"a\.rttm:3: not UTF-8 text"):
        lines(tmp_path / "a.rttm")
    (tmp_path / "a.rttm").write_bytes(mark + b"one\ntwo")
    assert lines(tmp_path / "a.rttm") == ["one", "two"]
