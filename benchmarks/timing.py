"""Clocks, and summaries of many measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Spent(NamedTuple):
    """Seconds by the wall clock, and processor seconds of all threads of the process."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Spent) -> Spent:
        return Spent(self.wall - start.wall, self.cpu - start.cpu)

    def plus(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


NOTHING = Spent(0.0, 0.0)


class Clock:
    """A sum of the time spent in wrapped functions. One that another calls is not counted twice."""

    def __init__(self) -> None:
        self._spent = NOTHING
        self._running = False

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running, start = True, Spent.now()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent, self._running = self._spent.plus(Spent.now().since(start)), False

        return timed

    def take(self) -> Spent:
        """Return the time spent since the last call."""
        spent, self._spent = self._spent, NOTHING
        return spent


class StepTimer:
    """A timer of a step, from `start` to `stop`: by events on a GPU, by the clocks on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def start(self) -> None:
        if self._cuda:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._start = Spent.now()

    def stop(self) -> Spent:
        if not self._cuda:
            return Spent.now().since(self._start)
        self._events[1].record()
        torch.cuda.synchronize()
        return Spent(self._events[0].elapsed_time(self._events[1]) / 1000, Spent.now().since(self._start).cpu)


class Summary(NamedTuple):
    """The median, the least and the most of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values))


def seconds_of(functions: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median wall seconds of each function, taken in turns; two turns warm up."""
    timer, seconds = StepTimer(device), {name: [] for name in functions}
    calls = 10 if device.type == "cuda" else 1  # on a GPU enough calls that the first launch does not count
    for turn in range(repeats + 2):
        for name, function in functions.items():
            timer.start()
            for _ in range(calls):
                function()
            took = timer.stop().wall / calls
            if turn > 1:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}
