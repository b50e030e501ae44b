"""The Socket and all protocols for ``asyncio``: the same names, and what may wait is a coroutine."""

from __future__ import annotations

from ..exports import publish
from .bus import Bus
from .pair import Pair
from .pipeline import Pull, Push
from .pubsub import Pub, Sub
from .reqrep import Rep, Req, Request
from .socket import Socket
from .stream import ByteStream, Stream
from .survey import Respondent, Surveyor
from .switch import Switch, switch

__all__ = [
    "Bus", "ByteStream", "Pair", "Pub", "Pull", "Push", "Rep", "Req", "Request", "Respondent", "Socket", "Stream",
    "Sub", "Surveyor", "Switch", "switch",
]  # fmt: skip

publish(__name__, __all__, globals())
