"""The seconds of an evaluation's stages, and what came from caches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of stages on a device, and notes hits of caches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._hits: dict[str, float] = {}

    def reset(self) -> None:
        """Forgets everything."""
        self._seconds, self._hits = {}, {}

    def hit(self, name: str, count: float) -> None:
        """Notes how often something came from a cache."""
        self._hits[name] = float(count)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Counts the time within it towards a stage; the device has finished at its end."""
        self._finish()
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._finish()
            elapsed_s = time.perf_counter() - started_s
            self._seconds[stage] = self._seconds.get(stage, 0.0) + elapsed_s

    def figures(self) -> dict[str, float]:
        """`seconds.STAGE` and `hits.NAME` of everything since the last reset."""
        seconds = {f"seconds.{stage}": seconds for stage, seconds in self._seconds.items()}
        return seconds | {f"hits.{name}": count for name, count in self._hits.items()}

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
