"""What a latency needs of a runtime: the time of a layer's product, and of a whole stage."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from bitfront.layers import Layer
from bitfront.objective import Objective
from bitfront.precision import Precision


@dataclass(frozen=True, slots=True)
class Timed:
    """What has a time: one way to multiply a layer's inputs, or a whole stage.

    Attributes:
        format: What decides its time beside the shapes: the kernel, and how its weight lies there.
        measure: The seconds that it takes for a batch of a size.
    """

    format: str
    measure: Callable[[int], float]


class Runtime(Protocol):
    """One class for each runtime."""

    @property
    def is_target(self) -> bool:
        """Whether artefacts are built for it."""

    @property
    def name(self) -> str:
        """The runtime with its version."""

    @property
    def device(self) -> str:
        """What it runs on: the processor and its threads, or a GPU."""

    def products(self, layer: Layer, precision: Precision) -> Sequence[Timed]:
        """What multiplies a layer in a precision, with its bias.

        Raises:
            UnavailableDevice: No kernel does.
        """

    def own_product(self, layer: Layer) -> Timed:
        """What multiplies the layer in the full-precision model."""

    def whole(self, figure: Objective) -> Timed:
        """What has the time of that name, in full precision and from end to end."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How a time is measured: the median of `repeats` runs after `warmup` runs.

    Attributes:
        repeats: Runs that count, at least.
        warmup: Runs before, which do not count.
        least_s: Runs go on until they have taken so many seconds: one of a few microseconds is
            then not judged by a moment in which the processor did something else.
        clock: Gives seconds.
    """

    repeats: int = 10
    warmup: int = 3
    least_s: float = 0.05
    clock: Callable[[], float] = time.perf_counter

    def median(
        self, run: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> float:
        """The median seconds of a run, which ends when its work is done.

        Args:
            run: What is timed.
            before: What comes before each run, and is not timed.
        """
        times: list[float] = []
        while len(times) < self.warmup + self.repeats or sum(times) < self.least_s:
            before()
            start = self.clock()
            run()
            times.append(self.clock() - start)
        return statistics.median(times[self.warmup :])


STANDARD: Final = Timing()
ONE_THREAD: Final = Timing(clock=time.thread_time)
"""For what runs in the thread that calls it: other work on the machine then counts little."""


def describe_cpu(share: str) -> str:
    """The name that times on a processor are filed under, such as for `2 threads` of it."""
    return f"{_processor()}, {share}"


@cache
def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
