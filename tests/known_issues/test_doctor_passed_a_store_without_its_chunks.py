"""`evaluation doctor --store` found nothing wrong with a store whose chunk files were missing or cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import featstore
from cli.evaluation import app
from tests.featstore.store.test_store import fill


@pytest.mark.parametrize("array", ["frames", "mean"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-1])])
def test_one_line_says_so(tmp_path: Path, array: str, harm: object) -> None:
    fill(tmp_path / "s")
    assert not any(part.lacking() for name in ("mimi",) for part in featstore.open(tmp_path / "s").index(name).parts)
    chunk = next((tmp_path / "s/features.zarr/mimi").glob(f"*/{array}/c/0/0"))
    harm(chunk)  # type: ignore[operator]
    told = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "s"), "--json"])
    assert told.exit_code == 1 and told.output.count("missing or cut") == 1
    assert f"1: {chunk.parents[3].name}/{array}/c/0/0" in told.output and "featstore verify" in told.output
