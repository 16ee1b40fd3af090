"""``featstore info``, ``verify`` and ``compact``: what a store holds, whether it is whole, and how it stays quick."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import going_on_later, user_errors
from cli.featstore.options import JsonOption, ReadableArgument, StoreArgument
from cli.progress import bar

if TYPE_CHECKING:
    from featstore.upkeep.verify import Report


@user_errors()
def info(store: ReadableArgument, as_json: JsonOption = False) -> None:
    """What a store holds.

    [bold]Example[/bold]

        featstore info STORE
    """
    from featstore.facts import facts_of
    from featstore.store.show import counted, sentence

    facts = facts_of(store)
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{facts['store']}: {sentence(facts)}, {facts['bytes'] / 1e6:.1f} MB")
    for name, f in facts["features"].items():
        print(
            f"  {name}: {f['dim']}-d {f['dtype']} at {1 / f['step_s']:g} Hz, {counted(f['utterances'], 'utterance')}, "
            f"{counted(f['frames'], 'frame')} in {counted(f['parts'], 'part')}"
        )
        print(f"    {f['model']}, weights {f['weights']} (sha256 {f['weights_sha256'][:12]}), {f['fingerprint']}")
        if f["warning"]:
            print(f"    warning: {f['warning']}")
    if facts["changes"]:
        print(
            f"  {counted(facts['changes'], 'change')} by relabel or remove since; featstore compact {store} writes all into the parts"
        )
    if facts["failures"]:
        print(f"  {counted(facts['failures'], 'failure')}, listed in {store / 'failures.jsonl'}")


@user_errors()
def verify(
    store: StoreArgument,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Clean up after interrupted writes and set damaged parts aside; refuses while something writes.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a store and say what is damaged.

    Exit code 0: all whole, or repaired; what is being written at the moment does not count. 2: damage found; extract
    again after --repair to bring the utterances back.

    [bold]Examples[/bold]

        featstore verify STORE

        featstore verify STORE --repair
    """
    from featstore.store.show import counted
    from featstore.upkeep.verify import verify as run

    with going_on_later("needs no repair any more") if repair else nullcontext(), bar("verifying parts") as shown:
        report = run(store, repair=repair, progress=shown.update)
    wrong = [f for f in report.findings if not (report.busy and f.leftover)]
    if as_json:
        facts: dict[str, Any] = {"parts": report.parts, "utterances": report.utterances, "bytes": report.bytes}
        facts |= {"repaired": repair, "busy": report.busy, "findings": [f.to_json() for f in report.findings]}
        print(json.dumps(facts))
    else:
        for f in report.findings:
            kind = ("unfinished" if report.busy else "leftover") if f.leftover else "DAMAGED"
            print(f"{kind} {f.where}: {f.problem}")
            if f.utterances and not f.leftover:
                shown_ids = ", ".join(f.utterances[:5])
                print(f"  {len(f.utterances)} utterance(s): {shown_ids}{', …' if len(f.utterances) > 5 else ''}")
        held = f"{counted(report.utterances, 'utterance')} in {counted(report.parts, 'part')}"
        size = f"{held}, {report.bytes / 1e6:.1f} MB of frames"
        if not report.findings:
            print(f"{store}: whole: {size}, every checksum right")
        elif repair:
            print(f"{store}: repaired: {_repaired(report, store)}; {size} read")
        elif not wrong:
            print(f"{store}: {counted(len(report.findings), 'unfinished part')}, something is writing now; {size} read")
        else:
            advice = f" Run: featstore verify {store} --repair" if any(f.remedy for f in wrong) else ""
            print(f"{store}: {counted(len(report.findings), 'finding')}; {size} read.{advice}")
    if [f for f in wrong if not f.remedy] if repair else wrong:
        raise SystemExit(2)


def _repaired(report: Report, store: Path) -> str:
    """What a repair did, in words."""
    done = report.repaired
    counts = {
        f"damaged parts set aside in {store / 'damaged'}": sum(bool(f.part) and not f.leftover for f in done),
        "leftovers cleaned up": sum(f.leftover for f in done),
        "damaged specs set aside (extract again with the same command)": sum(
            bool(f.feature) and not f.part for f in done
        ),
        "zarr.json of the store written anew": sum(f.remedy == "write" for f in done),
        "left as they are": len(report.findings) - len(done),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@user_errors()
def compact(
    store: StoreArgument,
    part_mb: Annotated[int | None, typer.Option(min=1, help="Size of a merged part in MB \\[512].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge many small parts into few large ones, so that a large store opens fast.

    Worth it beyond a thousand parts (see featstore info). Refused while something extracts into the store; programs that
    have it open must open it again. Kill it whenever you like: the same command finishes.

    [bold]Example[/bold]

        featstore compact STORE
    """
    from featstore.store.show import counted
    from featstore.upkeep.compact import MERGED_BYTES
    from featstore.upkeep.compact import compact as run

    with going_on_later(), bar("compacting parts") as shown:
        done = run(store, part_bytes=(part_mb or 0) << 20 or MERGED_BYTES, progress=shown.update)
    if as_json:
        print(json.dumps({"store": str(store), **vars(done)}))
    else:
        print(f"{store}: {counted(done.parts_before, 'part')}, now {done.parts_after}")
