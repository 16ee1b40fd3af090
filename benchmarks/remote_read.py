"""Random 90 s crops from a web server on this machine against the same store on disk.

    python benchmarks/remote_read.py [--recordings 48] [--crops 400]

nginx must be installed. The far store is opened without its cache of frames (cold) and then with all of it (warm).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import featstore
from featstore import MIMI_GRID, FeatureSpec, Utterance
from featstore.remote.reader import open_remote
from featstore.remote.transfer import push

DIM, CROP, FRAMES = 512, 1125, 3750


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=48)
    parser.add_argument("--crops", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    crops = [(f"r{rng.integers(options.recordings)}", int(rng.integers(FRAMES - CROP))) for _ in range(options.crops)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chmod(root, 0o755)
        spec = FeatureSpec("mimi", DIM, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {"weights": "file"})
        with featstore.writer(root / "store", spec) as out:
            for i in range(options.recordings):
                frames = rng.normal(size=(FRAMES, DIM)).astype(np.float16)
                out.add(Utterance(f"r{i}", "x", 0.0, 300.0, f"r{i}", None, "train", ()), frames)
        push(root / "store", f"file://{root}/www/store")
        near = featstore.open(root / "store")
        with server(root) as url:
            for threads in (1, 16):
                base = measure(lambda id, a: near.frames("mimi", id, a, a + CROP).copy(), crops, threads)
                print(f"{threads} threads: on disk {base * 1e6:.0f} µs a crop")
                for limit, what in ((0, "cold"), (1 << 30, "first"), (1 << 30, "warm")):
                    if what != "warm":
                        far = open_remote(url, cache=root / "cache", cache_bytes=limit)
                    time_s = measure(lambda id, a, far=far: far.frames("mimi", id, a, a + CROP).copy(), crops, threads)
                    mb = CROP * DIM * 2 / 1e6
                    print(
                        f"  {what:<6}{time_s * 1e6:8.0f} µs a crop, {time_s / base:6.1f} × disk, {mb / time_s:7.0f} MB/s"
                    )


def measure(read: Callable[[str, int], np.ndarray], crops: list[tuple[str, int]], threads: int) -> float:
    """Wall seconds a crop."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda crop: read(*crop).nbytes, crops))
    return (time.perf_counter() - began) / len(crops)


class server:
    """nginx on a free port, showing ROOT/www, while the block lasts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> str:
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if nginx is None:
            raise SystemExit("nginx is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        root = self.root
        temporary = "".join(f"{k}_temp_path {root}/t;" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (root / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {root}/pid; error_log {root}/error.log; events {{}}\n"
            f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {root}/www; }} }}\n"
        )
        self.process = subprocess.Popen([nginx, "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")])
        time.sleep(1.0)
        return f"http://127.0.0.1:{port}/store"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    main()
