"""The bound on how often, under a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdchub.ws.rate import Rate


def test_a_burst_passes_and_then_so_many_a_second() -> None:
    rate = Rate(per_s=20, burst=100)
    assert [rate.take(5.0) for _ in range(101)] == [True] * 100 + [False]
    assert not rate.take(5.04)
    assert rate.take(5.0625)
    assert not rate.take(5.0625)
    assert [rate.take(6.0625) for _ in range(21)] == [True] * 20 + [False]


def test_what_was_not_used_is_kept_up_to_a_burst() -> None:
    rate = Rate(per_s=20, burst=100)
    assert rate.take(0.0)
    assert [rate.take(1e6) for _ in range(101)] == [True] * 100 + [False]


def test_a_refused_one_costs_nothing() -> None:
    rate = Rate(per_s=1, burst=1)
    assert rate.take(0.0)
    assert [rate.take(0.5) for _ in range(1_000)] == [False] * 1_000
    assert rate.take(1.0)


@given(st.floats(0.1, 100), st.integers(1, 200), st.lists(st.floats(0, 3), min_size=1, max_size=300))
def test_no_window_passes_more_than_its_share(per_s: float, burst: int, pauses: list[float]) -> None:
    rate, now_s = Rate(per_s=per_s, burst=burst), 100.0
    passed: list[float] = []
    for pause in pauses:
        now_s += pause
        if rate.take(now_s):
            passed.append(now_s)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - start) * per_s + 1e-6
