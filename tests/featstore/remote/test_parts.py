"""Reading at a distance by hand, without a server: what is kept, what is asked for again, when it is given up."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import featstore
from featstore import StoreError
from featstore.corpora.corrections import Correction
from featstore.facts import facts_of
from featstore.remote import client
from featstore.remote.blocks import Blocks
from featstore.remote.endpoint import endpoint
from featstore.remote.transfer import local_files, pull, push
from featstore.upkeep.relabel import relabel
from tests.featstore.store.test_store import fill, spec, utterance

pytest.importorskip("obstore")


class Far:
    """A file whose bytes count up, and the pieces of it that were asked for."""

    url = "far://bucket"

    def __init__(self, size: int) -> None:
        self.data, self.asked = bytes(range(size)), []

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        self.asked += zip(starts, ends, strict=True)
        return [self.data[start:end] for start, end in zip(starts, ends, strict=True)]


def test_what_was_read_last_is_kept_longest() -> None:
    far = Far(45)
    blocks = Blocks(far, {"file": 45}, 20)
    for start in (0, 10, 0, 20):
        assert bytes(blocks.read("file", start + 2, start + 9, 10)) == far.data[start + 2 : start + 9]
    assert far.asked == [(0, 10), (10, 20), (20, 30)] and blocks.held == 20
    blocks.read("file", 0, 10, 10)
    assert len(far.asked) == 3  # the first was read again, so the second had to go
    assert bytes(blocks.read("file", 18, 45, 10)) == far.data[18:45]  # across blocks, to the end of the file
    assert far.asked[3:] == [(10, 20), (30, 40), (40, 45)] and blocks.held == 15


def test_a_piece_that_is_damaged_is_not_kept() -> None:
    far, found = Far(20), []

    def check(data: bytes) -> None:
        found.append(data)
        if len(found) == 1:
            raise StoreError("damaged")

    blocks = Blocks(far, {"file": 20}, 1 << 20)
    with pytest.raises(StoreError, match="damaged"):
        blocks.read("file", 0, 5, 10, check)
    assert blocks.held == 0 and bytes(blocks.read("file", 0, 5, 10, check)) == far.data[:5]
    assert len(far.asked) == len(found) == 2
    with pytest.raises(StoreError, match="far://bucket/other: the chunk is missing"):
        blocks.read("other", 0, 5)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> client.Remote:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    return client.Remote(f"file://{tmp_path}")


def serving(far: client.Remote, size: int, *bodies: bytes) -> list[bytes]:
    """Let a file of `size` bytes come as these bodies, one after the other; those that are left."""
    left = list(bodies)
    found = SimpleNamespace(meta={"size": size}, bytes=lambda: left.pop(0))
    far._obstore = SimpleNamespace(get=lambda store, path: found, exceptions=far._obstore.exceptions)
    return left


def test_half_a_file_is_asked_for_again(far: client.Remote) -> None:
    left = serving(far, 4, b"ab", b"abc", b"abcd", b"")
    assert far.read("x") == b"abcd" and left == [b""]
    left = serving(far, 4, *[b"abc"] * 9)
    with pytest.raises(StoreError, match=r"x: given up after 4 attempts \(3 of 4 bytes came\)"):
        far.read("x")
    assert len(left) == 9 - client.ATTEMPTS


def test_a_file_larger_than_it_may_be_is_not_read(far: client.Remote) -> None:
    left = serving(far, 4, b"abcd")
    with pytest.raises(StoreError, match="x: 4 bytes, expected at most 3; not read"):
        far.read("x", limit=3)
    assert left and far.read("x", limit=4) == b"abcd"


def test_what_was_stopped_is_not_tried_again(far: client.Remote) -> None:
    left = serving(far, 4, *[b"abc"] * 9)
    far.stopped = True
    with pytest.raises(StoreError, match="given up after 1 attempts"):
        far.read("x")
    assert len(left) == 8


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_here_is_no_fault_of_the_server(far: client.Remote, tmp_path: Path, number: int) -> None:
    """Neither tried again nor told of the server: the file that was written to is named."""
    tried: list[str] = []

    def full(store: Any, path: str) -> Any:
        tried.append(path)
        raise OSError(number, os.strerror(number))

    far._obstore = SimpleNamespace(get=full, exceptions=far._obstore.exceptions)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        far.download("x", tmp_path / "x", 4, tmp_path / "scratch")
    assert caught.value.errno == number and "x" in str(caught.value.filename) and tried == ["x"]


def raised(error: BaseException) -> Callable[[], bytes]:
    def action() -> bytes:
        raise error

    return action


def test_what_each_error_of_a_server_is_called(far: client.Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that asking again does not change are told at once; the others after four times, with longer and longer waits."""
    errors, waits = far._obstore.exceptions, []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    for error, path, says in (
        (FileNotFoundError("x"), "p", "/p: not there$"),
        (errors.NotFoundError("x"), "p", "/p: not there$"),
        (PermissionError("no\nmore"), "p", r"/p: access refused \(no\)$"),
        (errors.PermissionDeniedError("x"), "p", "access refused"),
        (errors.UnauthenticatedError("x"), "p", "access refused"),
        (errors.NotSupportedError("x"), "p", "this server ignores Range requests.*featstore pull file://"),
        (errors.GenericError("status code: 403 Forbidden"), "p", r"/p: access refused \(status code: 403"),
        (errors.GenericError("status code: 401"), "", "access refused"),
        (errors.GenericError("status code: 404"), "", "no such bucket there; make it first"),
        (
            errors.GenericError("asked http://169.254.169.254/latest"),
            "p",
            "no credentials in the environment; s3:// needs",
        ),
    ):
        with pytest.raises(StoreError, match=says):
            far._call(path, raised(error))
    assert waits == []
    for error in (
        errors.GenericError("status code: 404"),
        errors.GenericError("status code: 500\nmore"),
        OSError("cut"),
    ):
        with pytest.raises(
            StoreError, match=rf"/p: given up after 4 attempts \({str(error).splitlines()[0]}\); is the addr"
        ):
            far._call("p", raised(error))
    assert waits == pytest.approx([0.4, 0.8, 1.6] * 3)
    with pytest.raises(KeyboardInterrupt):
        far._call("p", raised(KeyboardInterrupt()))
    left = [OSError("cut"), OSError("cut"), b"whole"]
    assert far._call("p", lambda: left.pop(0) if isinstance(left[0], bytes) else raised(left.pop(0))()) == b"whole"


