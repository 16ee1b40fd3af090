"""Of seeds of which only the first was rated, its ESTOI stood in a row that is called the mean of all."""

from __future__ import annotations

from pathlib import Path

from tests.evaluation.test_voices import VOICES, a_run, measured


def test_what_was_not_rated_of_every_seed_is_not_told_of_them_all(tmp_path: Path) -> None:
    unrated = {name: values for name, values in VOICES.items() if "estoi" not in name}
    both = measured(a_run(tmp_path / "seed0"), a_run(tmp_path / "seed1", unrated))
    assert all(system["sounds"] == {} for system in both.figures["systems"].values())
    assert measured(both.runs[0]).figures["systems"]["enrolled"]["sounds"]
