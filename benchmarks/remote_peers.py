"""The same crops from the same S3 server by featstore, MosaicML Streaming, LitData and WebDataset.

    python -m benchmarks.remote_peers [--recordings 16] [--rounds 3] [--latency 0.03] [--mb-per-s 50] [--workers 0 2]

mosaicml-streaming, litdata and webdataset must be importable. The server is a process of this script: it waits
`latency` before each answer and sends all answers together at no more than `mb_per_s`. Every reader takes turns in a
process of its own, whose imports are not measured: an epoch in random order over nothing kept (cold), a second one in the same
process (warm), and a tenth of the crops picked at random by number over nothing kept (picked).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.s3_line import serve

DIM, LENGTH, CROPS, BATCH, SHARD = 512, 100, 32, 32, 8 << 20
CROP_BYTES = LENGTH * DIM * 2
READERS = ("featstore", "featstore pulled", "streaming", "litdata", "webdataset")

#: What is no dependency, and so imported by name.
MODULES = {
    "featstore": "featstore.torch",
    "streaming": "streaming",
    "litdata": "litdata",
    "litdata writer": "litdata.streaming.writer",
    "litdata downloader": "litdata.streaming.downloader",
    "webdataset": "webdataset",
}

#: Only in the process itself: crop after crop, and with a cache smaller than the store, in full and in part-wise random order.
OURS = ("featstore one by one", "featstore small cache", "featstore small cache by part")
SMALL_CACHE, AT_ONCE = 3 * SHARD, 2


def peer(name: str) -> Any:
    return import_module(MODULES[name])


# ---- the same crops as each wants them


def write_all(bucket: Path, scratch: Path, recordings: int) -> None:
    import featstore
    from featstore import MIMI_GRID, FeatureSpec, Utterance
    from featstore.remote.transfer import push

    rng = np.random.default_rng(0)
    whole = rng.normal(size=(recordings, CROPS * LENGTH, DIM)).astype(np.float16)
    crops = list(enumerate(whole.reshape(-1, LENGTH, DIM)))
    spec = FeatureSpec("mimi", DIM, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {"weights": "file"})
    with featstore.writer(scratch / "store", spec, part_bytes=SHARD) as out:
        for i, frames in enumerate(whole):
            out.add(Utterance(f"r{i}", "x", 0.0, CROPS * 8.0, f"r{i}", None, "train", ()), frames)
    push(scratch / "store", f"file://{bucket}/featstore")

    columns = {"x": f"ndarray:float16:{LENGTH},{DIM}", "id": "int"}
    with peer("streaming").MDSWriter(out=str(bucket / "streaming"), columns=columns, size_limit=SHARD) as mds:
        for i, crop in crops:
            mds.write({"x": crop, "id": i})

    cache = peer("litdata writer").BinaryWriter(str(bucket / "litdata"), chunk_bytes=SHARD)
    for i, crop in crops:
        cache[i] = {"x": crop, "id": i}
    cache.done()
    cache.merge()

    (bucket / "webdataset").mkdir()
    with peer("webdataset").ShardWriter(f"{bucket}/webdataset/%06d.tar", maxsize=SHARD, verbose=0) as tar:
        for i, crop in crops:
            tar.write({"__key__": f"{i:06}", "x.npy": crop})


class OneByOne:
    """A data set that is asked for no batches."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int) -> Any:
        return self.data[item]


# ---- the readers: batches of an epoch, and crops by number


def reader(name: str, workers: int, server: str, cache: Path) -> tuple[Any, Any]:
    """A loader, whose epochs are batches of dicts with "x"; and a data set that takes numbers, or None."""
    import torch
    from torch.utils.data import DataLoader

    bucket = "s3://bucket"
    # A worker that is forked inherits our connections' threads no more than obstore's allow: ours are spawned.
    kept: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    if name.startswith("featstore"):
        import featstore
        from featstore.remote.transfer import pull
        from featstore.torch import ByPart, Crops

        address = f"{bucket}/featstore"
        if name == "featstore pulled":
            pull(address, cache / "pulled")
            address = str(cache / "pulled")
        limit = SMALL_CACHE if "small" in name else 512 << 20
        data = Crops(featstore.open(address, cache_bytes=limit), "mimi", LENGTH, random=False, dtype=torch.float16)
        if workers:
            kept["multiprocessing_context"] = "spawn"
        if "by part" in name:
            return DataLoader(data, sampler=ByPart(data, AT_ONCE), **kept), data
        if "one by one" in name:
            return DataLoader(OneByOne(data), shuffle=True, **kept), data
        return DataLoader(data, shuffle=True, **kept), data
    if name == "streaming":
        found = peer(name).StreamingDataset(
            remote=f"{bucket}/streaming", local=str(cache), shuffle=True, batch_size=BATCH, predownload=16 * BATCH
        )
        return DataLoader(found, **kept), found
    if name == "litdata":
        peer("litdata downloader")._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its fast way speaks https only

        found = peer(name).StreamingDataset(f"{bucket}/litdata", cache_dir=str(cache), shuffle=True, max_pre_download=8)
        return peer(name).StreamingDataLoader(found, **kept), found
    cache.mkdir()
    urls = [f"{server}/bucket/webdataset/{i:06}.tar" for i in range(int(os.environ["SHARDS"]))]
    pipeline = peer(name).WebDataset(urls, shardshuffle=len(urls), cache_dir=str(cache), empty_check=False)
    return DataLoader(pipeline.shuffle(256).decode().to_tuple("x.npy").map(lambda x: {"x": x[0]}), **kept), None


