"""push, pull and reading at a distance: real servers on the loopback, good ones and ones that misbehave."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import google_crc32c
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import MIMI_GRID, FeatureSpec, FingerprintMismatch, StoreError, Utterance
from featstore.remote import blocks as far_blocks
from featstore.remote import client, transfer
from featstore.store import address, layout, lock
from featstore.torch import Crops
from featstore.upkeep.verify import verify

pytest.importorskip("obstore")
NAMES = ("mimi", "titanet")


def make_store(path: Path, count: int = 24, first: int = 0, weights: str = "0") -> Path:
    rng = np.random.default_rng(first)
    for dim, name in enumerate(NAMES, start=16):
        spec = FeatureSpec(name, dim, "float16", 24000, MIMI_GRID, name, weights * 64, {"weights": "file"})
        with featstore.writer(path, spec, part_bytes=8000) as out:
            for i in range(first, first + count):
                frames = rng.normal(size=(int(rng.integers(20, 90)), dim))
                out.add(Utterance(f"u{i}", f"{i}.wav", 0.0, 1.0, f"r{i}", "s", "train", ()), frames)
    return path


def content(path: Path | str) -> dict[str, object]:
    store = featstore.open(path, verify=True)
    return {
        "facts": store.utterances.to_pylist(),
        **{name: [store.frames(name, id).tobytes() for id in store.ids] for name in NAMES},
        **{f"pooled {name}": store.pooled(name).tobytes() for name in NAMES},
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("source") / "store")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """``host:port`` of an S3 server: moto's (in a process of its own: it patches what it is imported into).

    WHOWHEN_S3_ENDPOINT=http://host:port (and AWS_… keys) puts another one in its place.
    """
    if "WHOWHEN_S3_ENDPOINT" in os.environ:
        yield urlsplit(os.environ["WHOWHEN_S3_ENDPOINT"]).netloc
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, "moto's server did not start"
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of an empty bucket that everybody may read."""
    endpoint = f"http://{server}"
    name = f"b{uuid.uuid4().hex[:12]}"
    if "WHOWHEN_S3_ENDPOINT" not in os.environ:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=name)
    # Who may not list a bucket is told 403, not 404, of what is not in it.
    everybody = [
        {"Effect": "Allow", "Principal": "*", "Action": f"s3:{action}", "Resource": f"arn:aws:s3:::{name}{below}"}
        for action, below in (("GetObject", "/*"), ("ListBucket", ""))
    ]
    client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": everybody}))
    return f"s3://{name}"


class Faults(ThreadingHTTPServer):
    """A proxy before another server that fails as its seeded plan says: 500s, resets, cut bodies, slow answers."""

    daemon_threads = True

    def __init__(self, upstream: str, seed: int, share: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.share, self.rng, self.lock = upstream, share, random.Random(seed), threading.Lock()
        self.done: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self) -> str:
        with self.lock:
            kind = self.rng.choice(["500", "reset", "cut", "slow"]) if self.rng.random() < self.share else ""
            self.done.append(kind)
            return kind

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Resets are meant."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault()
        if fault == "slow":
            time.sleep(0.3)
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(key, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "cut" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_addresses() -> None:
    assert address.as_url("s3://b/p/") == address.as_url(Path("s3://b/p")) == "s3://b/p"
    assert address.as_url(Path("file:///srv/x")) == "file:///srv/x"
    assert address.as_url("https://host/x") == "https://host/x"
    assert address.as_url("store") is address.as_url("/s3/x") is address.as_url("s3x:/y") is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AWS_ENDPOINT_URL", "localhost:8771", "expected http://HOST:PORT or https://HOST, found 'localhost:8771'"),
        ("AWS_ENDPOINT", "http://a b", "expected http://HOST"),
        ("AWS_ENDPOINT_URL", "http://", "expected http://HOST"),
        ("AWS_ACCESS_KEY_ID", "key\n", "holds a control character"),
    ],
)
def test_a_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=f"^{name}: {says}"):
        featstore.open("s3://bucket/store")
    client.Remote("https://host/store")  # needs none of them


def test_an_empty_endpoint_is_none(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "")  # beside the bucket's AWS_ENDPOINT_URL
    assert client.Remote(bucket).files() == {}


