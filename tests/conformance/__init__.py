"""The conformance suite: random SQL programs, carried through all of capture and log, replayed by key.

`programs` makes them, `world` runs one and judges it, `python -m tests.conformance` runs many.
"""
