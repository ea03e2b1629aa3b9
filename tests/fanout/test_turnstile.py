"""Turns come in order, so many an iteration, whatever becomes of those who take them."""

from __future__ import annotations

import asyncio

from cdchub.fanout import Turnstile


async def test_turns_are_spread_over_iterations_in_order() -> None:
    turnstile, order, iterations = Turnstile(2), list[int](), set[int]()
    iteration = 0

    async def ask(number: int) -> None:
        await turnstile.turn()
        order.append(number)
        iterations.add(iteration)

    tasks = [asyncio.create_task(ask(number)) for number in range(10)]
    while not all(task.done() for task in tasks):
        iteration += 1
        await asyncio.sleep(0)
    assert order == list(range(10))
    assert len(iterations) >= 5


async def test_an_error_in_one_turn_is_not_the_end_of_the_others() -> None:
    turnstile, errors = Turnstile(1), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    assert turnstile.take()

    def fails() -> None:
        raise RuntimeError("a peer's doing")

    turnstile.wait(fails)
    async with asyncio.timeout(10):
        await turnstile.turn()
    assert len(errors) == 1


async def test_whoever_gives_up_takes_no_turn() -> None:
    turnstile = Turnstile(1)
    assert turnstile.take()
    gone = asyncio.create_task(turnstile.turn())
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(10):
        await turnstile.turn()
