"""What clients may name: everything else is refused before it is touched."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayal.errors import RayalError, UriError
from rayal.service import uris
from rayal.service.uris import Prefixes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "a.png").write_bytes(b"inside")
    (tmp_path / "closed" / "secret").write_bytes(b"outside")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed" / "secret")
    (tmp_path / "open" / "fine").symlink_to(tmp_path / "open" / "a.png")
    (tmp_path / "opened").mkdir()
    (tmp_path / "opened" / "b").write_bytes(b"a sibling whose name begins alike")
    os.mkfifo(tmp_path / "open" / "pipe")
    return tmp_path


def test_a_file_below_a_prefix_is_read(folder: Path) -> None:
    allowed = Prefixes(paths=(str(folder / "open"),))
    assert allowed.read(str(folder / "open" / "a.png"), 6) == b"inside"
    assert allowed.read(str(folder / "open" / "fine"), 6) == b"inside"
    assert allowed.check(str(folder / "open")) == (folder / "open").resolve()
    with pytest.raises(UriError, match="more than 5 bytes"):
        allowed.read(str(folder / "open" / "a.png"), 5)


@pytest.mark.parametrize(
    "path",
    [
        "closed/secret",
        "open/../closed/secret",
        "open/link",
        "open/missing",
        "opened/b",
        "open",
        "open/pipe",
    ],
)
def test_what_is_not_below_a_prefix_is_refused(path: str, folder: Path) -> None:
    allowed = Prefixes(paths=(str(folder / "open"),))
    with pytest.raises(UriError):
        allowed.read(f"{folder}/{path}", 1000)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "a.png",
        "../../etc/passwd",
        "/etc/passwd",
        "/etc/pass\0wd",
        "/etc/\ud800",
        "file:///etc/passwd",
        "ftp://files.example/a",
        "data:image/png;base64,AAAA",
        "http://",
        "http://[::1",
        "http://a:99999/",
        "http://other.example/data/x",
        "http://user:hunter2@files.example/data/x",
        "http://files.example:81/data/x",
        "https://files.example/data/x",
        "http://files.example/database",
        "http://files.example/data/../x",
        "http://files.example/data/%2e%2e/x",
        "http://files.example/data/%252e%252e/x",
        "http://files.example/data/%5c..%5cx",
        "http://files.example/data/\r\nHost: x",
        "http://files.example.evil.example/data/x",
    ],
)
def test_what_is_no_allowed_path_or_url_is_refused_unresolved(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("was resolved"))
    with pytest.raises(UriError) as refused:
        Prefixes(urls=("http://files.example/data",)).read(uri, 1000)
    assert isinstance(refused.value, RayalError) and isinstance(refused.value, ValueError)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_addresses_that_are_not_public_are_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolved(*given: Any, **named: Any) -> list[Any]:
        return [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", (address, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    with pytest.raises(UriError, match="loopback, link-local or private"):
        Prefixes(urls=("http://files.example/",)).read("http://files.example/x", 10)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert uris._public(ipaddress.ip_address(address))


def test_the_metadata_address_itself_is_refused() -> None:
    with pytest.raises(UriError, match="not below"):
        Prefixes().read("http://169.254.169.254/latest/meta-data", 100)
    with pytest.raises(UriError, match="loopback, link-local"):
        Prefixes(urls=("http://169.254.169.254/",)).read("http://169.254.169.254/x", 100)


class Files(BaseHTTPRequestHandler):
    """Serves what the tests fetch."""

    def do_GET(self) -> None:
        if self.path == "/data/moved":
            self.send_response(302)
            self.send_header("Location", "/data/image")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/data/packed":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/data/large":
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        if self.path == "/data/slow":
            for _ in range(100):
                time.sleep(0.05)
                try:
                    self.wfile.write(b".")
                except OSError:
                    return
        self.wfile.write(b"x" * 50 if self.path == "/data/image?token=hunter2" else b"x" * 500)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_url_below_a_prefix_is_fetched_within_its_limits() -> None:
    with serving() as base:
        allowed = Prefixes(urls=(f"{base}/data",), private=True, seconds=0.5)
        assert allowed.read(f"{base}/data/image?token=hunter2", 50) == b"x" * 50
        for path, why in {
            "image": "more than 100 bytes",
            "large": "more than 100 bytes",
            "moved": "status 302; redirects are not followed",
            "packed": "compressed",
        }.items():
            with pytest.raises(UriError, match=why):
                allowed.read(f"{base}/data/{path}", 100)
        with pytest.raises(UriError) as refused:
            allowed.read(f"{base}/data/image?token=hunter2", 40)
        assert "hunter2" not in str(refused.value)
        started = time.monotonic()
        with pytest.raises(UriError, match="it took too long"):
            allowed.read(f"{base}/data/slow", 1000)
        assert time.monotonic() - started < 2.0
        with pytest.raises(UriError, match="loopback"):
            Prefixes(urls=(f"{base}/data",)).read(f"{base}/data/image", 100)


def test_a_server_that_is_not_there_is_an_error_of_the_uri() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        base = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UriError, match="cannot be fetched"):
            Prefixes(urls=(base,), private=True).read(f"{base}/x", 100)