def test_how_a_server_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from obstore import store

    asked: list[tuple] = []
    monkeypatch.setattr(store, "from_url", lambda url, **more: asked.append((url, more)))
    monkeypatch.setattr(store.HTTPStore, "from_url", lambda url, **more: asked.append((f"web {url}", more)))
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    client.Remote("s3://bucket/p")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://near:9000")
    remotes = [client.Remote(url) for url in ("s3://bucket/p", "http://host/p", "https://host/p", "gs://b/p")]
    client.Remote(f"file://{tmp_path}")
    client.Remote(f"file://{tmp_path}", make=True)
    assert [remote.endpoint for remote in remotes] == ["http://near:9000", "", "", ""]
    assert [remote.web for remote in remotes] == [False, True, True, False]
    assert [url for url, _ in asked] == ["s3://bucket/p"] * 2 + [
        *("web http://host/p", "web https://host/p", "gs://b/p"),
        *[f"file://{tmp_path}"] * 2,
    ]
    assert [more["client_options"]["allow_http"] for _, more in asked[:5]] == [False, True, True, False, False]
    assert [more.get("config") for _, more in asked[:5]] == [None, {"endpoint": "http://near:9000"}, None, None, None]
    assert [more for _, more in asked[5:]] == [{"mkdir": False}, {"mkdir": True}]
    for _, more in asked[:5]:
        options = {key: value.total_seconds() for key, value in more["client_options"].items() if key != "allow_http"}
        assert options == {"timeout": 3600.0, "read_timeout": 120.0}
        assert more["retry_config"] == {"max_retries": 8, "retry_timeout": timedelta(seconds=300)}


