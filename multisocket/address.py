"""Addresses: ``scheme://location?option=value&…#dial`` or ``#listen``."""

from __future__ import annotations

import re

from .errors import BadAddress

DIAL = "dial"
LISTEN = "listen"

_FORM = r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<location>[^?#]*)(\?(?P<query>[^#]*))?(#(?P<direction>.*))?"


class Address:
    """The parts of an address.

    :param scheme: which transport.
    :param location: what the transport makes of it: a name, a path, host and port.
    :param options: those of its query, as texts.
    :param direction: ``DIAL``, ``LISTEN`` or None.
    """

    # No dataclass, here and in other modules that are always imported: that takes longer than all of them.
    __slots__ = ("direction", "location", "options", "scheme")

    def __init__(
        self, scheme: str, location: str, options: tuple[tuple[str, str], ...] = (), direction: str | None = None
    ) -> None:
        self.scheme = scheme
        self.location = location
        self.options = options
        self.direction = direction

    @property
    def _parts(self) -> tuple[object, ...]:
        return self.scheme, self.location, self.options, self.direction

    def __eq__(self, other: object) -> bool:
        return self._parts == other._parts if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return f"Address{self._parts!r}"

    def __str__(self) -> str:
        """Without options and direction: what identifies it."""
        return f"{self.scheme}://{self.location}"


def parse(text: str) -> Address:
    """Reads an address.

    :raises BadAddress: not of the form ``scheme://location``, or a direction that is neither dial nor listen.
    """
    if not isinstance(text, str):
        raise BadAddress(f"an address is a string like 'ipc://jobs.sock', not {text!r}")
    match = re.fullmatch(_FORM, text, re.S)
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
    if not pairs:
        return ()
    from urllib.parse import unquote  # takes long to import, and few addresses need it

    return tuple((unquote(name), unquote(value)) for name, _, value in pairs)
