"""The `trainers` command: features in, runs out."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import going_on_later, user_errors, warn
from cli.options import VersionOption, new_app
from trainers import kinds, presets

app = new_app()


Kind = StrEnum("Kind", kinds.NAMES)  # type: ignore[misc]  # mypy cannot see the names of a table
Preset = StrEnum("Preset", presets.NAMES)  # type: ignore[misc]
_PUBLISHED = Preset("published")


class Protocol(StrEnum):
    """How to train and measure."""

    sound = "sound"
    reference = "reference"


@app.callback()
def main(version: VersionOption = False) -> None:
    """Train on features that `featstore extract` made; each run is one folder."""


_EXAMPLES = """
Examples:

  trainers fit probe --store STORE --out runs/probe --set trials=trials.txt

  trainers fit adapter --store STORE --out runs/adapter --protocol reference

  trainers fit fusion --store STORE --out runs/fusion --preset small --seeds 3      (minutes on a laptop)

  trainers fit fusion --store STORE --out runs/fusion --config fusion.toml --set epochs=20 --set sampling='ami*:3'

  trainers fit cascade --store STORE --out runs/cascade --set when=mimi --set who=titanet

  trainers fit proxy --store STORE --out runs/proxy --set trials=trials.txt --set channels=128

  trainers fit unmix --store STORE --out runs/unmix --set feature=mimi --set teacher=titanet

  trainers fit tse --store STORE --out runs/tse --preset small --set sets=runs/unmix

  trainers fit adapter --store STORE --out runs/adapter --resume          (goes on where it was killed)

  torchrun --nproc-per-node 4 -m cli.trainers fit adapter --store STORE --out runs/adapter     (four GPUs)

Every setting of a kind, with default, range and meaning:

  trainers settings adapter
"""


@app.command(epilog=_EXAMPLES)
@user_errors()
def fit(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="probe: who, linearly; proxy: who, by codes; unmix: who, of several at once; tse: one voice out of several; the others: who spoke when "
            "(cascade: when and who apart, whole recordings)."
        ),
    ],
    store: Annotated[Path, typer.Option(help="The store with the features.")],
    out: Annotated[Path, typer.Option(help="The run's folder; must not exist unless --resume.")],
    preset: Annotated[
        Preset, typer.Option(help="published: the study's sizes; small: works in minutes on two cores.")
    ] = _PUBLISHED,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; over those of the preset.")] = None,
    protocol: Annotated[
        Protocol | None, typer.Option(help="sound (default), or reference: as published, flaws included.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over all others; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="So many runs, in OUT/seed0, OUT/seed1, …, and how far they lie apart.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")] = False,
) -> None:
    """Fit KIND on the features of a store and write a run's folder."""
    from trainers.config import FitConfig

    made = FitConfig.make(
        kind.value, preset=preset.value, file=config, settings=settings or (), protocol=protocol and protocol.value
    )

    import featstore
    from cli.progress import bar
    from trainers.runs import Run
    from trainers.seeds import fit_seeds

    opened = featstore.open(store)
    if seeds is not None:
        with _kept(out, resume), bar(kind.value) as shown:
            results = fit_seeds(made, opened, out, seeds, resume=resume, progress=shown)
        if as_json:
            print(json.dumps(results))
        elif results:
            _show_spread(results, out)
        return
    run = Run.create(out, made, opened, resume=resume)
    function = kinds.function_of(kind.value)
    with _kept(out, resume), bar(kind.value) as shown:
        result = function(run, opened, progress=shown)
    if as_json:
        print(json.dumps(result))
    elif result:
        _show(result, out)


def _kept(out: Path, resume: bool) -> AbstractContextManager[None]:
    how = f"the same command{'' if resume else ' with --resume'} goes on (a probe or cascade begins anew, in a minute or two)"
    return going_on_later(f"is in {out}", how)


@app.command("settings", epilog="Example:\n\n  trainers settings adapter")
@user_errors()
def settings_(kind: Annotated[Kind, typer.Argument(help="A kind of run, as for fit.")]) -> None:
    """Every setting of KIND: key=default, what it may be, what it means; for --set and for the TOML file of --config."""
    from featstore.settings import table

    print(table(kinds.settings_of(kind.value)))


@app.command(epilog="Example:\n\n  trainers separate runs/none --store STORE --out parts")
@user_errors()
def separate(
    run: Annotated[Path, typer.Argument(help="A run of fit tse with condition=none.")],
    store: Annotated[Path, typer.Option(help="The store with the mixtures.")],
    out: Annotated[Path, typer.Option(help="A folder for the parts' sound and their manifest, for featstore extract.")],
) -> None:
    """Take the mixtures of dev and test apart; fit unmix compares itself with the parts once the teacher heard them."""
    import featstore
    from cli.progress import bar
    from trainers.runs import Run
    from trainers.tse.separate import write_parts

    with bar("separate") as shown:
        count = write_parts(Run.open(run), featstore.open(store), out, progress=shown)
    print(f"{count} parts: {out / 'manifest.jsonl'}")