def test_pieces_that_are_too_short_are_asked_for_again(far: client.Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, side by side, and what is larger than one request."""
    data, asked = bytes(range(200)), []

    def get_range(store: object, path: str, *, start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start : end - (len(asked) == 1)]

    def get_ranges(store: object, path: str, *, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        return [get_range(store, path, start=a, end=b) for a, b in zip(starts, ends, strict=True)]

    far._obstore = SimpleNamespace(get_range=get_range, get_ranges=get_ranges, exceptions=far._obstore.exceptions)
    monkeypatch.setattr(client, "PIECE_BYTES", 50)
    assert far.ranges("x", [3, 100], [10, 143]) == [data[3:10], data[100:143]]  # 50 bytes: one request
    assert asked == [(3, 10), (100, 143)] * 2
    asked.clear()
    assert far.ranges("x", [3, 100], [10, 199]) == [data[3:10], data[100:199]]
    assert sorted(asked)[-2:] == [(100, 150), (150, 199)] and len(asked) == 4  # three pieces, and one of them twice


def test_a_file_comes_whole_and_goes_whole(far: client.Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = bytes(range(256)) * 40, []
    monkeypatch.setattr(client, "_SIP_BYTES", 1000)
    monkeypatch.setattr(client, "_PART_BYTES", 4000)
    (tmp_path / "mine").write_bytes(data)
    far.told = lambda path, count: told.append((path, count))
    assert far.upload("up/there", tmp_path / "mine") == len(data) == 10240
    assert told == [("up/there", count) for count in (4000, 8000, 10240)]
    told.clear()
    target, scratch = tmp_path / "deep" / "down", tmp_path / "scratch"
    assert far.download("up/there", target, 10240, scratch) == 10240 and target.read_bytes() == data
    assert told[-1] == ("up/there", 10240) and [count for _, count in told] == sorted(count for _, count in told)
    assert len(told) > 1 and list(scratch.iterdir()) == []
    assert far.download("up/there", target, 10240, scratch) == 0  # it is there
    target.write_bytes(b"short")
    assert far.download("up/there", target, 10240, scratch) == 10240 and target.read_bytes() == data
    with pytest.raises(StoreError, match="up/there: 10240 bytes, expected 10239; not read"):
        far.download("up/there", tmp_path / "other", 10239, scratch)
    assert not (tmp_path / "other").exists() and list(scratch.iterdir()) == []
    assert far.upload("small", b"abc") == 3 and far.read("small") == b"abc"
    far.stopped = True
    with pytest.raises(StoreError, match="up/there: stopped"):
        far.download("up/there", tmp_path / "other", 10240, scratch)
    with pytest.raises(StoreError, match="(stopped|given up after 1 attempts)"):
        far.upload("again", tmp_path / "mine")


def test_a_listing_is_of_a_store_s_own_files(far: client.Remote, tmp_path: Path) -> None:
    for name in (
        "features.zarr/zarr.json",
        "index/f/p.parquet",
        "utterances/p.parquet",
        "changes/c.parquet",
        "failures.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "codebooks").mkdir()
    (tmp_path / "codebooks" / "f.safetensors").write_bytes(b"123")
    assert far.files() == {
        **{"features.zarr/zarr.json": 5, "index/f/p.parquet": 5, "utterances/p.parquet": 5, "changes/c.parquet": 5},
        "codebooks/f.safetensors": 3,
    }


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fill(tmp_path / "s", part_bytes=600)
    push(tmp_path / "s", f"file://{tmp_path}/far")
    return tmp_path / "s", f"file://{tmp_path}/far"


def test_a_far_store_is_shown_as_it_is(pushed: tuple[Path, str]) -> None:
    path, url = pushed
    near, far = featstore.open(path), featstore.open(url)
    assert far.frames("mimi", "u1", 4, 2).shape == (0, 8) == far.frames("mimi", "u1", 99).shape
    assert [part.lacking() for part in far.index("mimi").parts] == [[]] * len(near.index("mimi").parts) != [[]]
    facts = facts_of(url)
    assert facts["store"] == url == far.address
    assert facts["bytes"] == sum(local_files(path).values()) and facts["features"] == facts_of(path)["features"]
    for index, array in ((0, "frames"), (1, "mean"), (2, "std")):
        gone = sorted(Path(url.removeprefix("file://")).glob(f"features.zarr/mimi/*/{array}/c/0/0"))[index]
        gone.unlink()
        lacking = [part.lacking() for part in featstore.open(url).index("mimi").parts]
        assert lacking[index] == [f"{array}/c/0/0"]


def test_a_far_store_s_metadata_is_not_believed(pushed: tuple[Path, str], tmp_path: Path) -> None:
    path, url = pushed
    far = Path(url.removeprefix("file://"))
    spec = far / "features.zarr" / "mimi" / "zarr.json"
    whole = spec.read_bytes()
    for bad in (b"{", b"[]", b'{"attributes": 3}', b"{}"):
        spec.write_bytes(bad)
        with pytest.raises(StoreError, match=r"features.zarr/mimi/zarr.json: (not a group's metadata|no feature spec)"):
            featstore.open(url)
    spec.write_bytes(whole)
    relabel(path, [Correction("u1", "here", {"split": "dev"})])
    push(path, url)
    assert featstore.open(url).select(split="dev").ids == ["u1"]
    (change,) = (far / "changes").iterdir()
    data = change.read_bytes()
    change.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    cached = tmp_path / "cache2"
    with pytest.raises(StoreError, match=rf"{change.name}: damaged or missing; push the store again"):
        featstore.open(url, cache=cached)
    assert not list((cached / "changes").glob("*.parquet"))
    change.write_bytes(data)
    assert featstore.open(url, cache=cached).select(split="dev").ids == ["u1"]
    assert pull(url, tmp_path / "back").parts == len(featstore.open(path).index("mimi").parts)


def test_what_a_push_and_a_pull_count(pushed: tuple[Path, str], tmp_path: Path) -> None:
    """Bytes of all files of the parts that were not there; what was there already is not moved again."""
    path, url = pushed
    files = local_files(path)
    of_parts = {
        name: size for name, size in files.items() if name.count("/") > 1 or name.startswith(("utterances", "index"))
    }
    of_parts.pop("features.zarr/mimi/zarr.json", None)
    told: list[tuple[int, int]] = []
    parts = len(featstore.open(path).index("mimi").parts)
    found = pull(url, tmp_path / "t", progress=lambda *of: told.append(of))
    assert (found.parts, found.parts_there, found.bytes) == (parts, 0, sum(of_parts.values())) and found.seconds > 0
    assert told[0] == (0, found.bytes) and told[-1] == (found.bytes, found.bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    again = pull(url, tmp_path / "t")
    assert (again.parts, again.parts_there, again.bytes) == (0, parts, 0)
    with featstore.writer(path, featstore.open(path).features["mimi"]) as out:
        out.add(utterance("more"), np.ones((4, 8)))
    more = push(path, url)
    new = {name: size for name, size in local_files(path).items() if name not in files}
    assert (more.parts, more.parts_there, more.bytes) == (1, parts, sum(new.values()))
    listing = json.loads((Path(url.removeprefix("file://")) / "listing.json").read_bytes())
    assert listing == {"whowhen_store": 1, "files": local_files(path)}
    assert pull(url, tmp_path / "t").parts == 1 and len(featstore.open(tmp_path / "t")) == 6


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ""),
        ({"AWS_ENDPOINT": "http://c:1"}, "http://c:1"),
        ({"AWS_ENDPOINT": "http://c:1", "AWS_ENDPOINT_URL": "http://b:1"}, "http://b:1"),
        ({"AWS_ENDPOINT_URL": "http://b:1", "AWS_ENDPOINT_URL_S3": "https://a"}, "https://a"),
        ({"AWS_ENDPOINT_URL": ""}, "https://s3.us-east-1.amazonaws.com"),
        ({"AWS_ENDPOINT": "", "AWS_DEFAULT_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
        (
            {"AWS_ENDPOINT_URL": "", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "sa-east-1"},
            "https://s3.sa-east-1.amazonaws.com",
        ),
        ({"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT": "http://c:1"}, "http://c:1"),
        ({"AWS_ENDPOINT_URL_S3": ""}, "AWS_ENDPOINT_URL_S3: is empty"),
        (
            {"AWS_ENDPOINT_URL": "near:9000"},
            "AWS_ENDPOINT_URL: expected http://HOST:PORT or https://HOST, found 'near:9000'",
        ),
        ({"AWS_SECRET_ACCESS_KEY": "a\n"}, "AWS_SECRET_ACCESS_KEY: holds a control character"),
    ],
)
def test_which_server_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if found and not found.startswith("http"):
        with pytest.raises(StoreError, match=f"^{found}"):
            endpoint()
    else:
        assert endpoint() == found


class Counting:
    """A lock, and how often it was let go of."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.count += 1
        self.lock.release()


def test_threads_that_want_the_same_piece_wait_for_one_request() -> None:
    far, begun, go = Far(20), threading.Event(), threading.Event()
    fetch = far.ranges

    def slowly(*arguments: object) -> list[bytes]:
        begun.set()
        assert go.wait(10)
        return fetch(*arguments)

    far.ranges = slowly
    blocks, read, asked = Blocks(far, {"file": 20}, 1 << 20), [], Counting()
    blocks._lock = asked
    threads = [threading.Thread(target=lambda: read.append(bytes(blocks.read("file", 2, 8, 10)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    while asked.count < 3:  # all of them have looked
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert read == [far.data[2:8]] * 3 and far.asked == [(0, 10)] and blocks.held == 10


def test_other_features_at_an_address_have_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/far"
    for sha, value in (("a", 1), ("b", 2)):
        with featstore.writer(tmp_path / sha, spec(sha=sha * 64)) as out:
            out.add(utterance("u"), np.full((2, 8), value))
        push(tmp_path / sha, url)
        assert featstore.open(url).frames("mimi", "u")[0, 0] == value
        shutil.rmtree(tmp_path / "far")
    assert len(list((tmp_path / "cache" / "whowhen").iterdir())) == 2
