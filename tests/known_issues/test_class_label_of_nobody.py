"""A ClassLabel of -1, Hugging Face's "no label", became the last speaker of the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from featstore.corpora.manifest import read_manifest


def test_no_label_is_no_speaker(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra hub)")
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": kind, "speaker": datasets.ClassLabel(names=["ann", "bob"])})
    rows = {"audio": [{"bytes": b"", "path": None}] * 4, "speaker": [0, 1, -1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "hf")
    assert [u.speaker for u in read_manifest(tmp_path / "hf")] == ["ann", "bob", None, None]
