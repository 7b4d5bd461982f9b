"""Paths and URLs that clients name: read only below configured prefixes, within limits.

A path is followed through its symbolic links and must still lie below a prefix. Of a URL the
address is resolved once, checked, and that very address is connected to, so that a name which
changes its answer gains nothing; no redirect is followed and no proxy is used.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from rayal.errors import UriError

_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Prefixes:
    """The paths and URLs that clients may name.

    Args:
        paths: absolute folders, below which files may be read.
        urls: ``http://`` or ``https://`` URLs, below which content may be fetched.
        private: whether such a URL may lead to loopback, link-local or private addresses.
        seconds: seconds for the whole of one fetch.
    """

    paths: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    private: bool = False
    seconds: float = 10.0

    def check(self, path: str) -> Path:
        """Return a path without symbolic links, which lies below a prefix.

        Raises:
            UriError: it does not, it does not exist, or it is no absolute path.
        """
        _check_text(path)
        location = Path(path)
        if not location.is_absolute() or ".." in location.parts:
            raise UriError(f"path {path!r} must be absolute and without '..'")
        try:
            real = location.resolve(strict=True)
        except (OSError, RuntimeError):
            real = None
        if real is None or not any(real.is_relative_to(root) for root in self._roots()):
            raise UriError(f"path {path!r} is not a file or folder below {self._allowed()}")
        return real

    def read(self, uri: str, limit: int) -> bytes:
        """Return the content behind an absolute path, or behind an ``http(s)`` URL.

        Args:
            uri: the URI that a client sent.
            limit: most bytes.

        Raises:
            UriError: it is not allowed, cannot be read, or is too large or too slow.
        """
        _check_text(uri)
        if uri.startswith("/"):
            return self._file(uri, limit)
        return self._fetch(self._url(uri), limit)

    # -- files ------------------------------------------------------------------------------------

    def _roots(self) -> list[Path]:
        return [Path(p).resolve() for p in self.paths]

    def _allowed(self) -> str:
        allowed = [*self.paths, *self.urls]
        return f"the allowed prefixes ({', '.join(allowed) or 'none: push the data itself'})"

    def _file(self, path: str, limit: int) -> bytes:
        real = self.check(path)
        try:  # no terminal or pipe may hold the reader up
            handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UriError(f"path {path!r} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode) or not self._still_below(handle):
            os.close(handle)
            raise UriError(f"path {path!r} is not a file below {self._allowed()}")
        with open(handle, "rb") as file:
            data = file.read(limit + 1)
        return _bounded(data, limit, path)

    def _still_below(self, handle: int) -> bool:
        """Return whether an open file lies below a prefix, whatever its name leads to by now."""
        link = Path(f"/proc/self/fd/{handle}")
        if not link.exists():  # not Linux: the check of the name has to do
            return True
        return any(Path(os.readlink(link)).is_relative_to(root) for root in self._roots())

    # -- URLs -------------------------------------------------------------------------------------

    def _url(self, uri: str) -> SplitResult:
        url = _split(uri)
        if not any(_below(url, _split(prefix)) for prefix in self.urls):
            raise UriError(f"URL {_shown(url)} is not below {self._allowed()}")
        return url

    def _fetch(self, url: SplitResult, limit: int) -> bytes:
        address = self._address(url)
        connection = _Connection(url, address, self.seconds)
        watch = threading.Timer(self.seconds, connection.abort)
        watch.daemon = True
        watch.start()
        try:
            return self._content(connection, url, limit)
        except UriError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = "it took too long" if connection.aborted else f"{type(error).__name__}"
            raise UriError(
                f"{_shown(url)} cannot be fetched within {self.seconds:g} s: {why}"
            ) from None
        finally:
            watch.cancel()
            connection.close()

    def _content(self, connection: _Connection, url: SplitResult, limit: int) -> bytes:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", target, headers={"Accept-Encoding": "identity"})
        with connection.getresponse() as answer:
            return self._body(connection, answer, url, limit)

    def _body(
        self,
        connection: _Connection,
        answer: http.client.HTTPResponse,
        url: SplitResult,
        limit: int,
    ) -> bytes:
        if answer.status != 200:
            raise _refusal(url, f"status {answer.status}; redirects are not followed")
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise _refusal(url, "the content is compressed, which was not asked for")
        if int(answer.getheader("Content-Length") or 0) > limit:
            raise _refusal(url, f"more than {limit} bytes")
        data = bytearray()
        while len(data) <= limit and (chunk := answer.read(_CHUNK)):
            data += chunk
        if connection.aborted:
            raise TimeoutError
        return _bounded(bytes(data), limit, _shown(url))

    def _address(self, url: SplitResult) -> str:
        """Return the address to connect to: all that the name stands for must be allowed."""
        try:
            records = socket.getaddrinfo(url.hostname, _port(url), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UriError(f"host {url.hostname!r} has no address") from None
        addresses = [str(row[4][0]) for row in records]
        for address in addresses:
            if not self.private and not _public(ipaddress.ip_address(address.partition("%")[0])):
                raise UriError(
                    f"host {url.hostname!r} is at a loopback, link-local or private address, from "
                    "which nothing is fetched"
                )
        return addresses[0]


class _Connection(http.client.HTTPConnection):
    """A connection to a given address, whatever its host's name stands for by now."""

    def __init__(self, url: SplitResult, address: str, seconds: float) -> None:
        super().__init__(str(url.hostname), _port(url), timeout=seconds)
        self._secure = url.scheme == "https"
        self._to = address
        self._opened: socket.socket | None = None  # http.client forgets a socket that will close
        self.aborted = False

    def connect(self) -> None:
        """Open the socket, with the host's certificate checked where it is to be secure."""
        self.sock = socket.create_connection((self._to, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        self._opened = self.sock

    def close(self) -> None:
        """Close the socket, also where it was given away to a response."""
        super().close()
        if self._opened is not None:
            self._opened.close()

    def abort(self) -> None:
        """End a transfer that goes on for too long, from another thread."""
        self.aborted = True
        if self._opened is not None:
            with suppress(OSError):  # it is closed already
                self._opened.shutdown(socket.SHUT_RDWR)


def _check_text(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise UriError("a path or URL must be UTF-8 text") from None
    if not uri or not uri.isprintable() or "\\" in uri:
        raise UriError(f"{uri!r} is no path or URL: it is empty or has characters it cannot have")


def _split(uri: str) -> SplitResult:
    try:
        url = urlsplit(uri)
        port = url.port
    except ValueError as error:
        raise UriError(f"{uri!r} is not a URL: {error}") from None
    if url.scheme not in _PORTS or not url.hostname or port == 0:
        raise UriError(
            f"{uri[:200]!r} is neither an absolute path nor an http(s) URL; other schemes are "
            "refused"
        )
    if url.username is not None or url.password is not None or " " in uri:
        raise UriError("a URL must have no user, password or blanks")
    if ".." in _decoded(url.path).split("/"):
        raise UriError(f"{_shown(url)} must be without '..'")
    return url


def _decoded(path: str) -> str:
    """Return a path with its escapes resolved, however often they were escaped."""
    while (plain := unquote(path)) != path:
        path = plain
    if "\\" in path or "\0" in path:
        raise UriError("a URL's path must have no backslash and no NUL")
    return path


def _below(url: SplitResult, prefix: SplitResult) -> bool:
    here = (url.scheme, str(url.hostname).rstrip("."), _port(url))
    there = (prefix.scheme, str(prefix.hostname).rstrip("."), _port(prefix))
    folder = prefix.path.rstrip("/")
    return here == there and (url.path == folder or url.path.startswith(f"{folder}/"))


def _port(url: SplitResult) -> int:
    return url.port or _PORTS[url.scheme]


def _public(address: _Address) -> bool:
    """Return whether an address is of the public internet, also where it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = [address.ipv4_mapped, address.sixtofour, *(teredo or ())]
        if not all(i is None or _public(i) for i in inner):
            return False
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return _public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def _shown(url: SplitResult) -> str:
    """Return a URL without its query, which may hold a secret."""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _refusal(url: SplitResult, why: str) -> UriError:
    return UriError(f"{_shown(url)}: {why}")


def _bounded(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise UriError(f"{what} has more than {limit} bytes")
    return data
