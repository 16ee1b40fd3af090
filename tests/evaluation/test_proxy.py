"""What the report says of gradients: its verdict follows from the judges that had no part in the climb."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.experiments import EXPERIMENTS, OF_KIND, asked, called, label_of
from evaluation.findings import findings
from evaluation.proxy import _carries, judges, proxies
from evaluation.rows import Row, RunFacts


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


def of_judge(target: int, wrong: int, random: int, own: float, others: float) -> dict[str, Any]:
    told = {aim: {"accepted": n} for aim, n in (("target", target), ("wrong", wrong), ("random", random))}
    return {"pairs": 10, "own": own, "others": others, **told}


def separation(value: float) -> dict[str, float]:
    keys = ("seen_separation", "unseen_separation", "all_separation", "worst_cosine")
    return {key: value + k / 100 for k, key in enumerate(keys)}


def a_row() -> Row:
    """Two seeds; the second climbs better and agrees more."""
    runs = []
    files = SimpleNamespace(protocol="sound", features={"mimi-codes": None}, config={"config": {}}, warnings=[])
    for k in (0, 1):
        ascent = {"itself": of_judge(10, 0, 0, 1.0, 0.0), "linear": of_judge(5 + 2 * k, 1, k, 0.6 + k / 5, 0.1)}
        ascent |= {"only here": of_judge(1, 1, 1, 1.0, 1.0)} if k else {}
        result = {
            "kind": "proxy", "systems": {},
            "ascent": {"judges": ascent, "changed_codes": {"target": 0.2 + k / 10, "wrong": 9}, "steps": 80},
            "published_measure": {"proxy": separation(0.5 + k / 10), "random vectors": separation(1.0), "raw": separation(0.1)},
            "agreement": {"proxy": 0.4 + k / 5, "raw": 0.1},
        }  # fmt: skip
        runs.append(RunFacts(files, result, "5"))
    row = Row(runs, runs[0].result)

    def system(name: str, eer: float, **more: Any) -> dict[str, Any]:
        return {"name": f"{name}, Mimi's codes", "eer": eer, "interval": None, "against_raw": None, **more}

    gap = {"estimate": -0.1, "low": -0.2, "high": -0.05, "num_units": 9}
    row.figures = {
        "raw": system("raw cosine", 0.3), "probe": system("linear probe", 0.25),
        "proxy": system("proxy", 0.2, against_raw=gap, spread=[0.19, 0.21]),
        "proxy_soft": system("soft", 0.22, against_codes=gap | {"estimate": 0.02, "low": 0.01, "high": 0.03}),
        "proxy_mixed": system("mixed", 0.21, against_codes=None),
    }  # fmt: skip
    return row


def test_of_several_seeds_counts_are_summed_and_shares_averaged() -> None:
    row = a_row()
    assert judges(row) == [
        {**judge(12, 2, 1, pairs=20, name="linear"), "own": pytest.approx(0.7), "others": pytest.approx(0.1)},
        {**judge(20, 0, 0, pairs=20, name="itself"), "own": 1.0, "others": 0.0},
    ]
    (told,) = proxies([row, SimpleNamespace(experiment="4")])
    assert (told["label"], told["seeds"], told["verdict"], told["steps"]) == ("proxy on Mimi's codes", 2, "partly", 80)
    assert told["changed"] == pytest.approx(0.25)
    of = {"proxy": 0.55, "vectors that mean nothing": 1.0, "mean of the codes' vectors": 0.1}
    assert [(line["name"], line["eer"]) for line in told["published"]] == list(zip(of, (0.2, 0.5, 0.3), strict=True))
    for line, value in zip(told["published"], of.values(), strict=True):
        assert {key: line[key] for key in separation(0)} == pytest.approx(separation(value))
    assert told["agreement"] == [
        {"name": "proxy", "value": pytest.approx(0.5)}, {"name": "raw cosine", "value": pytest.approx(0.1)}
    ]  # fmt: skip


def test_what_is_said_of_a_proxy() -> None:
    told = [(f["measure"], f["text"]) for f in findings([a_row()], 20, 0)]
    assert told == [
        (
            "EER",
            "The proxy, an embedding of Mimi's codes alone: EER 20.0 %, mean of 2 seeds (19.0–21.0 %) (random cosine: 50 %), "
            "−10.0 points [−20.0 … −5.0] against the cosine of the codes' mean vector (30.0 %): better. A linear probe on that "
            "mean: 25.0 %.",
        ),
        (
            "EER",
            "The same proxy on logits that give the right codes half of the probability 22.0 % (+2.0 points [1.0 … 3.0] against "
            "codes); with codes against such logits, as a training loop compares them, 21.0 %.",
        ),
        (
            "gradient",
            "Gradients through it carry a voice more than twice as often as controls do, but not past the bar set beforehand "
            "(every judge 70 % of the pairs, 10 % of the controls at most). Taken for the target's voice: linear 12 of 20 pairs "
            "(60 %), of climbs towards a third speaker 10 % (of strangers' real speech 10 %), towards nobody 5 %.",
        ),
        (
            "published measure",
            "1 − mean cosine between speakers, which the publication reports: the proxy 0.52, vectors that mean nothing 1.02. It "
            "does not look at whether a speaker resembles himself, so it ranks nothing.",
        ),
    ]


# ---- what things are called


@pytest.mark.parametrize(
    ("id", "features", "parts", "label"),
    [
        ("1", ("mimi",), {}, "raw cosine of Mimi"),
        ("1.5", ("lyra", "titanet"), {}, "probe on lyra and TitaNet"),
        ("poc", ("mimi",), {}, "PoC adapter on Mimi"),
        ("2", ("a", "b", "c"), {}, "adapter on a, b and c"),
        ("2.5", ("mimi",), {}, "adapter on Mimi, top layers unfrozen"),
        ("3", ("mimi", "titanet"), {}, "fusion of Mimi and TitaNet"),
        ("4", ("mimi", "titanet"), {}, "cascade: Mimi says when, TitaNet who"),
        ("4", ("x", "y"), {"when": ("y",), "who": ("x",)}, "cascade: y says when, x who"),
        ("5", ("mimi-codes",), {}, "proxy on Mimi's codes"),
        ("6", ("mimi", "lyra", "titanet"), {}, "set of voices from Mimi and lyra, taught by TitaNet"),
        ("6", ("a", "b"), {"when": ("b",), "who": ("a",)}, "set of voices from b, taught by a"),
        ("7", ("titanet",), {}, "one voice out of a mixture, told by TitaNet"),
    ],
)
def test_what_a_head_is_called(
    id: str, features: tuple[str, ...], parts: dict[str, tuple[str, ...]], label: str
) -> None:
    assert label_of(id, features, **parts) == label


def test_questions_commands_and_published_figures_are_of_the_encoders_at_hand() -> None:
    told = asked("3", ("lyra", "resemblyzer"))
    assert told["question"] == "lyra for when, resemblyzer for who?" and "features" not in told
    assert told["command"] == "trainers fit fusion --set feature=lyra+resemblyzer"
    assert told["published"] == "of Mimi and TitaNet: DER 60.93 % (Mimi alone 65.03 %)"
    own = asked("3", ())
    assert (own["question"], own["command"]) == ("Mimi for when, TitaNet for who?", "trainers fit fusion")
    assert own["published"] == "DER 60.93 % (Mimi alone 65.03 %)" == asked("3", ("mimi", "titanet"))["published"]
    assert asked("4", ("a", "b"))["command"] == "trainers fit cascade --set when=a --set who=b"
    assert asked("4", ("a", "b"))["published"] == "none"
    unmix = asked("6", ("a", "b", "c"))
    assert unmix["question"] == "Which voices are in a mixture, by a and b, taught by c?"
    assert unmix["command"] == "trainers fit unmix --set feature=a+b --set teacher=c"
    assert asked("1", ("a", "b"))["question"] == "Is there any speaker signal in the frames of a and b?"
    assert called(()) == "no encoder"


def test_every_kind_of_run_has_its_experiment() -> None:
    assert OF_KIND == {
        **{
            "probe": "1.5",
            "adapter": "2",
            "unfreeze": "2.5",
            "fusion": "3",
            "cascade": "4",
            "proxy": "5",
            "unmix": "6",
        },
        "tse": "7",
    }
    published = {id: told["published"] for id, told in EXPERIMENTS.items()}
    assert published["1"] == "EER 35.01 %" and published["1.5"].startswith("EER 20.48 %")
    assert (
        published["2"] == "FA+Miss 4.6 %, confusion ≈ 33 %; DER 65.03 % in step 3" and "33 % → 46 %" in published["2.5"]
    )
