"""Protocols: what Sockets are used for."""

from __future__ import annotations

from .bus import Bus
from .pair import Pair
from .pipeline import Pull, Push
from .pubsub import Pub, Publication, Sub, Subscriber
from .reqrep import Rep, Req, Request
from .survey import Respondent, Surveyor
from .switch import Switch, switch

__all__ = [
    "Bus", "Pair", "Pub", "Publication", "Pull", "Push", "Rep", "Req", "Request", "Respondent", "Sub", "Subscriber",
    "Surveyor", "Switch", "switch",
]  # fmt: skip
