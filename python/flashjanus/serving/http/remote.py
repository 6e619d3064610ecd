"""Fetches remote images: only from allowed hosts, and only from addresses that have been checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import h11

from flashjanus import __version__
from flashjanus.errors import InputError
from flashjanus.serving.http.settings import Settings

PORTS = {"https": 443, "http": 80}
REDIRECTS = 3
"""The most redirects to follow, each to a URL that would have been allowed in the first place."""
READ = 65_536
EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "2002::/16", "2001::/32", "64:ff9b:1::/48")))
"""IPv6 prefixes whose addresses may lead to any IPv4 address."""


@dataclass(frozen=True)
class Place:
    """The target of a URL. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str


async def fetch(url: str, settings: Settings) -> bytes:
    """Fetch a URL. Raises InputError if it is not allowed, does not answer in time, or is too large."""
    try:
        return await asyncio.wait_for(_followed(url, settings), settings.remote_seconds)
    except asyncio.TimeoutError as error:
        raise InputError(
            f"{url:.80} did not answer within {settings.remote_seconds:g} s; send the image as a data: URL"
        ) from error


async def _followed(url: str, settings: Settings) -> bytes:
    for _ in range(REDIRECTS + 1):
        found = await _once(place_of(url, settings), settings)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise InputError(f"expected an image after at most {REDIRECTS} redirects, got another to {url:.80}")


def place_of(url: str, settings: Settings) -> Place:
    """Parse a URL. Raises InputError if fetching it is not allowed."""
    if not settings.remote_hosts:
        raise InputError(f"this server fetches no images; expected a data: URL, got {url:.80}")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
        host = host.encode("idna").decode() if not host.isascii() else host
    except ValueError as error:  # UnicodeError is a ValueError
        raise InputError(f"expected a URL, got {url:.80}: {error}") from error
    if scheme not in PORTS or (scheme == "http" and not settings.remote_http):
        raise InputError(f"expected an https: URL, got {url:.80}")
    if parts.username is not None or parts.password is not None:
        raise InputError("expected a URL without a user and a password")
    named = host if port in (None, PORTS[scheme]) else f"{host}:{port}"
    if not any(_allows(one.lower(), named) for one in settings.remote_hosts):
        raise InputError(f"this server fetches no images from {named:.80}; expected {_list(settings.remote_hosts)}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise InputError(f"expected a percent-encoded URL, got {url:.80}")
    return Place(scheme, host, port or PORTS[scheme], target)


def _allows(allowed: str, host: str) -> bool:
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed


def _list(hosts: tuple[str, ...]) -> str:
    return f"one of {', '.join(hosts)}"


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


def is_public(address: str) -> bool:
    """Whether an address is public and belongs to a single host."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in EMBEDDING):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _once(place: Place, settings: Settings) -> bytes | str:
    """The bytes of a place, or the URL to which it redirects."""
    try:
        addresses = await resolve(place.host, place.port)
    except OSError as error:
        raise InputError(f"cannot find {place.host:.80}: {error.strerror or error}") from error
    if not settings.remote_private and not all(map(is_public, addresses)):
        raise InputError(f"this server fetches no images from {place.host:.80}, whose address is not public")
    context = ssl.create_default_context() if place.scheme == "https" else None
    try:
        # connect to the checked address, not to what the name resolves to now
        reader, writer = await asyncio.open_connection(
            addresses[0], place.port, ssl=context, server_hostname=place.host if context else None, limit=READ
        )
        try:
            return await _asked(place, settings, reader, writer)
        finally:
            writer.close()
    except (OSError, h11.ProtocolError) as error:
        raise InputError(f"cannot fetch an image from {place.host:.80}: {error}") from error


async def _asked(
    place: Place, settings: Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes | str:
    talk = h11.Connection(h11.CLIENT)
    bare = f"[{place.host}]" if ":" in place.host else place.host
    host = bare if place.port == PORTS[place.scheme] else f"{bare}:{place.port}"
    headers = [
        ("Host", host),
        ("User-Agent", f"flashjanus/{__version__}"),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    asked = h11.Request(method="GET", target=place.target, headers=headers)
    writer.write((talk.send(asked) or b"") + (talk.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    data = bytearray()
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            talk.receive_data(await reader.read(READ))
        elif isinstance(event, h11.Response):
            target = dict(event.headers).get(b"location")
            if event.status_code in (301, 302, 303, 307, 308) and target is not None:
                return target.decode("latin-1")
            if event.status_code != 200:
                raise InputError(f"expected an image from {place.host:.80}, got the status {event.status_code}")
        elif isinstance(event, h11.Data):
            data += event.data
            if len(data) > settings.image_bytes:
                raise InputError(f"expected an image of at most {settings.image_bytes} bytes; scale it down")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(data)
        elif isinstance(event, h11.ConnectionClosed):
            raise InputError(f"expected an image from {place.host:.80}, got a closed connection")
