"""A picture's address leads to the public internet or nowhere."""

from __future__ import annotations

import http.server
import socket
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from qsplit.errors import ImageTooLarge, UnreadableImage, UsageError
from qsplit.server.openai import remote_images
from qsplit.server.openai.remote_images import Remote, is_public

INSIDE = (
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "64:ff9b::7f00:1", "64:ff9b::169.254.169.254", "64:ff9b:1::a00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1",
    "fec0::1", "ff02::1", "2001:db8::1", "100::1", "2001:0:7f00:1::80ff:fffe",
)  # fmt: skip
OUTSIDE = ("9.9.9.9", "1.1.1.1", "2620:fe::fe", "64:ff9b::9.9.9.9", "::ffff:9.9.9.9")
# Whatever a C library takes for an address, and names that mean this machine.
HOSTS = (
    "127.1", "127.0.1", "0", "0x7f000001", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1", "localhost",
    "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "169.254.169.254",
    "2852039166", "[fe80::1]",
)  # fmt: skip


class Site(http.server.BaseHTTPRequestHandler):
    """Redirects, and sends what the path says."""

    def do_GET(self) -> None:
        _, kind, rest = self.path.split("/", 2)
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "size":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * int(rest))
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x")
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of a site on this machine, which stands for one of the public internet where a test allows it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def resolving(names: dict[str, list[str]], asked: list[str] | None = None) -> Callable[[str, int], list[str]]:
    def resolve(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        return names[host]

    return resolve


def friendly(asked: list[str] | None = None, **names: list[str]) -> Remote:
    """One to whom 127.0.0.1 is a public address, and every other is what it is."""
    known = {"friend.example": ["127.0.0.1"], **names}
    return Remote(1000, allows=lambda one: one == "127.0.0.1" or is_public(one), resolve=resolving(known, asked))


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_of_inside_is_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(UsageError, match="not on the public internet"):
        Remote(1000, resolve=resolving({"a.example": ["9.9.9.9", address]})).fetch("https://a.example/")


@pytest.mark.parametrize("address", OUTSIDE)
def test_others_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", HOSTS)
def test_no_way_of_writing_it_leads_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> socket.socket:
        raise AssertionError("dialled")

    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises((UsageError, UnreadableImage)):
        Remote(1000).fetch(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.example/", "gopher://a.example/", "//a.example/", "http:///a", "a", "",
        "http://user@a.example/", "http://user:key@a.example/", "http://a.example:0/", "http://a.example:99999/",
        "http://a.example/\r\nHost: b", "http://a.exämple/", "http://[::1/",
    ],
)  # fmt: skip
def test_only_plain_addresses_are_taken(url: str) -> None:
    with pytest.raises(UsageError, match="no plain http"):
        Remote(1000, resolve=resolving({})).fetch(url)


def test_what_is_there_is_fetched(site: int) -> None:
    assert friendly().fetch(f"http://friend.example:{site}/size/1000") == b"x" * 1000
    moved = f"http://friend.example:{site}/to/http://friend.example:{site}/size/7"
    assert friendly().fetch(moved) == b"x" * 7
    assert friendly().fetch(f"http://friend.example:{site}/to//size/5") == b"x" * 5


@pytest.mark.parametrize("inside", ["169.254.169.254", "10.0.0.1", "::1"])
def test_a_redirect_leads_nowhere_else(site: int, inside: str) -> None:
    remote = friendly(**{"inside.example": [inside]})
    with pytest.raises(UsageError, match="not on the public internet"):
        remote.fetch(f"http://friend.example:{site}/to/http://inside.example/")
    with pytest.raises(UsageError, match="no plain http"):
        remote.fetch(f"http://friend.example:{site}/to/file:///etc/passwd")


def test_a_name_is_resolved_once(site: int) -> None:
    """What was checked is dialled: a name that means something else by then leads nowhere else."""
    asked: list[str] = []
    names = iter([["127.0.0.1"], ["10.0.0.1"]])

    def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return next(names)

    remote = Remote(1000, allows=lambda one: one == "127.0.0.1", resolve=resolve)
    assert remote.fetch(f"http://rebinds.example:{site}/size/3") == b"xxx"
    assert asked == ["rebinds.example"]


def test_nobody_is_followed_round_and_round(site: int) -> None:
    url = f"http://friend.example:{site}/size/1"
    for _ in range(3):
        url = f"http://friend.example:{site}/to/{url}"
    assert friendly().fetch(url) == b"x"
    with pytest.raises(UnreadableImage, match="elsewhere more than 3 times"):
        friendly().fetch(f"http://friend.example:{site}/to/{url}")


def test_what_is_too_much_or_nothing_is_refused(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageTooLarge, match="more than 1,000 bytes"):
        friendly().fetch(f"http://friend.example:{site}/size/1001")
    with pytest.raises(UnreadableImage, match="answered 404"):
        friendly().fetch(f"http://friend.example:{site}/none/")
    with pytest.raises(UnreadableImage, match="sent no picture"):
        friendly().fetch(f"http://friend.example:{site}/cut/")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(remote_images, "_SECONDS", 0.2)
        with pytest.raises(UnreadableImage):
            friendly().fetch(f"http://friend.example:{mute.getsockname()[1]}/")
