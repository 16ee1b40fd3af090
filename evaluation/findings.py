"""What the sound runs say in sentences, each with its interval; “not clearly” where chance covers a difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.results import RunFacts, find_run, paired_difference


def findings(runs: Sequence[RunFacts], num_resamples: int, seed: int) -> list[str]:
    """The sentences, in the order of the experiments; of those that were not run, none."""
    return [*_of_the_probe(runs), *_against_the_adapter(runs, num_resamples, seed), *_of_fixed_channels(runs)]


def _of_the_probe(runs: Sequence[RunFacts]) -> Iterator[str]:
    probe, in_sample = find_run(runs, "1.5", "sound"), find_run(runs, "1.5", "reference")
    if not probe:
        return
    raw, trained = probe.figures["raw"], probe.figures["probe"]
    yield (
        f"Untrained cosine on mean-pooled latents errs at {rate(raw['eer'], raw.get('interval'))} "
        "(50 % would be chance)."
    )
    if gap := trained.get("against_raw"):
        yield (
            f"A linear probe, trained on other speakers, errs at {rate(trained['eer'], trained['interval'])}: "
            f"{_verdict(gap)} than raw cosine."
        )
    if in_sample:
        own = in_sample.figures["probe"]["eer"]
        yield (
            f"Trained on its own test speakers, as published, the probe errs at {100 * own:.1f} % instead of "
            f"{100 * trained['eer']:.1f} %."
        )


def _against_the_adapter(runs: Sequence[RunFacts], num_resamples: int, seed: int) -> Iterator[str]:
    adapter = find_run(runs, "2", "sound")
    for id, words in (("2.5", "Unfreezing Mimi's top layers"), ("3", "Adding TitaNet")):
        other = find_run(runs, id, "sound")
        if not adapter or not other:
            continue
        steps, against = other.result["steps"], adapter.result["steps"]
        if not 0.5 <= steps / max(against, 1) <= 2:
            yield f"{words} cannot be judged from these runs: {steps} training steps against the adapter's {against}."
        elif gap := paired_difference(other, adapter, num_resamples, seed):
            yield f"{words} is {_verdict(gap.to_json())} than the adapter alone (DER)."


def _of_fixed_channels(runs: Sequence[RunFacts]) -> Iterator[str]:
    for id in ("2", "2.5", "3"):
        run = find_run(runs, id, "reference")
        if run and run.figures["fixed_der"]:
            share = run.figures["fixed_der"] - run.figures["der"]
            yield (
                f"Of the {100 * run.figures['fixed_der']:.1f} % that the reference protocol reports for experiment {id}, "
                f"{100 * share:.1f} points are its scoring with fixed channels."
            )


def _verdict(gap: dict[str, Any]) -> str:
    points = f"{100 * abs(gap['estimate']):.1f} points (95 % interval of the difference {span(gap)})"
    if gap["high"] < 0:
        return f"{points} better"
    if gap["low"] > 0:
        return f"{points} worse"
    return f"not clearly better or worse: {points} {'better' if gap['estimate'] < 0 else 'worse'}"


def span(interval: dict[str, Any]) -> str:
    """The ends of an interval in percent."""
    return f"{100 * interval['low']:.1f} … {100 * interval['high']:.1f}"


def rate(value: float | None, interval: dict[str, Any] | None) -> str:
    """A rate in percent, with its interval where there is one."""
    if value is None:
        return "undefined"
    return f"{100 * value:.1f} %" + (f" [{span(interval)}]" if interval else "")
