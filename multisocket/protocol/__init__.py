"""Protocols: what Sockets are used for."""

from __future__ import annotations

from ..exports import publish
from .bus import Bus
from .forward import Forwarding, forward_in, forward_out
from .pair import Pair
from .pipeline import Pull, Push
from .pubsub import Pub, Publication, Sub, Subscriber
from .reqrep import Rep, Req, Request
from .stream import ByteStream, Stream
from .survey import Respondent, Surveyor
from .switch import Switch, switch

__all__ = [
    "Bus", "ByteStream", "Forwarding", "Pair", "Pub", "Publication", "Pull", "Push", "Rep", "Req", "Request",
    "Respondent", "Stream", "Sub", "Subscriber", "Surveyor", "Switch", "forward_in", "forward_out", "switch",
]  # fmt: skip

publish(__name__, __all__, globals())
