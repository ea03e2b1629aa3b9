"""Changes on their way to the loop: a bounded number of batches, so that a loop which is behind makes
its source wait. The outbox and the log are the buffer, not memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from cdchub.config import CaptureConfig
from cdchub.log.protocol import Appended, Delivery


class Handover:
    """`give` is called by the thread that reads, `accepted` by the loop."""

    def __init__(
        self, deliver: Callable[[Delivery], None], stop: threading.Event, config: CaptureConfig
    ) -> None:
        """`stop` is looked at now and then while the loop is behind."""
        self._deliver = deliver
        self._stop = stop
        self._look_s = config.safety_look_s
        # Tokens in a queue that is written in C: taken and given back once a commit.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(config.handover_batches):
            self._free.put(None)

    def give(self, batch: Appended) -> None:
        """Delivers when there is room; not at all when it is to stop: the log has it."""
        while True:
            try:
                self._free.get(timeout=self._look_s)
            except Empty:
                if self._stop.is_set():
                    return
            else:
                self._deliver(batch)
                return

    def accepted(self) -> None:
        """The loop has worked one batch off."""
        self._free.put(None)
