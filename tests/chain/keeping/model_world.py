"""Models that count what happens to them, and threads that use them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from minerua.chain.keeping.residency import ModelResidency
from minerua.values import Setup, Skill

SETUP = Setup()


class World:
    """Models that count what happens to them."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.closed: list[str] = []
        self.loaded_bytes = self.peak_bytes = 0
        self.lock = threading.Lock()

    def skill(self, name: str, nbytes: int, *, declared: bool = True, seconds: float = 0.0, faults: int = 0) -> Skill:
        left = [faults]

        def load(setup: Setup) -> Callable[..., Any]:
            with self.lock:
                self.loads.append(name)
            time.sleep(seconds)
            if left[0]:
                left[0] -= 1
                raise OSError(f"{name} is broken")
            return _Model(self, name, nbytes)

        return Skill(name, load=load, loaded_bytes=nbytes if declared else None)


class _Model:
    def __init__(self, world: World, name: str, nbytes: int) -> None:
        self.world, self.name, self.nbytes, self.is_open = world, name, nbytes, True
        with world.lock:
            world.loaded_bytes += nbytes
            world.peak_bytes = max(world.peak_bytes, world.loaded_bytes)

    def __call__(self) -> str:
        assert self.is_open
        return self.name

    def close(self) -> None:
        self.is_open = False
        with self.world.lock:
            self.world.closed.append(self.name)
            self.world.loaded_bytes -= self.nbytes


def use(residency: ModelResidency, skill: Skill, setup: Setup = SETUP) -> Any:
    with residency.use(skill, setup) as call:
        return call()


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(functions)

    def call(n: int) -> None:
        try:
            results[n] = functions[n]()
        except Exception as error:  # noqa: BLE001 - told to the test
            results[n] = error

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.001)
