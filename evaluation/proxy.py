"""What the proxy's runs say beyond error rates: the published measure, agreement with TitaNet, and what gradients do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.experiments import called
from evaluation.rows import Row
from evaluation.words import points, rate, verdict

#: Gradients carry a voice if every judge accepts at least so many of the pairs, and so many at most of the controls. Fixed
#: before the first run.
CARRIED, CONTROLS = 0.7, 0.1
#: The judge that proves nothing.
ITSELF = "itself"
_AIMS = ("target", "wrong", "random")
_MEASURED = {"raw": "mean of the codes' vectors", "titanet": "TitaNet", "random vectors": "vectors that mean nothing"}


def proxies(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each row of the proxy: what its page shows beside error rates; of several seeds sums of counts, means of the rest."""
    return [_shown(row) for row in rows if row.experiment == "5"]


def _shown(row: Row) -> dict[str, Any]:
    results = [run.result for run in row.runs]
    return {
        "label": row.label,
        "seeds": len(results),
        "judges": judges(row),
        "verdict": _carries(judges(row)),
        "changed": _mean([result["ascent"]["changed_codes"]["target"] for result in results]),
        "steps": results[0]["ascent"]["steps"],
        "published": [
            {
                "name": _MEASURED.get(name, name),
                **{
                    key: _mean([result["published_measure"][name][key] for result in results])
                    for key in ("seen_separation", "unseen_separation", "all_separation", "worst_cosine")
                },
                "eer": row.figures[name]["eer"] if name in row.figures else 0.5 if name == "random vectors" else None,
            }
            for name in results[0]["published_measure"]
        ],
        "agreement": [
            {
                "name": row.figures[name]["name"].removesuffix(f", {called(tuple(row.features))}"),
                "value": _mean([result["agreement"][name] for result in results]),
            }
            for name in results[0]["agreement"] or ()
        ],
    }


def judges(row: Row) -> list[dict[str, Any]]:
    """Each judge's name, how many pairs it had to decide, and how many it accepted by aim; the proxy itself comes last."""
    told = [run.result["ascent"]["judges"] for run in row.runs]
    names = [name for name in told[0] if name != ITSELF] + [ITSELF]
    return [
        {
            "name": name,
            "independent": name != ITSELF,
            "pairs": sum(one[name]["pairs"] for one in told),
            **{whose: _mean([one[name][whose] for one in told]) for whose in ("own", "others")},
            **{aim: sum(one[name][aim]["accepted"] for one in told) for aim in _AIMS},
        }
        for name in names
        if all(name in one for one in told)
    ]


def _carries(found: Sequence[Mapping[str, Any]]) -> str:
    """ "yes", "partly" or "no": whether judges that had no part in it hear the target's voice in what gradients made."""
    others = [judge for judge in found if judge["independent"] and judge["pairs"]]
    if not others:
        return "unknown"
    enough = [judge["target"] >= CARRIED * judge["pairs"] for judge in others]
    clean = [max(judge["wrong"], judge["random"]) <= CONTROLS * judge["pairs"] for judge in others]
    if all(enough) and all(clean):
        return "yes"
    more = [judge["target"] > 2 * max(judge["wrong"], judge["random"]) for judge in others]
    return "partly" if all(more) else "no"


_VERDICTS = {
    "yes": "Gradients through it carry a voice: every judge that had no part in it hears the target in what they made",
    "partly": "Gradients through it carry a voice more than twice as often as controls do, but not past the bar set "
    f"beforehand (every judge {100 * CARRIED:.0f} % of the pairs, {100 * CONTROLS:.0f} % of the controls at most)",
    "no": "Gradients through it do not clearly carry a voice beyond the proxy itself: what they make is mostly an adversarial "
    "example",
    "unknown": "Whether gradients through it carry a voice was not judged",
}


def sentences(row: Row, seeds: str) -> Iterator[tuple[str, str]]:
    """(measure, sentence) for the report's findings; `seeds`: how to say that there are several."""
    figures, names = row.figures, called(tuple(row.features))
    own, raw, probe = figures["proxy"], figures["raw"], figures["probe"]
    told = f"EER {rate(own['eer'], own['interval'])}{seeds} (random cosine: 50 %)"
    if gap := own["against_raw"]:
        told += f", {points(gap)} against the cosine of the codes' mean vector ({rate(raw['eer'], None)}): "
        told += verdict(gap, "speakers")
    yield (
        "EER",
        f"The proxy, an embedding of {names} alone: {told}. A linear probe on that mean: {rate(probe['eer'], None)}.",
    )
    forms = {
        "on logits that give the right codes half of the probability": "proxy_soft",
        "with codes against such logits, as a training loop compares them,": "proxy_mixed",
        "on the likeliest codes of these logits (straight through)": "proxy_straight_through",
    }
    parts = [
        f"{words} {rate(form['eer'], None)}"
        + (f" ({points(gap)} against codes)" if (gap := form["against_codes"]) else "")
        for words, name in forms.items()
        if (form := figures.get(name))
    ]
    if parts:
        yield "EER", f"The same proxy {'; '.join(parts)}."
    found = judges(row)
    accepted = "; ".join(
        f"{judge['name']} {judge['target']} of {judge['pairs']} pairs ({_percent(judge, 'target')}), of climbs towards a "
        f"third speaker {_percent(judge, 'wrong')} (of strangers' real speech {100 * judge['others']:.0f} %), towards nobody "
        f"{_percent(judge, 'random')}"
        for judge in found
        if judge["independent"]
    )
    yield "gradient", f"{_VERDICTS[_carries(found)]}. Taken for the target's voice: {accepted}."
    measure = row.result["published_measure"]
    yield (
        "published measure",
        f"1 − mean cosine between speakers, which the publication reports: the proxy "
        f"{measure['proxy']['all_separation']:.2f}, vectors that mean nothing {measure['random vectors']['all_separation']:.2f}. "
        "It does not look at whether a speaker resembles himself, so it ranks nothing.",
    )


def _percent(judge: Mapping[str, Any], aim: str) -> str:
    return f"{100 * judge[aim] / judge['pairs']:.0f} %" if judge["pairs"] else "–"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
