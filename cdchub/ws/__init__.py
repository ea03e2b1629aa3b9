"""The WebSocket endpoint `/cdc/ws`, with rooms and presence (INTERFACE §5).

A client's way through these modules: `endpoint` takes the handshake; `direct` reads and writes
frames, or `carried` messages on another server; `session` answers what the client says, which `grammar`
has as types; `frames` is what the hub says. `rooms` knows who is present, `messages` what was said,
`shared` every session.
"""

from cdchub.ws.endpoint import USER, WebSocketEndpoint, refuse_unauthorized
from cdchub.ws.messages import SCHEMA, TABLE, Messages
from cdchub.ws.rooms import Rooms

__all__ = ["SCHEMA", "TABLE", "USER", "Messages", "Rooms", "WebSocketEndpoint", "refuse_unauthorized"]
