"""What stays of a live session: RTTM and JSON, a line as a turn closes, never rewritten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from diarizer.live.turns import Update


class Recorded:
    """``NAME.rttm`` and ``NAME.jsonl``, flushed line by line.

    Raises
    ------
    ValueError : one of them is there already, or cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = "_".join(name.split()) or "live"
        self.paths = (folder / f"{self.name}.rttm", folder / f"{self.name}.jsonl")
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True)
            for path in self.paths:  # before one is made and the other refused
                if path.exists():
                    raise FileExistsError(0, "", str(path))
            self._files = [open(path, "x", encoding="utf-8", buffering=1) for path in self.paths]  # noqa: SIM115
        except FileExistsError as error:
            if not folder.is_dir():
                raise ValueError(f"{folder}: a file, where a folder is expected; choose another --out") from None
            raise ValueError(
                f"{error.filename}: is there already, and a live session's file is never rewritten; choose another --out"
            ) from None
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written into: {error.strerror}; choose another --out") from None

    def take(self, updates: Iterable[Update]) -> None:
        """Write the turns that are over."""
        rttm, lines = self._files
        for turn in (turn for update in updates for turn in update.final):
            speaker = "_".join(turn.speaker.split())
            length = turn.end_s - turn.start_s
            rttm.write(f"SPEAKER {self.name} 1 {turn.start_s:.3f} {length:.3f} <NA> <NA> {speaker} <NA> <NA>\n")
            lines.write(json.dumps(turn.json(), ensure_ascii=False) + "\n")

    def __enter__(self) -> Recorded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
