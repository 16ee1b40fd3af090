"""repair: set damaged parts aside, so that a resumed extraction redoes them, and clean up after interrupted writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from featstore import files
from featstore.store import layout, metadata
from featstore.store.changes import name_changes, whole_changes
from featstore.store.check import Finding


def mend(store: Path, finding: Finding) -> bool:
    """Deal with a finding; False where there is nothing to do.

    Raises
    ------
    OSError : no space, no permission.
    """
    index = layout.PartFiles(finding.feature, finding.part).index
    if not finding.remedy or (index not in finding.paths and layout.names_part(store, finding.part)):
        return False  # committed since we looked: on a disk without locks
    if finding.remedy == "forget":
        change = store / finding.paths[0]
        if os.path.lexists(change):
            _move(store, change)
        name_changes(store, [name for name in metadata.check_version(store) if name != change.stem])
        return True
    for path in (store / name for name in finding.paths):
        if finding.remedy == "write":
            if path.is_dir():
                _move(store, path)
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, metadata.root_json(whole_changes(store)))
        elif not os.path.lexists(path):
            continue
        elif finding.remedy == "move":
            _move(store, path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        files.sync(path.parent)
    return True


def _move(store: Path, path: Path) -> None:
    """Into ``STORE/damaged``, which is on the disk before the file is gone from where it was."""
    target = store / "damaged" / path.relative_to(store)
    name, number = target.name, 0
    while os.path.lexists(target):  # it was damaged before
        number += 1
        target = target.with_name(f"{name}.{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent
    while folder != store.parent:
        files.sync(folder)
        folder = folder.parent
    os.replace(path, target)
    files.sync(target.parent)
