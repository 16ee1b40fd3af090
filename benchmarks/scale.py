"""What a store of a million utterances costs: to open, to look up, to draw crops from.

    python benchmarks/scale.py [--utterances 1000000] [--parts 600] [--crops 1000000]

The index and the table of utterances are real, two features each; the frames are one chunk file that all parts share
by hard links, so that the disk holds no 300 GB. The figures come from a process of its own, beside an empty one that
has imported the same packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import featstore
from featstore import MIMI_GRID, FeatureSpec
from featstore.store import layout, metadata
from featstore.store.tables import parquet_bytes

FRAMES, DIM = 100, 512  # 8 s an utterance
FEATURES = ("mimi", "titanet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[600, 60])
    parser.add_argument("--crops", type=int, default=1_000_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.crops)))
        return
    for parts in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            synthesise(store, options.utterances, parts)
            command = [sys.executable, __file__, "--measure", str(store), "--crops", str(options.crops)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{options.utterances} utterances in {parts} parts, two features:")
        for name, value in found.items():
            print(f"  {name:<58}{value:>12.4g}")


def synthesise(store: Path, utterances: int, parts: int) -> None:
    """A store whose tables are full size and whose frames are one file under many names."""
    for name in FEATURES:
        metadata.create(store, FeatureSpec(name, DIM, "float16", 16000, MIMI_GRID, name, "0" * 64, {"weights": "file"}))
    sizes = np.diff(np.linspace(0, utterances, parts + 1).astype(int))
    shared: dict[int, Path] = {}
    number = 0
    for p, size in enumerate(sizes.tolist()):
        ids = [
            f"id{i % 7000:05d}/{hashlib.md5(str(i).encode()).hexdigest()[:11]}/{i % 90:05d}"
            for i in range(number, number + size)
        ]
        number += size
        table = pa.table(
            {
                "id": ids,
                "recording": [id.rsplit("/", 1)[0] for id in ids],
                "speaker": [id.split("/")[0] for id in ids],
                "split": ["train"] * size,
                "duration": np.full(size, 8.0),
                "turns": pa.array([[]] * size, layout.UTTERANCE_SCHEMA.field("turns").type),
                "source": [f"wav/{id}.wav" for id in ids],
                "start": np.zeros(size),
            },
            schema=layout.UTTERANCE_SCHEMA,
        )
        num = np.full(size, FRAMES)
        index = parquet_bytes(pa.table([ids, np.cumsum(num) - num, num], schema=layout.INDEX_SCHEMA))
        for name in FEATURES:
            part = f"{name}-{p:05d}"
            (layout.utterances_dir(store) / f"{part}.parquet").write_bytes(parquet_bytes(table))
            (layout.index_dir(store, name) / f"{part}.parquet").write_bytes(index)
            array = layout.feature_dir(store, name) / part / "frames"
            (array / "c" / "0").mkdir(parents=True)
            shape = [size * FRAMES, DIM]
            (array / "zarr.json").write_bytes(
                metadata.canonical({"shape": shape, "chunk_grid": {"configuration": {"chunk_shape": shape}}})
            )
            chunk = array / "c" / "0" / "0"
            if size not in shared:
                with open(chunk, "wb") as file:  # sparse: zeros that take no disk
                    file.truncate(shape[0] * DIM * 2 + layout.CRC_BYTES)
                shared[size] = chunk
            else:
                os.link(shared[size], chunk)


def measure(path: Path, num_crops: int) -> dict[str, float]:
    found = {}
    empty, peak = memory_mb(), peak_mb()
    began = time.perf_counter()
    store = featstore.open(path)
    for name in FEATURES:
        store.index(name)
    found["open, both indexes read, s"] = time.perf_counter() - began
    found["  memory beyond an empty process, MB"] = memory_mb() - empty
    began = time.perf_counter()
    count = len(store)
    found["table of utterances, ids of both features joined, s"] = time.perf_counter() - began
    found["  memory with it, MB"] = memory_mb() - empty
    found["  the most on the way, MB"] = peak_mb() - peak
    rng = np.random.default_rng(0)
    rows = rng.integers(count, size=100_000)
    ids = store.utterances["id"].take(pa.array(rows)).to_pylist()
    get = store.index("mimi").rows.get
    began = time.perf_counter()
    for id in ids:
        get(id)
    found["lookup by id, µs"] = (time.perf_counter() - began) / len(ids) * 1e6
    began = time.perf_counter()
    for id in ids:
        store.frames("mimi", id, 10, 60)
    found["a crop of 50 frames by id, first touches included, µs"] = (time.perf_counter() - began) / len(ids) * 1e6
    return found


def memory_mb() -> float:
    """What this process holds in memory of its own, in MB (Linux), without the pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
