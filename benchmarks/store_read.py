"""What a random 90 s crop costs, read through `store.frames` and through its peers, each at its best setting.

    python benchmarks/store_read.py [--recordings 64] [--crops 2000]

Every way gets the same (1125, 512) float16 crop as a fresh array in memory, in turns, from a warm page cache: what is
compared is the path from disk format to array, not the disk. The yardstick is the same copy out of one raw
`np.memmap`; figures are medians per crop and their ratio to it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import featstore
from featstore import MIMI_GRID, FeatureSpec, Utterance

DIM, CROP, FRAMES = 512, 1125, 3750  # 90 s crops of 300 s recordings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=64)
    parser.add_argument("--crops", type=int, default=2000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(FRAMES, DIM)).astype(np.float16) for _ in range(options.recordings)]
    crops = [(int(rng.integers(len(data))), int(rng.integers(FRAMES - CROP))) for _ in range(options.crops)]
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(Path(folder), data)
        times = measure(ways, crops, data)
    base = float(np.median(times["raw np.memmap"]))
    print(f"python {platform.python_version()}, {os.cpu_count()} cores; {len(crops)} crops of {CROP}x{DIM} float16")
    print(f"{'way':<44}{'µs a crop':>11}{'ratio':>8}")
    for name, seconds in sorted(times.items(), key=lambda item: np.median(item[1])):
        print(f"{name:<44}{np.median(seconds) * 1e6:>11.0f}{np.median(seconds) / base:>8.2f}")


def measure(
    ways: dict[str, Callable[[int, int], np.ndarray]], crops: list[tuple[int, int]], data: list[np.ndarray]
) -> dict[str, list[float]]:
    """Seconds of each crop by way. The ways take turns, so that a slow moment of the machine hits all."""
    for name, read in ways.items():
        for i, start in crops[:3]:
            found = read(i, start)
            if not np.array_equal(found, data[i][start : start + CROP].astype(found.dtype)):
                raise SystemExit(f"{name} reads other values")
    for i in range(len(data)):  # the whole of it into the page cache, by every way
        for read in ways.values():
            read(i, 0)
            read(i, FRAMES - CROP)
    times: dict[str, list[float]] = {name: [] for name in ways}
    slow = {name for name, read in ways.items() if timed(read, *crops[0]) > 1e-3}
    for number in range(len(crops)):
        for turn, (name, read) in enumerate(ways.items()):
            if name in slow and number % 20:
                continue  # a twentieth is enough for the median of milliseconds
            # Another crop for each way: several read the same pages and would find them in the processor's cache.
            times[name].append(timed(read, *crops[(number + 37 * turn) % len(crops)]))
    return times


def timed(read: Callable[[int, int], np.ndarray], i: int, start: int) -> float:
    began = time.perf_counter()
    read(i, start)
    return time.perf_counter() - began


def prepare(folder: Path, data: list[np.ndarray]) -> dict[str, Callable[[int, int], np.ndarray]]:
    """Write `data` in every format; returns way → function(recording, first frame) → fresh array."""
    count = len(data)
    whole = np.concatenate(data)
    whole.tofile(folder / "raw.bin")
    raw = np.memmap(folder / "raw.bin", np.float16, "r", shape=whole.shape)

    spec = FeatureSpec("mimi", DIM, "float16", 24000, MIMI_GRID, "benchmark", "0" * 64, {"weights": "random:0"})
    with featstore.writer(folder / "store", spec, part_seconds=1e9) as out:
        for i, frames in enumerate(data):
            out.add(Utterance(f"r{i}", f"r{i}.wav", 0.0, 300.0, f"r{i}"), frames)
    store = featstore.open(folder / "store")
    checked = featstore.open(folder / "store", verify=True)

    import zarr

    parts = zarr.open_group(folder / "store" / "features.zarr" / "mimi", mode="r")
    index = store.index("mimi")
    own = [(parts[name]["frames"]) for name in index.part_names]
    # Its best setting for random crops: a chunk about as long as a crop, not our part-sized ones.
    small = zarr.create_array(
        store=str(folder / "small.zarr"), shape=whole.shape, chunks=(CROP, DIM), dtype="float16", compressors=None
    )
    small[:] = whole

    with h5py.File(folder / "a.h5", "w") as file:
        file["contiguous"] = whole
        file.create_dataset("chunked", data=whole, chunks=(CROP, DIM))
    hdf5 = h5py.File(folder / "a.h5", "r")
    contiguous, chunked = hdf5["contiguous"], hdf5["chunked"]
    buffer_shape = (CROP, DIM)

    def h5_direct(i: int, start: int) -> np.ndarray:
        into = np.empty(buffer_shape, np.float16)
        contiguous.read_direct(into, np.s_[i * FRAMES + start : i * FRAMES + start + CROP])
        return into

    for i, frames in enumerate(data):
        np.save(folder / f"{i}.npy", frames)

    ways = {
        "raw np.memmap": lambda i, s: np.array(raw[i * FRAMES + s : i * FRAMES + s + CROP]),
        "store.frames (this project)": lambda i, s: np.array(store.frames("mimi", f"r{i}", s, s + CROP)),
        "store.frames, CRC checked on first touch": lambda i, s: np.array(checked.frames("mimi", f"r{i}", s, s + CROP)),
        "h5py contiguous, read_direct": h5_direct,
        "h5py chunked by crop": lambda i, s: chunked[i * FRAMES + s : i * FRAMES + s + CROP],
        "np.load, mmap_mode='r'": lambda i, s: np.array(np.load(folder / f"{i}.npy", mmap_mode="r")[s : s + CROP]),  # noqa: TID251
        "np.load of the whole recording": lambda i, s: np.load(folder / f"{i}.npy")[s : s + CROP].copy(),  # noqa: TID251
        "zarr-python, chunks of a crop": lambda i, s: small[i * FRAMES + s : i * FRAMES + s + CROP],
        "zarr-python on our store": lambda i, s: own[0][i * FRAMES + s : i * FRAMES + s + CROP],
    }
    if count * FRAMES != sum(a.shape[0] for a in own) or len(own) != 1:
        del ways["zarr-python on our store"]  # several parts: the plain offsets above would not hold
    return ways | lhotse_ways(folder, data) | datasets_ways(folder, data)


def lhotse_ways(folder: Path, data: list[np.ndarray]) -> dict[str, Callable[[int, int], np.ndarray]]:
    """lhotse's HDF5 and NumPy readers, uncompressed, as its own partial reads."""
    try:
        from lhotse.features.io import NumpyHdf5Reader, NumpyHdf5Writer
    except ImportError:
        return {}
    with NumpyHdf5Writer(str(folder / "lhotse")) as out:
        keys = [out.write(f"r{i}", frames) for i, frames in enumerate(data)]
        path = out.storage_path
    reader = NumpyHdf5Reader(path)
    return {
        "lhotse NumpyHdf5": lambda i, s: np.array(
            reader.read(keys[i], left_offset_frames=s, right_offset_frames=s + CROP)
        )
    }


def datasets_ways(folder: Path, data: list[np.ndarray]) -> dict[str, Callable[[int, int], np.ndarray]]:
    """Hugging Face datasets: one row a recording, read through its NumPy format and through its Arrow table."""
    try:
        import datasets
    except ImportError:
        return {}
    features = datasets.Features({"frames": datasets.Array2D((FRAMES, DIM), "float16")})
    arrow = datasets.Dataset.from_generator(
        lambda: ({"frames": frames} for frames in data), features=features, cache_dir=str(folder / "hf")
    )
    column = arrow.data.column("frames")  # Arrow's buffers: the quickest way in there is

    def through_arrow(i: int, start: int) -> np.ndarray:
        rows = column.slice(i, 1).chunk(0).storage.flatten()[start : start + CROP]
        return rows.flatten().to_numpy(zero_copy_only=False).reshape(CROP, DIM).copy()

    numpy = arrow.with_format("numpy")
    return {
        "HF datasets, Arrow table": through_arrow,
        "HF datasets, NumPy format": lambda i, s: np.array(numpy[i]["frames"][s : s + CROP]),
    }


if __name__ == "__main__":
    main()
