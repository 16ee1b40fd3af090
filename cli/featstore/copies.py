"""``featstore push``, ``pull``, ``merge``, ``export`` and ``import``: a store somewhere else, or in another shape."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import going_on_later, starting_over, user_errors
from cli.featstore.options import JsonOption, StoreArgument, StoreOption
from cli.progress import bar

if TYPE_CHECKING:
    from featstore.remote.transfer import Transfer


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
    from featstore.remote.transfer import push as run

    address = _address(url, "s3://BUCKET/PATH or file:///FOLDER")
    with going_on_later(), bar(f"pushing {store.name}") as shown:
        done = run(store, address, progress=shown.update)
    _moved("pushed", url, done, as_json)


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
    from featstore.remote.transfer import pull as run

    address = _address(url, "s3://BUCKET/PATH or https://HOST/PATH")
    with going_on_later(), bar(f"pulling {store.name}") as shown:
        done = run(address, store, progress=shown.update)
    _moved("pulled", url, done, as_json)


def _address(url: str, example: str) -> str:
    from featstore.store.address import as_url

    if (address := as_url(url)) is None:
        folder = f"; of this folder it is {Path(url).absolute().as_uri()}" if "://" not in url else ""
        raise ValueError(f"{url}: expected an address, such as {example}{folder}")
    if not address.partition("://")[2].strip("/"):
        raise ValueError(f"{url}: names no bucket, host or folder; expected an address, such as {example}")
    return address


def _moved(verb: str, url: str, done: Transfer, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, **vars(done)}))
        return
    from featstore.store.show import counted

    speed = f", {done.bytes / 1e6 / done.seconds:.1f} MB/s" if done.bytes and done.seconds else ""
    print(
        f"{verb} {counted(done.parts, 'part')}, {done.bytes / 1e6:.1f} MB{speed}; {done.parts_there} were there already"
    )


@user_errors()
def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="The stores' folders.")],
    out: Annotated[Path, typer.Option(help="The store to copy them into; it may be there already.")],
    as_json: JsonOption = False,
) -> None:
    """Copy several stores into one, with all that was put right in them.

    Their features must be the same (equal fingerprints) or have other names, and an id must mean the same in all of them;
    else nothing is copied. Run it again after a kill, or when more is there: what is there stays.

    [bold]Example[/bold]

        featstore merge STORE-A STORE-B --out STORE
    """
    from featstore.store.show import counted
    from featstore.upkeep.merge import merge as run

    with going_on_later(), bar(f"merging into {out.name}") as shown:
        done = run(stores, out, progress=shown.update)
    if as_json:
        print(json.dumps({"store": str(out), **vars(done)}))
    else:
        there = f"; {done.parts_there} were there already" if done.parts_there else ""
        print(
            f"{out}: {counted(done.utterances, 'utterance')}; {counted(done.parts, 'part')}, {done.bytes / 1e6:.1f} MB copied{there}"
        )


class Shape(StrEnum):
    """What `export` may write."""

    hdf5 = "hdf5"
    lhotse = "lhotse"
    kaldi = "kaldi"


@user_errors()
def export(
    store: StoreArgument,
    target: Annotated[
        Path, typer.Argument(metavar="FILE", help="The HDF5 file, e.g. STORE.h5, or the folder of --to.")
    ],
    to: Annotated[
        Shape,
        typer.Option(help="hdf5: all of it, for featstore import; lhotse: cuts; kaldi: ark and scp of one feature."),
    ] = Shape.hdf5,
    feature: Annotated[str | None, typer.Option(help="Which, for lhotse and kaldi [dim](the only one)[/dim].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a whole store as one HDF5 file, or a feature of it for lhotse or Kaldi.

    [bold]Examples[/bold]

        featstore export STORE features.h5

        featstore export STORE cuts --to lhotse --feature mimi
    """
    import featstore
    from featstore import toolkits
    from featstore.exchange import export_hdf5

    if to is Shape.hdf5 and feature:
        raise ValueError("--feature goes with --to lhotse or kaldi; an HDF5 file holds all features")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target.parent}: no such folder; make it first: mkdir -p {target.parent}")
    with starting_over("export"), bar("exporting") as shown:
        if to is Shape.hdf5:
            export_hdf5(store, target, progress=shown.update)
        else:
            write = toolkits.export_lhotse if to is Shape.lhotse else toolkits.export_kaldi
            write(featstore.open(store, verify=True), target, feature, progress=shown.update)
    size = sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))
    if as_json:
        print(json.dumps({"store": str(store), "to": to.value, "path": str(target), "bytes": size}))
    else:
        print(f"{target}: {size / 1e6:.1f} MB")


@user_errors()
def import_(
    file: Annotated[Path, typer.Argument(help="An HDF5 file that `featstore export` wrote.")],
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Add what an HDF5 file holds to a store; what is there already is skipped.

    [bold]Example[/bold]

        featstore import features.h5 --store STORE
    """
    from featstore.exchange import import_hdf5
    from featstore.store.show import counted

    with going_on_later("is in the store"), bar("importing") as shown:
        added = import_hdf5(file, store, progress=shown.update)
    if as_json:
        print(json.dumps({"file": str(file), "store": str(store), "added": added}))
    else:
        print(f"{store}: {counted(added, 'utterance')} added (counted once a feature)")
