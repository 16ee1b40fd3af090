"""What the report says of gradients: its verdict follows from the judges that had no part in the climb."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.proxy import _carries


def judge(target: int, wrong: int = 0, random: int = 0, *, pairs: int = 10, name: str = "a judge") -> dict[str, Any]:
    told = {"name": name, "independent": name != "itself", "pairs": pairs, "own": 0.8, "others": 0.05}
    return {**told, "target": target, "wrong": wrong, "random": random}


@pytest.mark.parametrize(
    ("judges", "verdict"),
    [
        ([judge(7, 1, 1), judge(9)], "yes"),
        ([judge(7, 2), judge(9)], "partly"),  # a control passes
        ([judge(7, 0, 2), judge(9)], "partly"),
        ([judge(6, 1), judge(10)], "partly"),  # one judge is not convinced
        ([judge(9), judge(2, 1)], "no"),  # one hears no more than in a control
        ([judge(0)], "no"),
        ([judge(2, 1), judge(10, name="itself")], "no"),  # the proxy's own opinion proves nothing
        ([judge(10, name="itself")], "unknown"),
        ([judge(0, pairs=0)], "unknown"),
    ],
)
def test_the_verdict_follows_from_all_independent_judges(judges: list[dict[str, Any]], verdict: str) -> None:
    assert _carries(judges) == verdict
