"""``featstore relabel`` and ``remove``: what a store says of its utterances, put right without a new extraction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import user_errors, warn
from cli.featstore.options import JsonOption, StoreArgument

if TYPE_CHECKING:
    from featstore.upkeep.relabel import Relabelled

_WORDS = {"audio": "source path", "start_s": "offset"}


@user_errors()
def relabel(
    store: StoreArgument,
    manifest: Annotated[
        str | None, typer.Argument(help="JSONL lines with utt_id and what is another, or a data set as for extract.")
    ] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="OLD=NEW: the audio moved from folder OLD to folder NEW.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put right what a store says of its utterances: split, speaker, recording, turns, source paths.

    Lines are found by their id; what a line does not name stays, and so do all frames. All of it is taken over, or, where
    something is wrong, nothing. Runs that were trained before stay as they are; evaluation doctor RUN --store STORE says
    whose labels were others.

    [bold]Examples[/bold]

        featstore relabel STORE corrected.jsonl

        featstore relabel STORE --audio-root /old/disk/vox=/data/vox
    """
    from featstore.upkeep.relabel import move_audio
    from featstore.upkeep.relabel import relabel as run

    if (manifest is None) == (audio_root is None):
        raise ValueError("give a MANIFEST or --audio-root OLD=NEW, one of the two")
    if manifest is not None:
        from featstore.corpora.corrections import read_corrections

        done = run(store, read_corrections(manifest))
    else:
        old, equals, new = (audio_root or "").partition("=")
        if not (old and equals and new):
            raise ValueError(f"--audio-root: expected OLD=NEW, two folders, found {audio_root!r}")
        done = move_audio(store, str(Path(old).absolute()), str(Path(new).absolute()))
    if as_json:
        print(json.dumps({"store": str(store), **done.to_json()}))
    else:
        print(f"{store}: {done.changed} of {done.utterances} utterances changed, frames as they were")
        for line in _changes(done):
            print(f"  {line}")
    if done.unknown:
        more = ", …" if len(done.unknown) > 3 else ""
        warn(f"{len(done.unknown)} id(s) of {manifest} are not in {store}: {', '.join(done.unknown[:3])}{more}")


def _changes(done: Relabelled) -> list[str]:
    lines = []
    for label, count in done.by_label.items():
        id, was, now = done.first[label]
        shown = f"{_short(was)} → {_short(now)}"
        if label == "split":
            moved = [f"{was or '(none)'} → {now or '(none)'} {n}" for (was, now), n in done.splits.most_common(5)]
            shown = ", ".join(moved) + (", …" if len(done.splits) > 5 else "")
        lines.append(
            f"{_WORDS.get(label, label)}: {count} ({id}: {shown})" if label != "split" else f"split: {count} ({shown})"
        )
    return lines


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        from featstore.store.show import counted

        return f"{counted(len(value), 'turn')} of {counted(len({turn.speaker for turn in value}), 'speaker')}"
    return "(none)" if value in (None, "") else str(value)


@user_errors()
def remove(
    store: StoreArgument,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of utterances.")] = None,
    split: Annotated[str | None, typer.Option(help="All utterances of this split.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A file with an id a line.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take utterances out of a store, out of every feature.

    Nothing shows them from then on; their frames stay on the disk until featstore compact STORE. An extraction of a manifest
    that still names them adds them again.

    [bold]Examples[/bold]

        featstore remove STORE spk3-utt17 spk3-utt18

        featstore remove STORE --split test

        featstore remove STORE --from bad-ids.txt
    """
    from featstore.corpora.rttm import lines
    from featstore.store.show import counted
    from featstore.upkeep.relabel import remove as run

    wanted = list(ids or ())
    if source is not None:
        wanted += [line.strip() for line in lines(source) if line.strip()]
        if any(id.startswith("{") for id in wanted):
            raise ValueError(f"{source}: a manifest, and no ids; take them out of it: jq -r .utt_id {source} > ids.txt")
    if not wanted and split is None:
        raise ValueError("say which utterances: ids, --split or --from" + (f" ({source} is empty)" if source else ""))
    done = run(store, list(dict.fromkeys(wanted)), split=split)
    if as_json:
        print(json.dumps({"store": str(store), **vars(done)}))
    else:
        print(
            f"{store}: {counted(done.utterances, 'utterance')} ({done.seconds / 3600:.2f} h) out of it, {done.left} left; "
            f"their frames ({done.bytes / 1e6:.1f} MB) stay on the disk until: featstore compact {store}"
        )
