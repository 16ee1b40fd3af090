"""A run put to use on the fly: sound in as it comes, turns out as they happen."""

from diarizer.live.engine import Live
from diarizer.live.turns import LiveTurn, Update

__all__ = ["Live", "LiveTurn", "Update"]
