"""Every bound and interval of the hub, with its reason. Frozen, and checked in one go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from cdchub.errors import UsageError


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    # Rows per read of the outbox: large enough that the fixed cost of a read (some 20 µs) vanishes,
    # small enough that the log's commit and the hand-over stay in the milliseconds.
    batch_rows: int = 1_000
    # As JSON; SQLite takes no value of 1 GB, and on its way a change is in memory some five times. One
    # that is larger is told as a break of its table, instead of holding up all others.
    change_bytes_max: int = 256 * 2**20
    # The -wal is written before its commit becomes visible, by microseconds or, where the writer
    # fsyncs (synchronous FULL), by however long the disk takes. So a wake that saw nothing looks
    # again: a few times at once, then at doubling intervals up to a bound that no fsync passes.
    recheck_gaps_s: tuple[float, ...] = (0.000_2,) * 10 + tuple(0.001 * 2**n for n in range(9))
    # Looks without a hint, so long after the last commit.
    settle_s: tuple[float, ...] = (0.02, 0.1, 0.3, 0.8)
    # Without a hint: a look at least this often. With inotify only as a safety net.
    safety_look_s: float = 2.0
    poll_s: float = 0.05
    # A prune is a commit of ours in the source and can fail a user's deferred transaction. So it
    # waits for a pause, until a hard bound.
    prune_soft_rows: int = 10_000
    prune_soft_age_s: float = 300.0
    prune_quiet_s: float = 0.5
    prune_hard_rows: int = 250_000
    prune_hard_bytes: int = 256 * 2**20
    prune_hard_age_s: float = 1_800.0
    # Rows a transaction. In a pause short ones, which hold the write lock for some 10 ms; when
    # forced, under a writer that never pauses, few long ones: each commit can fail a transaction.
    prune_slice_rows: int = 5_000
    prune_forced_slice_rows: int = 25_000
    # Batches on their way to the loop; then the tailer waits. The outbox is the buffer.
    handover_batches: int = 8
    retry_s: float = 1.0
    # Whether every table's triggers stand and its rows are as many as were captured; tables with more
    # rows than can be counted in some 10 ms are not counted.
    audit_every_s: float = 300.0
    audit_rows_max: int = 1_000_000
    # The audit may have to replay the log from its oldest base. Nothing is delivered meanwhile, so
    # after this long the table counts as one that can't be compared.
    compare_s_max: float = 5.0
    # A hub that follows another one looks so often whether it can take over, and waits so long for
    # an owner that is just beginning.
    owner_look_s: float = 0.5
    owner_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class LogConfig:
    retain_age_s: float = 7 * 86_400.0
    retain_changes: int = 10_000_000
    retain_bytes: int = 4 * 2**30
    retain_every_s: float = 10.0
    # The recent tail in memory: what a reader that lags a little is served from.
    ring_bytes_max: int = 16 * 2**20
    reader_threads: int = 2


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """Base snapshots in the log. Without them nothing can be replayed or verified."""

    enabled: bool = True
    # None: when the changes since the last one outweigh it.
    interval_s: float | None = None
    # Below this a base is not worth its fsync, however small the last one was.
    bytes_min: int = 2**20
    # Reading holds the source's WAL back; at 100,000 rows a second this is 60 million rows.
    timeout_s: float = 600.0
    retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class StreamConfig:
    heartbeat_s: float = 15.0
    # EventSource's waiting time before it reconnects: 5 s ± 50 %, so that a crowd spreads out.
    retry_ms: int = 5_000
    retry_spread: float = 0.5
    # Beyond this a live subscriber is lagging: it gets nothing new until its transport has drained.
    buffer_bytes_max: int = 256 * 2**10
    # A transport that takes nothing for so long is given up; its client knows its position.
    stall_s: float = 60.0
    page_rows: int = 1_000
    page_bytes: int = 256 * 2**10
    # Recent changes as frames, kept for a crowd that comes back at once; see `fanout.framed`.
    framed_bytes_max: int = 16 * 2**20
    # A reader with conflate=1 holds so much of the backlog while it is boiled down.
    conflate_bytes_max: int = 4 * 2**20
    # Pages that those who catch up write in one iteration of the loop, some 0.1 ms each: what comes
    # between two live rounds.
    turns_per_iteration: int = 32
    # What one round carries; a subscriber that keeps up must never be full after one.
    round_bytes_max: int = 64 * 2**10
    # Writes in one iteration of the loop, some 5 µs each.
    slice_writes: int = 1_000
    # The longest pause between rounds while the loop is nearly full.
    tick_s: float = 0.005
    # A position that this node has not reached yet waits so long before it counts as ahead.
    ahead_wait_s: float = 10.0
    # `since=beginning` waits so long for the base snapshot of a history that has just begun.
    base_wait_s: float = 30.0
    # Some 2 KiB each; where the process may have fewer descriptors, those are the bound.
    subscribers_max: int = 50_000
    # Open streams end spread over this window at shutdown.
    drain_s: float = 3.0


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    # Reading a table at disk speed for longer than this holds the source's WAL back for too long.
    timeout_s: float = 120.0
    # A spool that is so young serves further requests for the same rows; the log fills the rest.
    share_s: float = 2.0
    # While a crowd still reads one and the log has gone on by no more than this, it serves on.
    share_s_max: float = 30.0
    share_changes_max: int = 1_000
    chunk_bytes: int = 64 * 2**10
    # A spool that is so small stays in memory while it is shared: a crowd is served without a thread.
    held_bytes_max: int = 2**20
    concurrent: int = 2
    # How often a snapshot is tried again when the source was being replaced under it.
    attempts: int = 20


@dataclass(frozen=True, slots=True)
class HttpConfig:
    host: str = "127.0.0.1"
    port: int = 8787
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    anonymous: bool = False
    limit_default: int = 1_000
    limit_max: int = 10_000
    wait_s_max: float = 60.0
    long_polls_max: int = 1_000
    # The head of a request, cookies and all (nginx takes 32 KiB), and how long it may take to come.
    head_bytes_max: int = 64 * 2**10
    head_s_max: float = 15.0
    body_bytes_max: int = 256 * 2**10
    body_s_max: float = 10.0
    write_s_max: float = 10.0


@dataclass(frozen=True, slots=True)
class WebSocketConfig:
    # A message of a client: the longest chat line with room around it. Beyond it, close code 1009.
    message_bytes_max: int = 128 * 2**10
    # Subscriptions and joined rooms of one connection.
    subscriptions_max: int = 100
    # Chat messages and broadcasts of one connection: so many a second, and so many at once.
    messages_per_s: float = 20.0
    messages_burst: int = 100
    # Any requests of one connection; whoever ignores that it was told so is closed (1008).
    requests_per_s: float = 100.0
    requests_burst: int = 500
    # A page that is loaded again is back within a second or two; a phone that changes its network
    # within ten.
    grace_s: float = 10.0
    # How long a peer has to answer a close frame.
    close_s: float = 2.0
    # Storing a message, or finding older ones, takes milliseconds.
    work_s_max: float = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    log: LogConfig = field(default_factory=LogConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)

    def checked(self) -> Config:
        """This configuration. Raises `UsageError` that names the first value out of range."""
        for part in (getattr(self, each.name) for each in fields(self)):
            for each in fields(part):
                value = getattr(part, each.name)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                minimum = 0 if each.name in _MAY_BE_ZERO else 0.000_001
                if not (math.isfinite(value) and value >= minimum):
                    raise UsageError(
                        f"{each.name} must be {'0 or ' if minimum == 0 else ''}more than 0, and finite"
                    )
        if self.http.port > 65_535:
            raise UsageError(f"port {self.http.port} does not exist: 0 to 65535")
        if self.stream.retry_spread >= 1:
            raise UsageError("retry_spread must be below 1")
        return self


_MAY_BE_ZERO = {"port", "drain_s", "share_s", "retry_spread"}
