"""`pull` asked for whole files in ranges, so a web server that ignores them (``python -m http.server``) was no use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import StoreError
from featstore.remote import client
from featstore.remote.transfer import pull, push
from tests.featstore.store.test_store import fill

pytest.importorskip("obstore")


class Quiet(SimpleHTTPRequestHandler):
    """Python's own server; `asked` gathers the ranges it was asked for, `cut` breaks so many answers off."""

    asked: list[str]
    cut: list[int]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        super().do_GET()

    def copyfile(self, source: object, outputfile: object) -> None:
        if self.cut and "/c/" in self.path:
            self.cut.pop()
            outputfile.write(source.read(100))
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fill(tmp_path / "near", count=12, part_bytes=1200)
    push(tmp_path / "near", f"file://{tmp_path}/www")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Quiet, "asked", [], raising=False)
    monkeypatch.setattr(Quiet, "cut", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def same(one: Path, other: Path) -> bool:
    a, b = featstore.open(one, verify=True), featstore.open(other, verify=True)
    return a.ids == b.ids and all(np.array_equal(a.frames("mimi", id), b.frames("mimi", id)) for id in a.ids)


def test_a_pull_asks_for_no_ranges(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PIECE_BYTES", 64)
    pull(url, tmp_path / "copy")
    assert Quiet.asked and set(Quiet.asked) == {""}
    assert same(tmp_path / "near", tmp_path / "copy")


def test_a_line_that_breaks_does_not_make_it_need_them(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRIES", 0)
    monkeypatch.setattr(Quiet, "cut", [1, 2, 3])
    pull(url, tmp_path / "copy")
    assert Quiet.cut == []
    assert same(tmp_path / "near", tmp_path / "copy")


def test_crops_at_a_distance_say_what_they_need(url: str, tmp_path: Path) -> None:
    far, near = featstore.open(url), featstore.open(tmp_path / "near")
    np.testing.assert_array_equal(far.pooled("mimi"), near.pooled("mimi"))
    assert far.utterances.equals(near.utterances)
    with pytest.raises(StoreError, match=f"ignores Range requests.*copy the store: featstore pull {url} STORE") as said:
        far.frames("mimi", far.ids[0], 0, 1)
    assert "\n" not in str(said.value)
