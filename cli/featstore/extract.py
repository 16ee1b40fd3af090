"""``featstore extract``: every frame of every utterance into a store."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import going_on_later, user_errors, warn
from cli.featstore.options import JsonOption, StoreOption
from cli.progress import Bar, bar

if TYPE_CHECKING:
    from featstore.extractors import Extractor
    from featstore.jobs.result import Result
    from featstore.types import FeatureSpec, Utterance


@user_errors()
def extract(
    manifest: Annotated[
        str, typer.Argument(help="NeMo JSONL file, folder of a saved HF dataset, or hf:NAME\\[@SPLIT].")
    ],
    store: StoreOption,
    feature: Annotated[str, typer.Option(help="mimi, titanet, or the name another package gives its encoder.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="hf:REPO (a hub repository), PATH (a checkpoint), demo (small ones that come along) or random:SEED "
            "(untrained; random:SEED:full in the published size). Without it: the published weights from the hub."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps \\[auto].")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, float16 or bfloat16; auto halves only where it changes nothing.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the encoder's own, key=value; may be repeated.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="For utterances whose manifest names no split.")] = None,
    audio_root: Annotated[
        Path | None, typer.Option(help="Refuse a manifest that names files outside of this folder \\[any file].")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding threads \\[all cores].")] = None,
    batch_s: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of audio a batch \\[15 or 180 on a CPU, 960 on CUDA].")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th (from 0) of n shares of the work.")] = None,
    engine: Annotated[
        str, typer.Option(help="local (this process) or ray (a queue that many actors share).")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster, or auto \\[one on this machine, for the time being].")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Encoders at once under Ray \\[one a GPU, or one without].")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Add what is missing, or refuse a store that holds some already."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Run speech through an encoder and keep every frame.

    Kill it whenever you like: the same command goes on where it was. Utterances that fail are listed in
    STORE/failures.jsonl and the exit code is 1; the rest is kept. Where the disk fails, the rest of that batch is put
    off until the command is run again, so that its bytes are those of any other run.

    [bold]Examples[/bold]

        featstore extract train.jsonl --store STORE --feature mimi

        featstore extract hf:ORG/VOXCELEB@test --store STORE --feature titanet --device cuda

        featstore extract test.jsonl --store STORE --feature mimi --weights tokenizer.safetensors --split test

        featstore extract train.jsonl --store STORE --feature mimi --shard 0/4     (of four processes, the first)

        featstore extract train.jsonl --store STORE --feature mimi --engine ray --ray-address auto
    """
    from functools import partial

    from featstore import extractors
    from featstore.corpora.manifest import ignored_keys, read_manifest
    from featstore.store.show import counted

    _check_engine(engine, shard, ray_address, actors, device)
    utterances = read_manifest(manifest, split=split, audio_root=audio_root, note=warn)
    if ignored := ignored_keys(manifest):
        warn(f"{manifest}: keys that nothing here reads: {', '.join(ignored)}")
    piece = _shard(shard)
    if engine == "ray" and weights not in (None, "demo") and Path(weights).exists():
        weights = str(Path(weights).resolve())  # an actor's working folder is another
    settings = {"weights": weights, "device": device, "precision": precision, **_settings(setting)}
    make = partial(extractors.create, feature, **settings)
    if engine == "ray":
        gpu = None if device in (None, "auto") else device == "cuda"
        run = partial(_by_ray, make, workers=workers, address=ray_address, actors=actors, gpu=gpu)
    else:
        extractor = make()
        _warn(extractor.spec)
        run = partial(_here, extractor, workers=workers, shard=piece)
    # A rented machine is told to stop with SIGTERM: end like Ctrl-C, with what is finished committed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        going_on_later("is in the store"),
        bar(f"{feature} of {counted(len(utterances), 'utterance')}") as shown,
    ):
        result, spec = run(utterances, store, batch_s=batch_s, resume=resume, progress=_shows(shown))
    if engine == "ray":
        _warn(spec)
    if as_json:
        print(json.dumps(result.to_json() | {"store": str(store), "warning": spec.warning}))
    else:
        print(f"{feature}: {_in_words(result)}")
    for line in _problems(result, manifest, store):
        _note(line)
    if result.failures or result.put_off:
        raise SystemExit(1)


