"""What could not be extracted: ``STORE/failures.jsonl``, whoever writes at the same time, on whatever machine.

A writer puts its failures into files of its own under ``STORE/failures/``, and such a file never changes.
``failures.jsonl`` is all of them in one, for people to read. Neither locks nor appends are needed: shared disks keep
their promises about neither.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Container
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from featstore import files
from featstore.types import Utterance

Entry = dict[str, str]


class Failures:
    """The failures of one writer; each is a dict of feature, id, source and error."""

    def __init__(self, store: Path, feature: str) -> None:
        self._store, self._feature = store, feature
        self._unwritten: deque[Entry] = deque()  # one thread may add while another flushes
        self._known: set[str] = set()

    def add(self, utterance: Utterance, error: Exception | str) -> Entry | None:
        """Note a failure; None if one of this utterance was noted before. It is on disk after `flush`."""
        entry = {"feature": self._feature, "id": utterance.id, "source": utterance.audio, "error": str(error)}
        return entry if self.keep(entry) else None

    def keep(self, entry: Entry) -> bool:
        """Note a failure that another writer met; False if one of this utterance was noted before."""
        if entry["id"] in self._known:
            return False
        self._known.add(entry["id"])
        self._unwritten.append(entry)
        return True

    def flush(self) -> None:
        """Write what was noted since the last time.

        Raises
        ------
        OSError : no space, no permission.
        """
        if entries := list(self._unwritten):
            _write(self._store, entries)
            for _ in entries:  # only now: what could not be written is there for the next time
                self._unwritten.popleft()
            _show(self._store)


def settle(store: Path, feature: str, there: Container[str]) -> None:
    """Drop the failures of utterances that the feature holds by now (`there`), and gather the rest in one file.

    Raises
    ------
    OSError : no space, no permission.
    """
    listed, paths = _read(store)
    if not paths:
        return
    kept = [entry for (name, id), entry in listed.items() if name != feature or id not in there]
    if len(paths) > 1 or len(kept) < len(listed):
        if kept:
            _write(store, kept)
        for path in paths:  # every line of theirs is in the new file, or of no use any more
            path.unlink(missing_ok=True)
    _show(store)


def _folder(store: Path) -> Path:
    return store / "failures"


def _write(store: Path, entries: list[Entry]) -> None:
    _folder(store).mkdir(exist_ok=True)
    # Unique without asking anyone: time first, so that names sort in the order of writing.
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.urandom(4).hex()}.jsonl"
    files.write_atomically(_folder(store) / name, _lines(entries))


def _lines(entries: list[Entry]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _read(store: Path) -> tuple[dict[tuple[str, str], Entry], list[Path]]:
    """The newest failure of each (feature, id), and the files that are whole: one with a damaged line stays."""
    listed: dict[tuple[str, str], Entry] = {}
    paths: list[Path] = []
    for path in sorted(p for p in _folder(store).glob("*.jsonl") if not p.name.startswith(".")):
        with suppress(FileNotFoundError):  # somebody else has just gathered it
            entries = read_entries(path)
            listed |= {(entry["feature"], entry["id"]): entry for entry in entries if entry}
            if None not in entries:
                paths.append(path)
    return listed, paths


def read_entries(path: Path) -> list[Entry | None]:
    """The lines of one file of failures; None for a damaged one.

    Raises
    ------
    FileNotFoundError : another writer has just gathered it.
    """
    return [_entry(line) for line in path.read_bytes().splitlines()]


def _entry(line: bytes) -> Entry | None:
    """What a line says; None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and entry.keys() >= {"feature", "id"}
    return entry if whole and all(isinstance(value, str) for value in entry.values()) else None


def _show(store: Path) -> None:
    """Make ``failures.jsonl`` say what the files say. Whoever writes it last looks again, so it ends up right."""
    shown = None
    while (listed := _read(store)[0]) != shown:
        shown = listed
        view = store / "failures.jsonl"
        # A name of its own: two machines may have given one number to two processes.
        temporary = _folder(store) / f".{os.urandom(8).hex()}.tmp"
        if listed:
            temporary.write_bytes(_lines(list(listed.values())))
            os.replace(temporary, view)
        else:
            view.unlink(missing_ok=True)
