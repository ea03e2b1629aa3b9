"""The WebSocket endpoint `/cdc/ws`, with rooms and presence (INTERFACE §5), will live here.

It will frame the same feeds as `cdchub.sse` and know neither capture nor that package.
"""
