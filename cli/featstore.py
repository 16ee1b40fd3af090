"""``featstore``: speech in, features out."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import user_errors
from cli.progress import bar

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _folder(store: Path) -> Path:
    from featstore.remote.address import as_url

    if url := as_url(store):
        raise typer.BadParameter(f"{url}: this takes a folder; copy it with: featstore pull {url} STORE")
    return store


StoreOption = Annotated[Path, typer.Option(help="The store's folder.", callback=_folder)]
StoreArgument = Annotated[Path, typer.Argument(help="The store's folder.", callback=_folder)]
ReadableArgument = Annotated[Path, typer.Argument(help="The store's folder, or its address.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.callback()
def main() -> None:
    """Frame-level features of speech in a store that a laptop trains from."""


@app.command()
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
    import contextlib
    import os
    from functools import partial

    from featstore import extractors
    from featstore.corpora.manifest import ignored_keys, read_manifest
    from featstore.jobs import ray as ray_engine
    from featstore.jobs.extract import Result
    from featstore.jobs.extract import extract as run

    _check_engine(engine, shard, ray_address, actors, device)
    utterances = read_manifest(manifest, split=split, audio_root=audio_root)
    if ignored := ignored_keys(manifest):
        _note(f"{manifest}: keys that nothing here reads: {', '.join(ignored)}")
    piece = _shard(shard)
    if engine == "ray" and weights not in (None, "demo") and Path(weights).exists():
        weights = str(Path(weights).resolve())  # an actor's working folder is another
    settings = {"weights": weights, "device": device, "precision": precision, **_settings(setting)}
    make = partial(extractors.create, feature, **settings)
    extractor = make() if engine == "local" else None
    if extractor and extractor.spec.warning:
        _note(f"warning: {extractor.spec.warning}")

    def show(result: Result) -> None:
        speed = result.audio_s / result.wall_s if result.wall_s else 0.0
        shown.update(result.audio_s, result.total_s, f"{speed:.1f} × real time")

    # A rented machine is told to stop with SIGTERM: end like Ctrl-C, with what is finished committed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _going_on_later("is in the store"), bar(f"{feature} of {len(utterances)} utterances") as shown:
        if extractor is None:
            # What Ray prints by itself would stand in the way of --json.
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                result, spec = ray_engine.extract(
                    utterances,
                    make,
                    store,
                    address=ray_address,
                    actors=actors,
                    gpu=None if device in (None, "auto") else device == "cuda",
                    workers=workers,
                    batch_s=batch_s,
                    resume=resume,
                    progress=show,
                    note=_note,
                )
        else:
            spec = extractor.spec
            result = run(
                utterances,
                extractor,
                store,
                workers=workers or os.cpu_count() or 1,
                batch_s=batch_s,
                resume=resume,
                shard=piece,
                progress=show,
            )
    if extractor is None and spec.warning:
        _note(f"warning: {spec.warning}")
    if as_json:
        print(json.dumps(result.to_json() | {"store": str(store), "warning": spec.warning}))
    else:
        busy = ", ".join(f"{stage} {share:.0%}" for stage, share in sorted(result.busy.items()))
        speed = f", {result.audio_s / result.wall_s:.1f} × real time" if result.audio_s else ""
        print(
            f"{feature}: {result.done} utterances added, {result.skipped} there already, "
            f"{len(result.failures)} failed{f', {result.put_off} put off' if result.put_off else ''}; "
            f"{result.audio_s:.0f} s of audio in {result.wall_s:.1f} s{speed}"
            + (f" by {result.writers} actors" if result.writers > 1 else "")
            + (f"; time spent: {busy}" if busy else "")
        )
    if result.changed:
        _note(
            f"warning: {len(result.changed)} utterance(s) have another recording, speaker, split or turns in {manifest} than "
            f"in the store, which keeps its own (first: {result.changed[0]}); one id must mean one utterance"
        )
    for failure in result.failures[:10]:
        print(f"failed: {failure['id']}: {failure['error']}", file=sys.stderr)
    if result.failures:
        more = f"; {len(result.failures) - 10} more" if len(result.failures) > 10 else ""
        print(
            f"failed: {len(result.failures)} utterance(s), listed in {store / 'failures.jsonl'}{more}", file=sys.stderr
        )
    if result.put_off:
        _note(f"put off: {result.put_off} utterance(s) of batches in which the disk failed; run the same command again")
    if result.failures or result.put_off:
        raise SystemExit(1)


@app.command()
@user_errors()
def simulate(
    manifest: Annotated[str, typer.Argument(help="Single-speaker utterances: JSONL, saved HF dataset or hf:NAME.")],
    recipe: Annotated[str, typer.Option(help="pairs, 2spk, 4spk, 3spk_long, tiny, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for audio, RTTM and manifest.jsonl.")],
    split: Annotated[str | None, typer.Option(help="Take only utterances of this split.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="How many, in place of the recipe's number.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is drawn (0 without).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (all cores without).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make multi-speaker sessions with RTTM out of single-speaker utterances.

    The same seed gives the same sessions, whatever the number of workers; a killed run goes on where it stopped.

    [bold]Examples[/bold]

        featstore simulate train.jsonl --recipe 2spk --out sim-2spk

        featstore simulate train.jsonl --recipe my.toml --out sim --split train --sessions 50 --seed 7
    """
    import os

    from featstore.corpora.manifest import read_manifest
    from featstore.simulation.recipe import read_recipe
    from featstore.simulation.simulate import simulate as run

    plan = read_recipe(recipe)
    utterances = read_manifest(manifest)
    with bar(f"simulating {plan.name}") as shown:
        report = run(
            utterances,
            plan,
            out,
            seed=seed or 0,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, of, seconds: shown.update(done, of, f"{seconds / 3600:.2f} h"),
            split=split,
            sessions=sessions,
        )
    print(json.dumps(report.to_json()) if as_json else report)
    for failure in report.failures[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    if report.failures:
        raise SystemExit(1)


@app.command()
@user_errors()
def info(store: ReadableArgument, as_json: JsonOption = False) -> None:
    """What a store holds.

    [bold]Example[/bold]

        featstore info STORE
    """
    import featstore
    from featstore.remote.address import as_url
    from featstore.remote.client import Remote

    found = featstore.open(store)
    facts = _facts(found) | {"store": str(store)}
    if url := as_url(store):
        facts |= {"store": url, "bytes": sum(Remote(url).files().values())}
    if as_json:
        print(json.dumps(facts))
        return
    splits = ", ".join(f"{name or '(no split)'} {count}" for name, count in facts["splits"].items())
    print(
        f"{facts['store']}: {facts['utterances']} utterances ({splits}), {facts['hours']:.2f} h, {facts['speakers']} speakers, "
        f"{facts['recordings']} recordings, {facts['bytes'] / 1e6:.1f} MB"
    )
    for name, f in facts["features"].items():
        print(
            f"  {name}: {f['dim']}-d {f['dtype']} at {1 / f['step_s']:g} Hz, {f['utterances']} utterances, "
            f"{f['frames']} frames in {f['parts']} parts"
        )
        print(f"    {f['model']}, weights {f['weights']} (sha256 {f['weights_sha256'][:12]}), {f['fingerprint']}")
        if f["warning"]:
            print(f"    warning: {f['warning']}")
    if facts["failures"]:
        print(f"  {facts['failures']} failure(s), listed in {store / 'failures.jsonl'}")


def _facts(store: Any) -> dict[str, Any]:
    import numpy as np
    import pyarrow.compute as pc

    table = store.utterances
    speakers = set(table["speaker"].to_pylist()) | set(
        pc.struct_field(pc.list_flatten(table["turns"]), "speaker").to_pylist()
    )
    splits = {row["values"]: row["counts"] for row in pc.value_counts(table["split"]).to_pylist()}
    failures = store.path / "failures.jsonl"
    features = {}
    for name, spec in store.features.items():
        index = store.index(name)
        features[name] = spec.to_json() | {
            "step_s": spec.grid.step_s,
            "fingerprint": spec.fingerprint,
            "weights": spec.settings.get("weights", "?"),
            "warning": spec.warning,
            "utterances": len(index.rows),
            "frames": int(np.sum(index.num)),
            "parts": len(index.part_names),
        }
    return {
        "store": str(store.path),
        "utterances": len(store),
        "hours": float(pc.sum(table["duration"]).as_py() or 0.0) / 3600,
        "speakers": len(speakers - {None}),
        "recordings": pc.count_distinct(table["recording"]).as_py(),
        "splits": splits,
        "bytes": sum(p.stat().st_size for p in store.path.rglob("*") if p.is_file()),
        "failures": sum(1 for _ in open(failures, encoding="utf-8")) if failures.exists() else 0,
        "features": features,
    }


@app.command()
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
    from featstore.upkeep import verify as integrity

    with bar("verifying parts") as shown:
        report = integrity.verify(store, repair=repair, progress=shown.update)
    wrong = [f for f in report.findings if not (report.busy and f.leftover)]
    if as_json:
        facts = {"parts": report.parts, "utterances": report.utterances, "bytes": report.bytes}
        facts |= {"repaired": repair, "busy": report.busy, "findings": [f.to_json() for f in report.findings]}
        print(json.dumps(facts))
    else:
        for f in report.findings:
            kind = ("unfinished" if report.busy else "leftover") if f.leftover else "DAMAGED"
            print(f"{kind} {f.where}: {f.problem}")
            if f.utterances and not f.leftover:
                shown_ids = ", ".join(f.utterances[:5])
                print(f"  {len(f.utterances)} utterance(s): {shown_ids}{', …' if len(f.utterances) > 5 else ''}")
        size = f"{report.utterances} utterances in {report.parts} parts, {report.bytes / 1e6:.1f} MB of frames"
        if not report.findings:
            print(f"{store}: whole: {size}, every checksum right")
        elif repair:
            print(f"{store}: repaired: {_repaired(report, store)}; {size} read")
        elif not wrong:
            print(f"{store}: {len(report.findings)} unfinished parts, something is writing now; {size} read")
        else:
            advice = f" Run: featstore verify {store} --repair" if any(f.remedy for f in wrong) else ""
            print(f"{store}: {len(report.findings)} findings; {size} read.{advice}")
    if [f for f in wrong if not f.remedy] if repair else wrong:
        raise SystemExit(2)


def _repaired(report: Any, store: Path) -> str:
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


@app.command()
@user_errors()
def push(
    store: StoreArgument,
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PATH, gs://…, az://… or file:///FOLDER.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a store to a bucket, or to a folder that a web server shows.

    Each part is verified before it leaves, and its index goes last: what is there can be read at any moment. Run it
    again after more was extracted, or after a kill: what is there stays. Credentials and endpoint come from the usual
    variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, …

    [bold]Examples[/bold]

        featstore push STORE s3://BUCKET/STORE

        featstore push STORE file:///srv/www/STORE
    """
    from featstore.remote.address import as_url
    from featstore.remote.transfer import push as run

    if (address := as_url(url)) is None:
        raise ValueError(f"{url}: expected an address, such as s3://BUCKET/PATH or file:///FOLDER")
    with _going_on_later(), bar(f"pushing {store.name}") as shown:
        done = run(store, address, progress=lambda moved, of: shown.update(moved, of))
    _moved("pushed", url, done, as_json)


@app.command()
@user_errors()
def pull(
    url: Annotated[str, typer.Argument(help="s3://…, gs://…, az://…, https://… or file:///…")],
    store: StoreArgument,
    as_json: JsonOption = False,
) -> None:
    """Copy a store from a bucket or a web server; every part is verified before it counts.

    Run it again after a kill, or when more is there: what has come stays. To read crops without copying, give the
    address in place of the folder: featstore.open("s3://…"), trainers fit … --store s3://…

    Parts are known by their names: after a local compact, all that it merged would come again. Compact before push, or
    pull first, and compact last: that also drops what came twice. Not while something else writes into STORE.

    [bold]Examples[/bold]

        featstore pull s3://BUCKET/STORE STORE

        featstore pull https://HOST/STORE STORE
    """
    from featstore.remote.address import as_url
    from featstore.remote.transfer import pull as run

    if (address := as_url(url)) is None:
        raise ValueError(f"{url}: expected an address, such as s3://BUCKET/PATH or https://HOST/PATH")
    with _going_on_later(), bar(f"pulling {store.name}") as shown:
        done = run(address, store, progress=lambda moved, of: shown.update(moved, of))
    _moved("pulled", url, done, as_json)


@contextmanager
def _going_on_later(finished: str = "stays") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: what was finished {finished}; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _moved(verb: str, url: str, done: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, **vars(done)}))
        return
    speed = f", {done.bytes / 1e6 / done.seconds:.1f} MB/s" if done.bytes and done.seconds else ""
    print(f"{verb} {done.parts} parts, {done.bytes / 1e6:.1f} MB{speed}; {done.parts_there} were there already")


@app.command()
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
    from featstore.upkeep.compact import MERGED_BYTES
    from featstore.upkeep.compact import compact as run

    with bar("compacting parts") as shown:
        done = run(store, part_bytes=(part_mb or 0) << 20 or MERGED_BYTES, progress=shown.update)
    if as_json:
        print(json.dumps({"store": str(store), **vars(done)}))
    else:
        print(f"{store}: {done.parts_before} parts, now {done.parts_after}")


@app.command("export")
@user_errors()
def export_(
    store: StoreArgument, file: Annotated[Path, typer.Argument(help="The HDF5 file to write, e.g. STORE.h5.")]
) -> None:
    """Write a whole store as one HDF5 file.

    [bold]Example[/bold]

        featstore export STORE features.h5
    """
    from featstore.exchange import export_hdf5

    with bar("exporting") as shown:
        export_hdf5(store, file, progress=shown.update)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@app.command("import")
@user_errors()
def import_(
    file: Annotated[Path, typer.Argument(help="An HDF5 file that `featstore export` wrote.")], store: StoreOption
) -> None:
    """Add what an HDF5 file holds to a store; what is there already is skipped.

    [bold]Example[/bold]

        featstore import features.h5 --store STORE
    """
    from featstore.exchange import import_hdf5

    with bar("importing") as shown:
        added = import_hdf5(file, store, progress=shown.update)
    print(f"{store}: {added} utterances added (counted once a feature)")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


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