def _here(
    extractor: Extractor, utterances: Sequence[Utterance], store: Path, *, workers: int | None, **settings: Any
) -> tuple[Result, FeatureSpec]:
    import os

    from featstore.jobs.extract import extract as run

    return run(utterances, extractor, store, workers=workers or os.cpu_count() or 1, **settings), extractor.spec


def _by_ray(
    make: Callable[[], Extractor], utterances: Sequence[Utterance], store: Path, **settings: Any
) -> tuple[Result, FeatureSpec]:
    import contextlib
    import os

    from featstore.jobs.ray import extract as run

    # What Ray prints by itself would stand in the way of --json.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return run(utterances, make, store, note=_note, **settings)


def _shows(shown: Bar) -> Callable[[Result], None]:
    def show(result: Result) -> None:
        speed = result.audio_s / result.wall_s if result.wall_s else 0.0
        shown.update(result.audio_s, result.total_s, f"{speed:.1f} × real time")

    return show


def _in_words(result: Result) -> str:
    from featstore.store.show import counted

    busy = ", ".join(f"{stage} {share:.0%}" for stage, share in sorted(result.busy.items()))
    speed = f", {result.audio_s / result.wall_s:.1f} × real time" if result.audio_s else ""
    return (
        f"{counted(result.done, 'utterance')} added, {result.skipped} there already, "
        f"{len(result.failures)} failed{f', {result.put_off} put off' if result.put_off else ''}; "
        f"{result.audio_s:.0f} s of audio in {result.wall_s:.1f} s{speed}"
        + (f" by {result.writers} actors" if result.writers > 1 else "")
        + (f"; time spent: {busy}" if busy else "")
    )


def _problems(result: Result, manifest: str, store: Path) -> Iterator[str]:
    if result.changed:
        yield (
            f"warning: {len(result.changed)} utterance(s) have another recording, speaker, split or turns in {manifest} than "
            f"in the store, which keeps its own (first: {result.changed[0]}); to take these over: featstore relabel {store} {manifest}"
        )
    for failure in result.failures[:10]:
        yield f"failed: {failure['id']}: {failure['error']}"
    if result.failures:
        more = f"; {len(result.failures) - 10} more" if len(result.failures) > 10 else ""
        yield f"failed: {len(result.failures)} utterance(s), listed in {store / 'failures.jsonl'}{more}"
    if result.put_off:
        yield f"put off: {result.put_off} utterance(s) of batches in which the disk failed; run the same command again"


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _warn(spec: FeatureSpec) -> None:
    if spec.warning:
        warn(spec.warning)


def _check_engine(
    engine: str, shard: str | None, ray_address: str | None, actors: int | None, device: str | None
) -> None:
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine: expected local or ray, found {engine!r}")
    if engine == "local" and (ray_address or actors):
        raise ValueError(f"{'--ray-address' if ray_address else '--actors'} goes with --engine ray only")
    if engine == "ray" and shard:
        raise ValueError("--engine ray hands out the batches by itself; leave out --shard")
    if engine == "ray" and (device or "").startswith("cuda:"):
        raise ValueError(f"--engine ray gives each actor a GPU of its own: --device cuda, not {device}")


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"--shard: expected i/n, such as 0/4, found {text!r}") from None
    if not 0 <= i < n:
        raise ValueError(f"--shard: i must be 0 to n-1, found {text!r}")
    return i, n


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set: expected key=value, found {pair!r}")
        try:
            settings[key] = json.loads(value)  # numbers and true/false; anything else is a text
        except ValueError:
            settings[key] = value
    return settings
