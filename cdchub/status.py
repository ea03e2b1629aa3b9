"""What a hub says of itself, as `/cdc/status` shows it: names in the style of the wire, times in
milliseconds. Counts of events only grow, so whoever asks twice knows a rate."""

from __future__ import annotations

from collections import Counter

from cdchub.capture.connection import SourcePaths
from cdchub.capturing import Capturing
from cdchub.fanout import Core
from cdchub.spools import Spools
from cdchub.version import __version__
from cdchub.ws import Rooms

# Rooms come and go by the thousand; the largest are told of.
_ROOMS_SHOWN = 100


def status_of(
    core: Core,
    capturing: Capturing,
    spools: Spools,
    rooms: Rooms,
    paths: SourcePaths,
    *,
    failing: str | None,
    uptime_s: float,
) -> dict[str, object]:
    present, counters = core.present, capturing.counters
    log_bytes = sum(
        path.stat().st_size
        for suffix in ("", "-wal")
        if (path := paths.log.with_name(paths.log.name + suffix)).exists()
    )
    return {
        "version": __version__,
        "database": str(paths.database),
        "role": "owner" if capturing.is_owner else "follower",
        "uptimeMs": int(uptime_s * 1000),
        "epoch": present.head.epoch,
        "firstLsn": present.oldest.lsn + 1,
        "headLsn": present.head.lsn,
        "tables": [table.name for table in present.catalog.tables],
        "subscribers": _subscribers(core),
        "connections": core.connection_count,
        "rooms": rooms.counts(most=_ROOMS_SHOWN),
        "capture": {
            "state": "failing" if failing else "running",
            "error": failing,
            "wake": "inotify" if capturing.uses_inotify else "poll",
            "changes": counters.changes,
            "batches": counters.batches,
            "lagLsn": max(0, present.view.source_head_lsn - present.head.lsn),
            "lastCommitMs": counters.last_commit_ms,
            "busy": counters.busy,
            "faults": counters.faults,
            "epochsStarted": counters.epochs_started,
            "breaks": counters.breaks,
            "differences": counters.differences,
            "auditsSuspicious": counters.audits_suspicious,
            "auditsFailed": counters.audits_failed,
            "commitsExact": counters.commits_exact,
            "commitsMerged": counters.commits_merged,
            "changesTooLarge": counters.changes_too_large,
            "prunesQuiet": counters.prunes_quiet,
            "prunesForced": counters.prunes_forced,
            "rowsPruned": counters.rows_pruned,
            "warnings": list(counters.warnings),
        },
        "log": {
            "bytes": log_bytes,
            "ringBytes": present.ring_bytes,
            "retentionSlices": counters.retained,
            "snapshotsTaken": spools.taken,
            "baseLsn": present.view.log.present.base_lsn,
            "basesTaken": counters.bases_taken,
            "basesFailed": counters.bases_failed,
        },
    }


def _subscribers(core: Core) -> dict[str, object]:
    subscribers = core.subscribers()
    by_table: Counter[str] = Counter()
    by_room: Counter[str] = Counter()
    lag_lsn_max = 0
    for subscriber in subscribers:
        selection = subscriber.feed.selection
        by_table.update(selection.tables or ("*",))
        if selection.room is not None:
            by_room[selection.room] += 1
        lag_lsn_max = max(lag_lsn_max, core.lag_lsn(subscriber))
    return {
        "total": len(subscribers),
        "byTransport": dict(Counter(sub.transport for sub in subscribers)),
        "byTable": dict(by_table),
        "byRoom": dict(by_room.most_common(_ROOMS_SHOWN)),
        "lagLsnMax": lag_lsn_max,
        "byState": dict(Counter(sub.state.name.lower() for sub in subscribers)),
        "outcomes": dict(core.outcomes),
    }