def test_a_bucket_that_is_not_there_is_told_at_once(bucket: str) -> None:
    with pytest.raises(StoreError, match=f"^{bucket}-no/store: no such bucket there; make it first") as caught:
        featstore.open(f"{bucket}-no/store")
    assert "\n" not in str(caught.value)


def test_a_panic_of_obstore_is_one_line() -> None:
    class PanicException(BaseException):
        """As pyo3 makes it."""

    def panic() -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value\nstack backtrace")

    with pytest.raises(StoreError, match=r"^https://h/s/x: obstore failed \(called .*\); check the address") as caught:
        client.Remote("https://h/s")._call("x", panic)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://b/a b#c", "https://host/s?t=1", "file:///srv/a#b"])
def test_an_address_is_not_cut(url: str) -> None:
    with pytest.raises(StoreError, match=r"an address cannot hold '[#?]'"):
        client.Remote(url)


def test_only_push_makes_a_folder(source: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pull", f"file://{tmp_path}/nothere", str(tmp_path / "copy")])
    assert result.exit_code == 2 and f"file://{tmp_path}/nothere: no such folder" in result.stderr
    with pytest.raises(StoreError, match="no such folder"):
        transfer.push(tmp_path / "no", f"file://{tmp_path}/new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="^file:///proc/x: not an address of a store"):
        transfer.push(source, "file:///proc/x")


def test_a_listing_of_many_parts_is_short_enough() -> None:
    name = "20260101T000000-00c0ffee-00000-m00c0ffee"
    feature = "f" * 64
    arrays = [f"{array}/{file}" for array in layout.ARRAYS for file in ("zarr.json", "c/0/0")]
    files = [f"features.zarr/{feature}/{name}/{file}" for file in (*arrays, "zarr.json")]
    files += [f"index/{feature}/{name}.parquet", f"utterances/{name}.parquet"]
    a_part = len(json.dumps(dict.fromkeys(files, 128 << 20)))
    assert 2 * 20_000 * a_part < client.MAX_LISTING_BYTES < 4 * 20_000 * a_part


def test_a_store_goes_to_a_bucket_and_back(source: Path, bucket: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = transfer.push(source, f"{bucket}/deep/store", progress=lambda *of: told.append(of))
    parts = verify(source).parts
    assert told[0] == (0, first.bytes) and told[-1] == (first.bytes, first.bytes) and told == sorted(told)
    assert first.seconds > 0
    assert (first.parts, first.parts_there) == (parts, 0) and parts > 6
    assert first.bytes >= sum(p.stat().st_size for p in (source / "features.zarr").rglob("0") if p.is_file())
    again = transfer.push(source, f"{bucket}/deep/store")
    assert (again.parts, again.parts_there, again.bytes) == (0, parts, 0)
    told.clear()
    back = transfer.pull(f"{bucket}/deep/store", tmp_path / "copy", progress=lambda *of: told.append(of))
    assert (back.parts, back.parts_there, back.bytes) == (parts, 0, first.bytes) and told[-1] == (
        back.bytes,
        back.bytes,
    )
    assert content(tmp_path / "copy") == content(source) == content(f"{bucket}/deep/store")
    assert verify(tmp_path / "copy").findings == []
    assert not (tmp_path / "copy" / "incoming").exists()


def test_what_is_added_later_goes_along(bucket: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", count=4)
    transfer.push(store, bucket)
    before = featstore.open(bucket)
    make_store(store, count=4, first=10)
    assert transfer.push(store, bucket).parts == 2
    assert len(before) == 4 and len(featstore.open(bucket)) == 8
    transfer.pull(bucket, tmp_path / "b")
    assert content(tmp_path / "b") == content(store)


def test_one_address_holds_one_feature_of_a_name(source: Path, bucket: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    other = make_store(tmp_path / "other", count=2, first=50, weights="1")
    with pytest.raises(FingerprintMismatch, match="holds another feature or version"):
        transfer.push(other, bucket)
    with pytest.raises(FingerprintMismatch, match="appending would mix two models"):
        transfer.pull(bucket, other)
    assert content(bucket) == content(source)


def test_a_damaged_part_neither_leaves_nor_arrives(source: Path, bucket: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    chunk = sorted(broken.glob("features.zarr/mimi/*/frames/c/0/0"))[1]
    data = bytearray(chunk.read_bytes())
    data[7] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(StoreError, match=r"part mimi/.* is damaged: .*CRC32C differs"):
        transfer.push(broken, bucket)
    transfer.push(source, bucket)
    client.Remote(bucket).upload(chunk.relative_to(broken).as_posix(), bytes(data))
    with pytest.raises(StoreError, match=r"part mimi/.* is damaged: .*CRC32C differs"):
        transfer.pull(bucket, tmp_path / "copy")
    assert set(featstore.open(tmp_path / "copy").ids) < set(featstore.open(source).ids)
    client.Remote(bucket).upload(
        chunk.relative_to(broken).as_posix(), (source / chunk.relative_to(broken)).read_bytes()
    )
    transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)


def test_reading_at_a_distance_sees_damage_and_gaps(source: Path, bucket: str) -> None:
    transfer.push(source, bucket)
    id = featstore.open(source).ids[0]
    key = next(p for p in client.Remote(bucket).files() if "/mimi/" in p and p.endswith("frames/c/0/0"))
    good = (source / key).read_bytes()
    far = client.Remote(bucket)
    far.upload(key, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(StoreError, match=r"damaged \(CRC32C differs\)"):
        featstore.open(bucket, verify=True).frames("mimi", id)
    far.upload(key, good[:-8])
    with pytest.raises(StoreError, match=r"expected \d+ bytes, found \d+"):
        featstore.open(bucket).frames("mimi", id)
    far._obstore.delete(far._store, key)
    with pytest.raises(StoreError, match="the chunk is missing"):
        featstore.open(bucket).frames("mimi", id)


def test_verified_reading_checks_what_it_returns(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.push(source, bucket)
    id, ranges = featstore.open(source).ids[0], client.Remote.ranges
    far = featstore.open(bucket, verify=True, cache=tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(client.Remote, "ranges", lambda *a: [bytes(len(p)) if len(p) > 999 else p for p in ranges(*a)])
        with pytest.raises(StoreError, match=r"damaged \(CRC32C differs\)"):
            far.frames("mimi", id)
    # Another chunk, whole in itself, in the place of the one that was committed.
    chunks = sorted(source.glob("features.zarr/mimi/*/frames/c/0/0"))
    key = chunks[0].relative_to(source).as_posix()
    other = bytearray(chunks[0].read_bytes())
    other[0] ^= 1
    other[-4:] = google_crc32c.value(bytes(other[:-4])).to_bytes(4, "little")
    client.Remote(bucket).upload(key, bytes(other))
    with pytest.raises(StoreError, match=r"damaged \(CRC32C differs\)"):
        featstore.open(bucket, verify=True).frames("mimi", id)
    seal = key.removesuffix("frames/c/0/0") + "zarr.json"
    client.Remote(bucket).upload(seal, (source / seal).read_bytes().replace(b'"chunk_crc32c"', b'"chunk_crc32d"'))
    with pytest.raises(StoreError, match="edited"):
        featstore.open(bucket, cache=tmp_path / "two")


def test_a_pull_killed_inside_a_file_goes_on(source: Path, bucket: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    script = (
        "import os, signal, sys; from featstore.remote import client, transfer; calls = []\n"
        "receive = client.Remote._receive\n"
        "def dying(*a):\n    calls.append(1)\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)\n    return receive(*a)\n"
        "client.Remote._receive = dying; transfer.pull(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", script, bucket, str(tmp_path / "copy")], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "copy" / "incoming").glob(".*.tmp"))
    transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)


def test_what_is_larger_than_listed_is_not_read(source: Path, bucket: str, server: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    url = f"http://{server}/{bucket.removeprefix('s3://')}"
    for top in ("index/mimi/", "utterances/"):
        key = next(p for p in client.Remote(bucket).files() if p.startswith(top))
        client.Remote(bucket).upload(key, bytes(1 << 20))
        with pytest.raises(StoreError, match=rf"{key}: 1048576 bytes, expected at most \d+; not read"):
            featstore.open(url, cache=tmp_path / top)
        client.Remote(bucket).upload(key, source / key)


def test_a_pooled_chunk_is_sized_before_it_is_read(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.push(source, bucket)
    key = next(p for p in client.Remote(bucket).files() if "/mimi/" in p and p.endswith("mean/c/0/0"))
    listed = featstore.open(bucket, cache=tmp_path / "one")
    client.Remote(bucket).upload(key, bytes(1 << 20))
    with pytest.raises(StoreError, match="1048576 bytes, expected at most"):
        listed.pooled("mimi")
    far = featstore.open(bucket, cache=tmp_path / "two")
    read: list[str] = []
    monkeypatch.setattr(client.Remote, "read", lambda self, path, limit: read.append(path))
    with pytest.raises(StoreError, match=r"expected \d+ bytes, found 1048576"):
        far.index("mimi").parts[far.index("mimi").part_names.index(key.split("/")[2])].pooled("mean")
    assert read == []


def test_large_chunks_come_in_pieces(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.push(source, bucket)
    monkeypatch.setattr(client, "PIECE_BYTES", 700)
    monkeypatch.setattr(far_blocks.Blocks.read, "__defaults__", (512, lambda data: None))
    asked: list[int] = []
    piece, obstore = client.Remote._piece, pytest.importorskip("obstore")
    get, get_ranges = obstore.get, obstore.get_ranges

    def ranges(store: object, path: str, *, starts: list[int], ends: list[int]) -> object:
        asked.append(sum(ends) - sum(starts))
        return get_ranges(store, path, starts=starts, ends=ends)

    monkeypatch.setattr(obstore, "get_ranges", ranges)
    monkeypatch.setattr(client.Remote, "_piece", lambda s, p, a, b: asked.append(b - a) or piece(s, p, a, b))
    assert content(bucket) == content(source)
    far = featstore.open(bucket)
    assert [far.frames("mimi", id).tobytes() for id in far.ids] == content(source)["mimi"]
    assert max(asked) == 700
    asked.clear()
    whole: list[str] = []
    monkeypatch.setattr(obstore, "get", lambda store, path: whole.append(path) or get(store, path))
    transfer.pull(bucket, tmp_path / "copy")
    assert asked == [] and {path for path in whole if "/c/" in path} == {
        path for path in transfer.local_files(source) if "/c/" in path
    }


def test_another_server_has_another_cache(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one address two servers may hold different stores of the same features."""
    transfer.push(source, bucket)
    featstore.open(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))
    featstore.open(bucket)
    featstore.open(bucket)
    assert len(list((tmp_path / "cache" / "whowhen").iterdir())) == 2


@pytest.mark.parametrize("top", ["index/mimi/", "utterances/"])
def test_a_table_that_is_not_the_committed_one_is_refused(source: Path, bucket: str, tmp_path: Path, top: str) -> None:
    transfer.push(source, bucket)
    key = next(p for p in client.Remote(bucket).files() if p.startswith(top))
    data = bytearray((source / key).read_bytes())
    data[len(data) // 2] ^= 1
    client.Remote(bucket).upload(key, bytes(data))
    with pytest.raises(StoreError, match=f"{key}: not the file that was committed"):
        featstore.open(bucket, cache=tmp_path / "one")


def test_what_a_stopped_push_left_half_is_pushed_again(source: Path, bucket: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    far = client.Remote(bucket)
    key = next(p for p in far.files() if "/mimi/" in p and p.endswith("frames/c/0/0"))
    far.upload(key, (source / key).read_bytes()[:-8])
    part = key.split("/")[2]
    far._obstore.delete(far._store, f"index/mimi/{part}.parquet")  # it had not been committed
    moved = transfer.push(source, bucket)
    assert moved.parts == 1 and content(bucket) == content(source)


def test_a_push_that_did_not_arrive_says_so(source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = client.Remote.upload
    lost = "std/c/0/0"
    monkeypatch.setattr(
        client.Remote, "upload", lambda self, path, data: 0 if path.endswith(lost) else upload(self, path, data)
    )
    with pytest.raises(StoreError, match=rf"{lost}: not there in its size, nor \d+ other files; push again"):
        transfer.push(source, bucket)
    with pytest.raises(StoreError, match="not there"):
        client.Remote(bucket).read(client.LISTING)


def test_pieces_come_together_whatever_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(40)))
    monkeypatch.setattr(client, "PIECE_BYTES", 4)
    far = client.Remote(f"file://{tmp_path}")
    for starts, ends in (([0, 8, 20], [8, 12, 29]), ([3, 10], [4, 14]), ([5], [5 + 4]), ([30], [39])):
        assert far.ranges("file", starts, ends) == [bytes(range(a, b)) for a, b in zip(starts, ends, strict=True)]


def test_a_file_is_of_the_size_that_is_listed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(bytes(10))
    far = client.Remote(f"file://{tmp_path}/far")
    for size in (9, 11):
        with pytest.raises(StoreError, match=f"file: 10 bytes, expected {size}; not read"):
            far.download("file", tmp_path / "copy", size, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == [] and not (tmp_path / "copy").exists()
    blocks = far_blocks.Blocks(far, {"file": 10}, 1 << 20)
    assert bytes(blocks.read("file", 4, 10)) == bytes(6)
    with pytest.raises(StoreError, match="expected at least 12 bytes, found 10"):
        blocks.read("file", 4, 12)


def test_messages_and_runs_name_the_address(source: Path, bucket: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    far = featstore.open(bucket)
    for action in (lambda: far.utterance("nobody"), lambda: far.index("nothing")):
        with pytest.raises(KeyError, match=bucket):
            action()
    runs, config = pytest.importorskip("trainers.runs"), pytest.importorskip("trainers.config")
    run = runs.Run.create(tmp_path / "run", config.FitConfig.make("probe", settings=["trials=x"]), far)
    assert run.store == far.select(split="train").address == bucket
    assert featstore.open(source).address == str(source)


def test_one_pull_at_a_time(source: Path, bucket: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    refused: list[str] = []

    def progress(done: int, of: int) -> None:
        if len(refused) < 3:  # before the first file, and after the first two
            with pytest.raises(StoreError) as caught:
                transfer.pull(bucket, tmp_path / "copy")
            refused.append(str(caught.value))

    transfer.pull(bucket, tmp_path / "copy", progress=progress)  # the first into nothing
    assert len(refused) == 3 and all("something else is writing to it" in line for line in refused)
    with lock.hold(tmp_path / "copy"), pytest.raises(StoreError, match="something else is writing to it"):
        transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)


def test_an_interrupted_pull_ends_what_is_under_way(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.push(source, bucket)
    used: list[client.Remote] = []
    download = client.Remote.download
    with monkeypatch.context() as patch:
        patch.setattr(client.Remote, "download", lambda self, *a: used.append(self) or download(self, *a))
        patch.setattr(transfer, "check_part", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        result = CliRunner().invoke(app, ["pull", bucket, str(tmp_path / "copy")])
    assert result.exit_code == 130
    assert result.stderr == "interrupted: what was finished stays; the same command goes on\n"
    with pytest.raises(StoreError, match="stopped"):  # a thread that is inside a file
        used[0].download("features.zarr/zarr.json", tmp_path / "x", (source / layout.ROOT).stat().st_size, tmp_path)
    transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)


def test_a_far_store_pickles_and_says_when_it_was_forked(source: Path, bucket: str) -> None:
    transfer.push(source, bucket)
    far = featstore.open(bucket)
    id = far.ids[0]
    expected = far.frames("mimi", id)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(far)).frames("mimi", id), expected)
    far.index("mimi").parts[0]._blocks._process = -1
    with pytest.raises(StoreError, match="opened before this process was forked.*multiprocessing_context='spawn'"):
        far.frames("mimi", id)


def test_crops_are_fetched_once_and_kept_within_the_limit(
    source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.push(source, bucket)
    near = featstore.open(source)
    monkeypatch.setattr(far_blocks, "BLOCK_BYTES", 512)
    far = featstore.open(bucket, cache_bytes=4096)
    fetched: list[int] = []
    ranges = client.Remote.ranges
    monkeypatch.setattr(
        client.Remote,
        "ranges",
        lambda self, path, a, b: ("/c/" in path and fetched.append(len(a))) or ranges(self, path, a, b),
    )
    id = near.ids[3]
    for _ in range(3):
        np.testing.assert_array_equal(far.frames("mimi", id, 5, 15), near.frames("mimi", id, 5, 15))
    assert len(fetched) == 1
    crops = [(name, id, start, start + 17) for id in near.ids for name in NAMES for start in (0, 2, 11)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda crop: far.frames(*crop), crops))
    for crop, rows in zip(crops, found, strict=True):
        np.testing.assert_array_equal(rows, near.frames(*crop))
        assert not rows.flags.writeable
    blocks = far.index("mimi").parts[0]._blocks
    assert blocks.held == sum(map(len, blocks._blocks.values())) <= 4096
    assert not blocks._coming


def test_crops_of_a_batch_are_fetched_side_by_side(source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer.push(source, bucket)
    monkeypatch.setattr(far_blocks, "BLOCK_BYTES", 512)
    near, far = (Crops(featstore.open(at), NAMES, 8, random=False) for at in (source, bucket))
    items = random.Random(0).sample(range(len(near)), 32)
    for name in NAMES:
        far._open().frames(name, far._open().ids[0], 0, 1)  # metadata of arrays
    both, ranges = threading.Barrier(2, timeout=10), client.Remote.ranges
    first_two = iter("ab")

    def slow(self: client.Remote, path: str, starts: list[int], ends: list[int]) -> list[bytes]:
        if next(first_two, ""):
            both.wait()  # nothing comes before a second one has been asked for
        return ranges(self, path, starts, ends)

    monkeypatch.setattr(client.Remote, "ranges", slow)
    for found, expected in zip(far.__getitems__(items), near.__getitems__(items), strict=True):
        assert all(found[k] == expected[k] for k in ("id", "speaker", "start", "frames"))
        assert all(torch.equal(found[name], expected[name]) for name in NAMES)
    assert not next(first_two, "")
    # What is at hand is read without a thread, and a crop over the border of two blocks is whole.
    monkeypatch.setattr("featstore.torch.ThreadPoolExecutor", None)
    again = far.__getitems__(items)
    assert all(
        torch.equal(a[name], b[name]) for a, b in zip(again, near.__getitems__(items), strict=True) for name in NAMES
    )


def test_what_is_at_hand(source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four of its frames; of frames that are checked, whole chunks."""
    transfer.push(source, bucket)
    name, id = NAMES[0], featstore.open(source).ids[3]
    assert featstore.open(source).at_hand(name, id)
    spec = featstore.open(source).features[name]
    monkeypatch.setattr(far_blocks, "BLOCK_BYTES", 4 * spec.dim * np.dtype(spec.dtype).itemsize)
    for checked in (False, True):
        far = featstore.open(bucket, verify=checked)
        first = int(far.index(name).first[far.index(name).row(id)])
        assert not far.at_hand(name, id, 0, 1) and far.at_hand(name, id, 2, 2)
        far.frames(name, id, 0, 1)
        left = 4 - first % 4
        assert far.at_hand(name, id, 0, left) and far.at_hand(name, id, 0, left + 1) == checked
        far.frames(name, id)
        assert far.at_hand(name, id)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_bad_line_changes_nothing(
    seed: int, source: Path, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(server, seed, share=0.25)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faults.server_port}")
    transfer.push(source, bucket)
    transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(bucket) == content(source)
    assert {"500", "reset", "cut", "slow"} <= set(faults.done)
    faults.close()


def test_a_dead_line_is_one_clear_error(
    source: Path, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRIES", 1)
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    transfer.push(source, bucket)
    faults = Faults(server, 0, share=1.1)
    faults.fault = lambda: "500"  # type: ignore[method-assign]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faults.server_port}")
    for action in (lambda: transfer.pull(bucket, tmp_path / "copy"), lambda: featstore.open(bucket)):
        with pytest.raises(StoreError, match=r"given up after 2 attempts") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy").exists()
    result = CliRunner().invoke(app, ["pull", bucket, str(tmp_path / "copy")])
    assert result.exit_code == 2 and "given up after" in result.stderr and "Traceback" not in result.stderr
    faults.close()


def test_a_refused_listing_is_told_at_once(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(server, 0, share=1.1)
    faults.fault = lambda: faults.done.append("403") or "403"  # type: ignore[func-returns-value, method-assign]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faults.server_port}")
    with pytest.raises(StoreError, match="access refused"):
        featstore.open(bucket)
    assert faults.done == ["403"]
    faults.close()


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_killed_and_resumed(direction: str, source: Path, bucket: str, server: str, tmp_path: Path) -> None:
    if direction == "pull":
        transfer.push(source, bucket)
    faults = Faults(server, 1, share=0.0)
    asked: list[None] = []
    faults.fault = lambda: asked.append(time.sleep(0.01)) or ""  # type: ignore[func-returns-value, method-assign]
    arguments = [str(source), bucket] if direction == "push" else [bucket, str(tmp_path / "copy")]
    command = [sys.executable, "-c", "from cli.featstore import app; app()", direction, *arguments]
    environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{faults.server_port}"}
    seen: set[str] = set()
    killed = 0
    for round in range(40):
        until = len(asked) + 12 + 5 * round
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(asked) < until:
            time.sleep(0.002)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        try:
            now = featstore.open(bucket if direction == "push" else tmp_path / "copy", verify=True)
        except StoreError:
            assert not seen  # only before there is anything
            continue
        near = featstore.open(source)
        for name in now.features:
            for id in now.index(name).rows:
                np.testing.assert_array_equal(now.frames(name, id), near.frames(name, id))
        assert seen <= set(now.ids)
        seen = set(now.ids)
        if process.returncode == 0:
            break
    assert process.returncode == 0 and killed >= 1
    if direction == "push":
        transfer.pull(bucket, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)
    faults.close()


def test_over_plain_http(source: Path, bucket: str, server: str, tmp_path: Path) -> None:
    """Any web server that knows ranges will do; here it is the S3 server again, without signatures."""
    transfer.push(source, bucket)
    url = f"http://{server}/{bucket.removeprefix('s3://')}"
    transfer.pull(url, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(url) == content(source)
    with pytest.raises(StoreError, match="a web server takes no files"):
        transfer.push(source, url)
    with pytest.raises(StoreError, match=r"listing\.json: not there; a web server's store needs the listing\.json"):
        featstore.open(f"{url}/nothing")


def test_a_listing_cannot_name_files_elsewhere(source: Path, bucket: str, server: str, tmp_path: Path) -> None:
    transfer.push(source, bucket)
    url = f"http://{server}/{bucket.removeprefix('s3://')}"
    for path, size in (("index/../../x", 1), ("index/mimi/a\n", 1), ("index/mimi/a", -1), ("index/mimi/a", "1")):
        listing = json.dumps({"files": {"features.zarr/zarr.json": 50, path: size}}).encode()
        client.Remote(bucket).upload("listing.json", listing)
        with pytest.raises(StoreError, match="is no file of a store"):
            transfer.pull(url, tmp_path / "copy")
    for listing in (b"[]", b"{", b'{"files": 3}'):
        client.Remote(bucket).upload("listing.json", listing)
        with pytest.raises(StoreError, match="not a listing"):
            featstore.open(url)
    assert not (tmp_path / "copy").exists()


def test_nginx_serves_a_pushed_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    transfer.push(source, f"file://{tmp_path / 'www' / 'store'}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/t;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {tmp_path}/www; }} }}\n"
    )
    os.chmod(tmp_path, 0o755)
    process = subprocess.Popen([nginx, "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}/store"
        transfer.pull(url, tmp_path / "copy")
        assert content(tmp_path / "copy") == content(url) == content(source)
        faults = Faults(f"127.0.0.1:{port}", 5, share=0.3)
        assert content(f"http://127.0.0.1:{faults.server_port}/store") == content(source)
        assert {"500", "reset", "cut", "slow"} <= set(faults.done)
        faults.close()
    finally:
        process.kill()
        process.wait()


def test_commands(source: Path, bucket: str, tmp_path: Path) -> None:
    pushed = CliRunner().invoke(app, ["push", str(source), bucket, "--json"])
    assert pushed.exit_code == 0, pushed.output
    assert json.loads(pushed.stdout)["parts"] == verify(source).parts
    pulled = CliRunner().invoke(app, ["pull", bucket, str(tmp_path / "copy")])
    assert pulled.exit_code == 0 and pulled.stdout.startswith(f"pulled {verify(source).parts} parts")
    found = CliRunner().invoke(app, ["info", bucket, "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["utterances"] == 24
    for command in (
        ["verify", bucket],
        ["compact", bucket],
        ["extract", "m.jsonl", "--store", bucket, "--feature", "mimi"],
    ):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2 and "this takes a folder" in refused.stderr, refused.stderr
    wrong = CliRunner().invoke(app, ["push", str(source), "here"])
    assert wrong.exit_code == 2 and "here: expected an address" in wrong.stderr
    nothing = CliRunner().invoke(app, ["pull", f"{bucket}/nothing", str(tmp_path / "no")])
    assert nothing.exit_code == 2 and "no store there" in nothing.stderr
