"""Capture: from a commit in the source to an entry in the log. Nothing downstream is imported.

A change's way through these modules, and what stands beside it:

- *what is captured*: `schema`, `choice` (options) → `table` (shape) → `rows`, `stage`, `triggers` (its
  SQL) → `standing` (what is there) → `install` (what has to change);
- *a commit*: `wake` → `tailer` (the thread) → `source` → `outbox` (reading) → `commits`, `transactions`
  (where it ended) → `decode`, `encode` (JSON) → the log → `handover` (to the loop);
- *when the schema or the rows changed unseen*: `audit`, `mending` → `difference`, `telling`;
- *beginnings*: `history` (epochs) → `base_reader`, `base_keeper`; `scan`, `snapshot` (all rows);
- *the files*: `driver`, `connection` (the only opener of the source), `writer`, `upkeep`, `progress`.
"""
