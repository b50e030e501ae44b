"""Addresses: ``scheme://location?option=value&…#dial`` or ``#listen``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from .errors import BadAddress

DIAL = "dial"
LISTEN = "listen"

_FORM = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<location>[^?#]*)(\?(?P<query>[^#]*))?(#(?P<direction>.*))?", re.S
)


@dataclass(frozen=True)
class Address:
    """The parts of an address. ``location`` is what the transport makes of it: a name, a path, host and port."""

    scheme: str
    location: str
    options: tuple[tuple[str, str], ...] = ()
    direction: str | None = None

    def __str__(self) -> str:
        """Without options and direction: what identifies it."""
        return f"{self.scheme}://{self.location}"


def parse(text: str) -> Address:
    """Reads an address.

    :raises BadAddress: not of the form ``scheme://location``, or a direction that is neither dial nor listen.
    """
    if not isinstance(text, str):
        raise BadAddress(f"an address is a string like 'ipc://jobs.sock', not {text!r}")
    match = _FORM.fullmatch(text)
    if match is None:
        raise BadAddress(f"{text!r} is no address: write scheme://location, for example ipc://jobs.sock")
    if not match["location"]:
        raise BadAddress(f"{text!r} says no location: write something behind {match['scheme']}://")
    direction = match["direction"]
    if direction not in (None, DIAL, LISTEN):
        raise BadAddress(f"{text!r} ends with #{direction}: it must be #dial or #listen, or nothing")
    return Address(match["scheme"], match["location"], _parse_query(text, match["query"]), direction)


def _parse_query(text: str, query: str | None) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in (query or "").split("&") if pair]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise BadAddress(f"{text!r}: options are written name=value, with & in between")
    return tuple((unquote(name), unquote(value)) for name, _, value in pairs)
