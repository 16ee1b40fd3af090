"""What a session has said, without a server: which messages a reader gets, and which are overtaken."""

from __future__ import annotations

import json
from typing import Any

from diarizer.serve.board import Board, Counts, Limits, Reader
from tests.diarizer.serve import FACTS, TinyUpdate

TURN = {"start_s": 0.0, "end_s": 0.5, "speaker": "speaker1", "sure": 1.0}


def told(reader: Reader) -> list[dict[str, Any]]:
    return [json.loads(message) for message in iter(reader.take, None)]


def test_a_partial_turn_is_not_told_after_it_became_final() -> None:
    board = Board(FACTS, Limits(), Counts())
    reader = Reader(board)
    board.publish([TinyUpdate(0, 0.5, (), (TURN,)), TinyUpdate(1, 0.9, (TURN,), ())])
    assert [message["seq"] for message in told(reader)] == [1]
    assert board.ready()["partial"] == [] and board.counts.partials_dropped == 0
    board.publish([TinyUpdate(2, 1.0, (), (TURN,))])
    assert [message["seq"] for message in told(reader)] == [2] and board.ready()["partial"] == [TURN]


def test_a_reset_and_an_end_leave_nothing_of_before_to_be_told() -> None:
    for close, kind in ((Board.restarted, "reset"), (Board.end, "ended")):
        board = Board(FACTS, Limits(), Counts())
        reader = Reader(board)
        board.publish([TinyUpdate(0, 0.5, (), (TURN,))])
        board.clock(0.5, 0.6)
        close(board)
        assert [message["type"] for message in told(reader)] == [kind]
        assert board.ready()["partial"] == [] and board.ready()["ended"] == (kind == "ended")
    board.end("again")
    assert told(reader) == []  # it ends once
