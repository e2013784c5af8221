"""Sharing a cluster among the studies that run on it: each gets a fair share of its workers."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

_SILENT_S = 15.0  # a driver that was not heard of for so long is gone
_BEAT_S = 2.0
_NAME, _NAMESPACE = "bitfront-drivers", "bitfront"


def fair_shares(wanted: Mapping[str, int], slots: int) -> dict[str, int]:
    """Max-min fair shares: nobody gets more than it wants, what is left goes to the others.

    Args:
        wanted: Driver to the workers that it could use.
        slots: Workers that fit on the cluster.

    Returns:
        Driver to workers, at least 1 each; the first by name get what does not divide.
    """
    shares = dict.fromkeys(wanted, 0)
    left = slots
    while left > 0:
        hungry = sorted(name for name in wanted if shares[name] < wanted[name])
        if not hungry:
            break
        for name in hungry[:left]:
            shares[name] += 1
        left -= min(left, len(hungry))
    return {name: max(1, share) for name, share in shares.items()}


class _Drivers:
    """Knows which drivers use the cluster; one of them owns this actor, any can replace it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def beat(self, driver: str, wanted: int) -> dict[str, int]:
        """Notes that a driver lives; all that do, with what they want."""
        now_s = time.monotonic()
        self._seen[driver] = (wanted, now_s)
        return {
            name: count for name, (count, at_s) in self._seen.items() if now_s - at_s < _SILENT_S
        }

    def leave(self, driver: str) -> None:
        """Forgets a driver that ends."""
        self._seen.pop(driver, None)


class FairShare:
    """One driver's view of the others.

    Args:
        driver: Its name, unique on the cluster.
        wanted: The workers that it could use.
        slots: How many of its workers fit on the cluster now.
    """

    def __init__(self, driver: str, wanted: int, slots: Callable[[], int]) -> None:
        self._driver = driver
        self._wanted = wanted
        self._slots = slots
        self._beaten_s = -_BEAT_S
        self._limit = wanted
        # Without a handle that lives, Ray ends the actor.
        self._actor: Any = None
        self._answer: Any = None
        self.drivers = 1

    def renew(self) -> int:
        """Lets the others hear that it is alive; how many workers it may use now.

        That is all that it wants while it is alone. Never waits: an answer counts as soon as it
        is there.
        """
        try:
            self._hear()
            if self._answer is None and time.monotonic() - self._beaten_s >= _BEAT_S:
                self._beat()
        except (RayError, ValueError) as error:
            logger.info("the other studies on the cluster are asked anew: %s", error)
            self._actor = self._answer = None
        return self._limit

    def _beat(self) -> None:
        self._beaten_s = time.monotonic()
        if self._actor is None:
            self._actor = _drivers()
        self._answer = self._actor.beat.remote(self._driver, self._wanted)

    def _hear(self) -> None:
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return
        others: dict[str, int] = ray.get(self._answer)
        self._answer = None
        self.drivers = len(others)
        alone = self.drivers == 1
        self._limit = self._wanted if alone else fair_shares(others, self._slots())[self._driver]

    def leave(self) -> None:
        """Lets the others have what this driver used."""
        if self._actor is not None:
            self._actor.leave.remote(self._driver)


def _drivers() -> Any:  # noqa: ANN401 - Ray's handles are untyped
    options = {"name": _NAME, "namespace": _NAMESPACE, "get_if_exists": True, "num_cpus": 0}
    return ray.remote(_Drivers).options(**options).remote()
