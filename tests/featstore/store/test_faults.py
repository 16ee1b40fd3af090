"""What a commit must survive: a power cut keeps only what was synced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featstore import files
from featstore.store import layout
from tests.featstore.store.test_store import fill


@pytest.mark.parametrize("killed_before", [False, True])
def test_all_of_a_part_and_the_folders_above_it_is_synced_before_the_index_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: bool
) -> None:
    store = tmp_path / "s"
    if killed_before:  # the store's first writer made everything, and was killed before it synced
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", lambda path: None)
            fill(store, count=0)
    synced: set[tuple[int, int]] = set()
    commits: list[Path] = []
    fsync, replace = os.fsync, os.replace

    def log_fsync(handle: int) -> None:
        fsync(handle)
        facts = os.fstat(handle)
        synced.add((facts.st_dev, facts.st_ino))

    def log_replace(source: Path, target: Path) -> None:
        if Path(target).parent == layout.index_dir(store, "mimi"):
            part = layout.feature_dir(store, "mimi") / Path(target).stem
            facts = layout.utterances_dir(store) / Path(target).name
            needed = {part, *part.rglob("*"), facts, facts.parent, Path(source), Path(target).parent}
            needed |= {layout.feature_dir(store, "mimi"), layout.group_dir(store), store / "index", store, tmp_path}
            unsynced = [p for p in sorted(needed) if (p.stat().st_dev, p.stat().st_ino) not in synced]
            assert not unsynced, unsynced
            commits.append(Path(target))
            folder = Path(target).parent.stat()
            synced.discard((folder.st_dev, folder.st_ino))  # the rename must be synced once more
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    fill(store, count=12, part_bytes=1200)
    assert len(commits) >= 2
    folder = layout.index_dir(store, "mimi").stat()
    assert (folder.st_dev, folder.st_ino) in synced
