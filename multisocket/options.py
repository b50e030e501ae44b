"""Options: their names, defaults and what values they take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BadOption


@dataclass(frozen=True)
class Option:
    """One option.

    :param default: its value when nothing is said.
    :param check: gives the value as it is used, or raises ValueError with what is expected instead.
    :param parse: makes a value of an address's text.
    """

    default: Any
    check: Callable[[Any], Any]
    parse: Callable[[str], Any]


def flag(default: bool) -> Option:
    """True or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return value

    return Option(default, check, _parse_flag)


def whole(default: int | None, least: int, most: int, unit: str, *, optional: bool = False) -> Option:
    """A whole number of some unit; None too where ``optional``."""

    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number of {unit} from {least} to {most}" + (" or None" if optional else ""))
        return value

    return Option(default, check, _or_none(int))


def seconds(default: float | None, *, optional: bool = False) -> Option:
    """A time of 0 seconds or more; None (for ever) too where ``optional``."""

    def check(value: Any) -> float | None:
        if value is None and optional:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value) or value < 0:
            raise ValueError("seconds, 0 or more" + (" or None" if optional else ""))
        return float(value)

    return Option(default, check, _or_none(float))


def text(default: str | None) -> Option:
    """A string, or None."""

    def check(value: Any) -> str | None:
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        if given is None or isinstance(given, str):
            return given
        raise ValueError("a string or a path")

    return Option(default, check, str)


def choice(*values: str) -> Option:
    """One of some words; the first is the default."""

    def check(value: Any) -> str:
        if value not in values:
            raise ValueError("one of " + ", ".join(values))
        return str(value)

    return Option(values[0], check, str)


def function() -> Option:
    """Something that can be called, or None. Not in an address."""

    def check(value: Any) -> Any:
        if value is not None and not callable(value):
            raise ValueError("something that can be called, or None")
        return value

    return Option(None, check, str)


def _parse_flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("true or false")
    return known[text.lower()]


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else parse(text)


_MOST = 0x7FFFFFFF

SOCKET: Mapping[str, Option] = {
    "no_recv": flag(False),
    "no_send": flag(False),
    "recv_queue_size": whole(65536, 1, _MOST, "messages"),
    "recv_queue_bytes": whole(4 << 20, 4096, 8 << 30, "bytes"),
    "max_recv_content_length": whole(0xFFFFFFFF, 1, 0xFFFFFFFF, "bytes"),
    "arena_limit": whole(8 << 30, 0, 1 << 40, "bytes"),
    "send_queue_size": whole(64, 1, _MOST, "messages"),
    "send_ttl": whole(16, 1, 255, "nodes"),
    "send_best_effort": flag(False),
    "send_timeout": seconds(None, optional=True),
    "recv_timeout": seconds(None, optional=True),
    "send_stop_timeout": seconds(5.0),
    "pipe_limit": whole(None, 1, 65535, "pipes", optional=True),
}

DIALER: Mapping[str, Option] = {
    "reconnect": flag(True),
    "min_reconnect_time": seconds(0.1),
    "max_reconnect_time": seconds(8.0),
    "dial_async": flag(False),
}

LISTENER: Mapping[str, Option] = {}

# Of pipes that carry bytes: raw ones, and those to other machines.
RAW: Mapping[str, Option] = {
    "raw": flag(False),
    "raw_recv_buffer_size": whole(4096, 1, 1 << 20, "bytes"),
    "close_on_eof": flag(True),
    "send_queue_bytes": whole(1 << 20, 4096, 8 << 30, "bytes"),
}
WIRE: Mapping[str, Option] = {**RAW, "max_recv_content_length": whole(256 << 20, 1, 0xFFFFFFFF, "bytes")}


def resolve(known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values: those given, checked, and the defaults of the others.

    :raises BadOption: an unknown name, a wrong type, a value out of range.
    """
    values = {name: option.default for name, option in known.items()}
    for name, value in given.items():
        values[name] = _checked(known, name, value)
    return values


def from_address(known: Mapping[str, Option], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The options that stand in an address, from text to values.

    :raises BadOption: an unknown name, or text that is no such value.
    """
    values = {}
    for name, text in pairs:
        try:
            value = _find(known, name).parse(text)
        except ValueError:
            value = text
        values[name] = _checked(known, name, value)
    return values


def _find(known: Mapping[str, Option], name: str) -> Option:
    if name not in known:
        raise BadOption(f"there is no option {name!r} here; there are: {', '.join(sorted(known)) or 'none'}")
    return known[name]


def _checked(known: Mapping[str, Option], name: str, value: Any) -> Any:
    try:
        return _find(known, name).check(value)
    except BadOption:
        raise
    except ValueError as error:
        raise BadOption(f"option {name} takes {error}, not {value!r}") from None
