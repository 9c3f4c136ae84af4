"""A picture of another site, fetched without becoming a way into this one's network.

The name is resolved once. If any of its addresses is not of the public internet, nothing is dialled; else one of those
that were checked is, so that a name which means something else a moment later cannot lead elsewhere. Each redirect is
checked in the same way. Nothing that the client sent goes along: no cookie, no key.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Timer
from urllib.parse import SplitResult, urljoin, urlsplit

from qsplit.errors import ImageTooLarge, UnreadableImage, UsageError

__all__ = ["Remote", "is_public"]

_REDIRECTS = 3
_SECONDS = 15.0  # of a picture, redirects included
_WAIT = 5.0  # seconds without a byte
_PORTS = {"http": 80, "https": 443}
_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
# What carries an IPv4 address inside: it is the one that packets end at.
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def is_public(text: str) -> bool:
    """Whether an address is of the public internet, and so is any that it carries.

    >>> [is_public(one) for one in ("9.9.9.9", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")]
    [True, False, False, False, False]
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return all(map(_is_outside, _carried(address)))


def _is_outside(address: IpAddress) -> bool:
    is_site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or is_site_local)


def _carried(address: IpAddress) -> Iterator[IpAddress]:
    inner: list[ipaddress.IPv4Address] = []
    if isinstance(address, ipaddress.IPv6Address):
        inner = [one for one in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if one]
        if any(address in network for network in _NAT64) or int(address) < 2**32:  # or IPv4-compatible
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    yield from inner
    if not (isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in _NAT64[0])):
        yield address


class Remote:
    """Fetches pictures of at most ``max_bytes``; ``allows`` says of an address, and ``resolve`` tells those of a name.

    Raises `UsageError` for what may not be fetched, `UnreadableImage` for what cannot be, and `ImageTooLarge`.
    """

    def __init__(
        self, max_bytes: int, *, allows: Callable[[str], bool] = is_public, resolve: Resolve | None = None
    ) -> None:
        self._max_bytes, self._allows, self._resolve = max_bytes, allows, resolve or _addresses

    def fetch(self, url: str) -> bytes:
        """The bytes at a URL, behind at most three redirects."""
        deadline = time.monotonic() + _SECONDS
        for _ in range(_REDIRECTS + 1):
            parts = _checked(url)
            try:
                with self._opened(parts, deadline) as response:
                    if response.status not in _MOVED:
                        return self._read(response, deadline)
                    url = urljoin(url, response.getheader("Location", ""))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise UnreadableImage(f"{_named(parts)} sent no picture.", fix="Send it as a data URL.") from error
        raise UnreadableImage(f"{_named(parts)} leads elsewhere more than {_REDIRECTS} times.")

    @contextmanager
    def _opened(self, parts: SplitResult, deadline: float) -> Iterator[http.client.HTTPResponse]:
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        connection = _Dialled(host, port, self._checked_address(host, port), parts.scheme == "https")
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        with closing(connection), _ended_at(deadline, connection):
            connection.request("GET", path, headers={"Accept": "image/*"})
            yield connection.getresponse()

    def _checked_address(self, host: str, port: int) -> str:
        addresses = self._resolve(host, port)
        if not addresses or not all(map(self._allows, addresses)):
            raise UsageError(f"{host} is not on the public internet.", fix="Send the picture as a data URL.")
        return addresses[0]

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        if response.status != http.client.OK:
            raise UnreadableImage(f"The picture's site answered {response.status}.", fix="Send it as a data URL.")
        data = bytearray()
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > self._max_bytes:
                raise ImageTooLarge(f"The picture has more than {self._max_bytes:,} bytes.", fix="Send a smaller copy.")
        if time.monotonic() > deadline:
            raise UnreadableImage(f"The picture took more than {_SECONDS:.0f} seconds.", fix="Send it as a data URL.")
        if response.length:  # bytes that were announced and did not come
            raise http.client.IncompleteRead(bytes(data), response.length)
        return bytes(data)


class _Dialled(http.client.HTTPConnection):
    """A connection to an address that was checked; the name is only what the other side reads."""

    def __init__(self, host: str, port: int, address: str, is_secure: bool) -> None:
        super().__init__(host, port, timeout=_WAIT)
        self._address, self._is_secure = address, is_secure

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def hang_up(self) -> None:
        """From another thread."""
        with suppress(OSError, AttributeError):  # it may never have been connected
            self.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _ended_at(deadline: float, connection: _Dialled) -> Iterator[None]:
    """Whoever sends a byte now and then is not waited for."""
    timer = Timer(max(0.0, deadline - time.monotonic()), connection.hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username is not None or not url.isascii() or not url.isprintable():
        raise UsageError("The picture's address is no plain http or https URL.", fix="Send it as a data URL.")
    return parts


def _named(parts: SplitResult) -> str:
    return str(parts.hostname)


def _addresses(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