def one(name: str, workers: int, what: str, server: str, number: int) -> None:
    """A turn: one line of JSON a phase."""
    import torch  # noqa: F401 - imports are not what is measured

    peer(name.split()[0])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        counted(server)
        began = time.perf_counter()
        loader, data = reader(name, workers, server, Path(folder) / "kept")
        if what == "picked":
            picked = np.random.default_rng(1).permutation(number)[: number // 10].tolist()
            batches: Iterable[Any] = ({"x": data[i]["x" if "x" in data[i] else "mimi"][None]} for i in picked)
            tell(what, began, batches, len(picked), server)
        else:
            tell("cold", began, loader, number, server)
            tell("warm", time.perf_counter(), loader, number, server)
        sys.stdout.flush()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # some leave threads behind that do not end


def tell(phase: str, began: float, batches: Iterable[Any], number: int, server: str) -> None:
    first, count = 0.0, 0
    for batch in batches:
        x = batch["x"] if "x" in batch else batch["mimi"]
        assert tuple(x.shape[1:]) == (LENGTH, DIM), x.shape
        first = first or time.perf_counter() - began
        count += len(x)
    took = time.perf_counter() - began
    sent, asked = counted(server)
    found = {"crops": count, "of": number, "first_s": first, "crops_s": count / took, "asked": asked}
    print(json.dumps({"phase": phase, "bytes": sent / (count * CROP_BYTES), **found}), flush=True)


def counted(server: str) -> tuple[int, int]:
    sent, asked = json.loads(urllib.request.urlopen(f"{server}/-counted").read())
    return sent, asked


# ---- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--mb-per-s", type=float, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--readers", nargs="+", default=READERS)
    parser.add_argument("--one", nargs=5, metavar=("READER", "WORKERS", "WHAT", "SERVER", "CROPS"))
    options = parser.parse_args()
    if options.one:
        name, workers, what, url, number = options.one
        return one(name, int(workers), what, url, int(number))
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "bucket").mkdir()
        write_all(root / "bucket", root, options.recordings)
        pid, port = serve(root, options.latency, options.mb_per_s * 1e6)
        url = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
        shards = len(list((root / "bucket/webdataset").glob("*.tar")))
        where = {
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": url,
            "S3_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "SHARDS": str(shards),
        }
        turns = [(r, w, "epochs") for w in options.workers for r in options.readers]
        if 0 in options.workers:
            turns += [(r, 0, "epochs") for r in OURS]
            turns += [(r, 0, "picked") for r in ("featstore", "streaming", "litdata")]
        try:
            for number in range(options.rounds):
                for name, workers, what in turns[number:] + turns[:number]:
                    turn = [name, str(workers), what, url, str(options.recordings * CROPS)]
                    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.remote_peers", "--one", *turn]
                    try:
                        done = subprocess.run(
                            command, env=os.environ | keys | where, capture_output=True, text=True, timeout=180
                        )
                    except subprocess.TimeoutExpired:
                        print(f"{name}, {workers} workers, {what}: not done in 180 s", flush=True)
                        continue
                    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"phase')]
                    if not lines:
                        print(f"{name}, {workers} workers, {what}: {done.stderr.strip()[-600:]}", flush=True)
                    for line in lines:
                        found.setdefault((name, workers, line["phase"]), []).append(line)
                        print(name, workers, line, file=sys.stderr, flush=True)
        finally:
            os.kill(pid, 9)
    for (name, workers, phase), lines in sorted(found.items(), key=lambda x: (x[0][2], x[0][1], x[0][0])):
        mid = {
            k: statistics.median(line[k] for line in lines) for k in ("crops", "crops_s", "bytes", "first_s", "asked")
        }
        print(
            f"{phase:<7}{workers} workers  {name:<30}{mid['crops']:6.0f} crops {mid['crops_s']:8.0f} a second"
            f"{mid['bytes']:7.2f} bytes fetched a byte used{mid['asked']:7.0f} requests{mid['first_s']:8.2f} s to the first"
        )


if __name__ == "__main__":
    main()
