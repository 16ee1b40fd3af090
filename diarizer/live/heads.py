"""Which head follows which."""

from __future__ import annotations

from diarizer.heads import CascadeHead, FollowedHead, Head, StitchedHead
from diarizer.live.adapter import LiveAdapter
from diarizer.live.cascade import LiveCascade
from diarizer.live.engine import LiveHead
from diarizer.live.follower import LiveFollower
from diarizer.live.timing import Timing


def live_head(head: Head, timing: Timing, slots: int) -> LiveHead:
    """A head of whole recordings, on the fly.

    Raises
    ------
    ValueError : there is no such way for it.
    """
    if isinstance(head, CascadeHead):
        return LiveCascade(head.cascade, timing, slots)
    if isinstance(head, FollowedHead):
        return LiveFollower(head.head, head.how, timing)
    if isinstance(head, StitchedHead):
        return LiveAdapter(head.head, head.how, timing, slots)
    raise ValueError("this kind of run cannot be used live")
