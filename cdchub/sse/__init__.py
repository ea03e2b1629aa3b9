"""Server-sent events: the framing, its parser, and the streaming endpoint."""

from cdchub.sse.events import SseFramer
from cdchub.sse.parser import Event, EventParser
from cdchub.sse.stream import StreamEndpoint

__all__ = ["Event", "EventParser", "SseFramer", "StreamEndpoint"]
