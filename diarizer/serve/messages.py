"""What clients say in words: the start of a connection, and what they ask of a session."""

from __future__ import annotations

import json
from typing import Any

from diarizer.serve.board import Board
from diarizer.serve.session import Session
from diarizer.serve.sound import MOSHI_RATE_HZ

#: Fields of a start message, what each must be, and what it is without being said.
_START: dict[str, tuple[tuple[type, ...], Any]] = {
    "token": ((str,), ""),
    "session": ((str,), None),
    "after": ((int,), -1),
    "watch": ((bool,), False),
    "format": ((str,), "f32"),
    "rate_hz": ((int,), MOSHI_RATE_HZ),
    "channels": ((int,), 1),
    "latency_s": ((int, float), None),
}
_MAX_NAME = 80


def start_of(data: object) -> dict[str, Any]:
    """A start message's fields, checked.

    Raises
    ------
    ValueError : it is none.
    """
    told = _object(data, "start")
    if told.pop("type", None) != "start":
        raise ValueError('the first message must be {"type": "start", …}')
    for name, value in told.items():
        if name not in _START:
            raise ValueError(f"start: unknown field {name!r}; known: {', '.join(_START)}")
        if type(value) not in _START[name][0] and not (value is None and _START[name][1] is None):
            raise ValueError(f"start: {name}: expected {_START[name][0][-1].__name__}, found {value!r:.60}")
    return {name: told.get(name, usual) for name, (_, usual) in _START.items()}


async def command(board: Board, data: str) -> None:
    """Do what a text message asks of a session.

    Raises
    ------
    ValueError : it is none, or cannot be done.
    """
    told = _object(data, "message")
    kind = told.get("type")
    if kind not in ("rename", "finalize", "reset"):
        raise ValueError(f"message: type: expected rename, finalize or reset, found {kind!r:.60}")
    if kind == "rename":
        speaker, name = told.get("speaker"), told.get("name")
        for what, value in (("speaker", speaker), ("name", name)):
            if not isinstance(value, str) or not 0 < len(value.strip()) <= _MAX_NAME or not value.isprintable():
                raise ValueError(f"rename: {what}: expected 1 to {_MAX_NAME} printable characters, found {value!r:.90}")
        await board.rename(str(speaker), str(name).strip())
    elif not isinstance(board, Session):
        raise ValueError(f"{kind}: this session's audio comes from elsewhere, and so does its end")
    else:
        await (board.finalize() if kind == "finalize" else board.reset())


def _object(data: object, what: str) -> dict[str, Any]:
    try:
        told = json.loads(data) if isinstance(data, str) else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"{what}: expected a JSON object as text, found {str(data)[:60]!r}")
    return told


def error(message: str, fatal: bool) -> str:
    """What tells a client that it did wrong; `fatal` where the connection closes."""
    return json.dumps({"type": "error", "message": message, "fatal": fatal})
