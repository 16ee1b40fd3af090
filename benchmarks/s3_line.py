"""A line to a bucket: what S3 clients ask of one that they only read, with a latency and a bandwidth."""

from __future__ import annotations

import json
import os
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


def serve(root: Path, latency: float, rate: float) -> tuple[int, int]:
    """A process with the server; its id and port."""
    line = Line(root, latency, rate)
    pid = os.fork()
    if not pid:
        line.serve_forever()
    line.socket.close()
    return pid, line.server_port


class Line(ThreadingHTTPServer):
    """Buckets are folders of `root`. /-counted gives the bytes sent and the requests since it was last asked for."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, root: Path, latency: float, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.latency, self.rate = root, latency, rate
        self.free, self.lock, self.sent, self.asked = 0.0, threading.Lock(), 0, 0

    def wait(self, count: int) -> None:
        """Until the line has room for so many bytes more."""
        with self.lock:
            self.sent += count
            self.free = max(self.free, time.monotonic()) + count / self.rate
            until = self.free
        time.sleep(max(until - time.monotonic(), 0))


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Line

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/-counted":
            body = json.dumps([self.server.sent, self.server.asked]).encode()
            self.server.sent = self.server.asked = 0
            return self.answer(200, body, len(body))
        self.server.asked += 1
        time.sleep(self.server.latency)
        file = self.server.root / asked.path.lstrip("/")
        if "list-type" in asked.query:
            body = self.listing(file, parse_qs(asked.query).get("prefix", [""])[0])
            return self.answer(200, body, len(body))
        if not file.is_file():
            return self.answer(404, b"", 0)
        size = file.stat().st_size
        start, stop, status = 0, size, 200
        if found := self.headers.get("Range"):
            first, last = found.removeprefix("bytes=").split("-")
            start, stop, status = int(first), min(int(last or size) + 1, size), 206
        with open(file, "rb") as data:
            data.seek(start)
            self.answer(status, data, stop - start, f"bytes {start}-{stop - 1}/{size}")
        return None

    def listing(self, bucket: Path, prefix: str) -> bytes:
        files = sorted(p for p in bucket.rglob("*") if p.is_file() and str(p.relative_to(bucket)).startswith(prefix))
        rows = "".join(
            f"<Contents><Key>{p.relative_to(bucket)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"e"</ETag><Size>{p.stat().st_size}</Size></Contents>'
            for p in files
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()

    def answer(self, status: int, body: Any, count: int, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(count))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        while count > 0:
            piece = body.read(min(count, 64 << 10))
            self.server.wait(len(piece))
            self.wfile.write(piece)
            count -= len(piece)

    def log_message(self, *_: object) -> None:
        """Nothing."""
