"""The turnstile: one at a time, in order, and nobody who leaves takes the turn along."""

import asyncio

from edge.api.turnstile import Turnstile


def test_one_at_a_time_and_in_order() -> None:
    async def main() -> list[int]:
        turnstile, order, inside = Turnstile(), [], 0

        async def work(number: int) -> None:
            nonlocal inside
            for _ in range(3):
                async with turnstile:
                    inside += 1
                    assert inside == 1
                    order.append(number)
                    await asyncio.sleep(0.001)
                    inside -= 1
                await asyncio.sleep(0)

        await asyncio.gather(*(work(n) for n in range(5)))
        return order

    order = asyncio.run(main())
    assert sorted(order[:5]) == [0, 1, 2, 3, 4] and len(order) == 15


def test_who_leaves_while_waiting_or_in_a_turn_holds_nobody_up() -> None:
    async def main() -> int:
        turnstile, done = Turnstile(), 0

        async def work() -> None:
            nonlocal done
            async with turnstile:
                await asyncio.sleep(0.002)
                done += 1

        tasks = [asyncio.create_task(work()) for _ in range(40)]
        await asyncio.sleep(0.003)
        for task in tasks[::2]:
            task.cancel()
            await asyncio.sleep(0.001)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        await asyncio.wait_for(work(), 60)
        return done

    assert asyncio.run(main()) >= 20


def test_after_a_turn_the_loop_is_free_for_a_while() -> None:
    async def main() -> bool:
        turnstile, second = Turnstile(), asyncio.Event()

        async def work(last: bool) -> None:
            async with turnstile:
                if last:
                    second.set()
                await asyncio.sleep(0.004)

        tasks = [asyncio.create_task(work(False)), asyncio.create_task(work(True))]
        await tasks[0]
        await asyncio.sleep(0)
        free = not second.is_set()
        await tasks[1]
        return free

    assert asyncio.run(main())