def _show(result: dict[str, Any], out: Path) -> None:
    """A few lines for people; all of it is in result.json."""
    for warning in result["warnings"]:
        warn(warning)
    if result["kind"] == "probe":
        pieces = f" and {result['num_pieces']} pieces of {result['piece_s']:g} s" if result["num_pieces"] else ""
        print(
            f"{result['protocol']} protocol: trained on {result['num_utterances']} utterances{pieces} of "
            f"{result['num_speakers']} speakers (accuracy {result['train_accuracy']:.1%}), "
            f"scored on {result['num_trials']} trials of {result['num_trial_speakers']} speakers"
        )
        for name, figures in result["systems"].items():
            print(f"  {name:12s} EER {figures['eer']:7.2%}")
    elif result["kind"] == "proxy":
        print(
            f"sound protocol, {result['parameters']:,} parameters: trained on {result['num_utterances']} utterances of "
            f"{result['num_speakers']} speakers, loss {result['loss']} (best on dev), scored on {result['num_trials']} "
            f"trials of {result['num_trial_speakers']} speakers"
        )
        for name, figures in result["systems"].items():
            print(
                f"  {name:24s} EER {figures['eer']:7.2%}   cosine {figures['mean_same']:.2f} / {figures['mean_different']:.2f}"
            )
        for judge, told in result["ascent"]["judges"].items():
            taken = ", ".join(f"{aim} {told[aim]['accepted']}" for aim in ("target", "wrong", "random"))
            print(f"  gradient ascent, judged by {judge}: of {told['pairs']} pairs accepted: {taken}")
    elif result["kind"] == "unmix":
        _show_sets(result)
    elif result["kind"] == "tse":
        _show_voices(result)
    else:
        best = f", best epoch {result['best_epoch']}" if "best_epoch" in result else ""
        print(f"{result['protocol']} protocol, {result['parameters']:,} parameters{best}")
        figures = result["test"]
        for name, key in (("DER", "der"), ("DER, fixed channels", "fixed_der"), ("missed + false alarm", "detection")):
            print(f"  {name:22s} {'—' if figures[key] is None else format(figures[key], '7.2%')}")
        if whole := result.get("whole"):
            print(f"  {'DER, whole recordings':22s} {'—' if whole['der'] is None else format(whole['der'], '7.2%')}")
        for words, ceiling in result.get("ceilings", {}).items():
            figure = ceiling["test"]["der"]
            print(f"  {words.replace('_', ' '):22s} {'—' if figure is None else format(figure, '7.2%')}")
        if result["input_share"] is not None:
            print(f"  input {result['input_share']:.2%} of the step time")
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"run: {out}")


def _show_sets(result: dict[str, Any]) -> None:
    from evaluation.sets import SYSTEMS

    print(
        f"{result['parameters']:,} parameters, best step {result['best_step']} (dev): trained on {result['num_mixtures']} "
        f"mixtures of {result['num_speakers']} speakers, tried on {result['num_test_mixtures']} of "
        f"{result['num_test_speakers']} others"
    )
    print(f"  {'by number of voices':50s} names found | counted right | cosine")
    for row in result["by_voices"]:
        print(
            f"  {row['voices']} ({row['mixtures']} mixtures{'' if row['trained'] else ', such were never trained on'})"
        )
        for name, told in row["systems"].items():
            counted = "—" if told["counted"] is None else f"{told['counted']:.1%}"
            print(f"    {SYSTEMS[name]:50s} {told['identified']:7.1%} {counted:>9s} {told['cosine']:8.2f}")
    print(f"  always the most frequent number: {result['majority']:.1%} counted right")
    for name, told in (result["memory"] or {}).items():
        sums = [told["recordings"][id] for id in told["recordings"]]
        hits, of = sum(s["hits"] for s in sums), sum(s["present"] + s["given"] for s in sums)
        kept = f"{sum(s['numbers'] for s in sums):.0f} voices kept for {sum(s['people'] for s in sums):.0f} people"
        print(f"  memory on {SYSTEMS[name]}: F1 {2 * hits / of if of else 0:.1%}, {kept}")


def _show_voices(result: dict[str, Any]) -> None:
    print(
        f"{result['parameters']:,} parameters, best step {result['best_step']} (dev): trained on {result['num_mixtures']} "
        f"mixtures of {result['num_speakers']} speakers, tried on {result['num_test_voices']} voices of "
        f"{result['num_test_speakers']} others"
    )
    for system in result["extraction"].values():
        gains = [None if of is None else of["si_sdri"] for of in (system.get("several"), system)]
        several, every = ("—" if gain is None else f"{gain:+.1f} dB" for gain in gains)
        print(f"  {system['name']:60s} SI-SDRi {several} in mixtures of several, {every} in all")
    for name, sums in result["swaps"].items():
        if sums["pairs"]:
            system = result["extraction"][name]["name"]
            print(f"  of {sums['pairs']} pairs of voices {sums['swapped']} swap with who is asked for ({system})")


def _show_spread(results: dict[str, Any], out: Path) -> None:
    """A line for every seed, and one for all of them."""
    from trainers.seeds import spread

    for warning in dict.fromkeys(warning for result in results.values() for warning in result["warnings"]):
        warn(warning)
    found = spread(results)

    def text(value: float | None) -> str:
        return "—" if value is None else f"{value:.1f} dB" if found["measure"] == "SI-SDRi" else f"{value:7.2%}"

    for name, value in found["values"].items():
        print(f"  {out / name}  {found['measure']} {text(value)}")
    if found["mean"] is not None:
        between = f"between {text(found['min']).strip()} and {text(found['max']).strip()}"
        print(f"{found['measure']} of {len(results)} seeds: mean {text(found['mean']).strip()}, {between}")


if __name__ == "__main__":
    app()
