"""`featstore info` counted the lines of STORE/failures.jsonl in a file that it never closed."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

from featstore.facts import facts_of
from tests.featstore.store.test_store import fill


def test_the_failures_are_counted_and_the_file_is_closed(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s" / "failures.jsonl").write_bytes(b'{"id": "x\xc3\xa9"}\n{"id": "y"}\n')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert facts_of(tmp_path / "s")["failures"] == 2
        gc.collect()
    assert [str(warning.message) for warning in told] == []
