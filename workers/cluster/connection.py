"""Connecting to Ray: a cluster by address, or one of our own on this machine."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from bitfront.errors import UnreachableCluster

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def connected(workers: int, address: str | None = None) -> Iterator[None]:
    """Connects this process to Ray for the length of a `with` block.

    Args:
        workers: CPU slots of a cluster started here: one trial worker each.
        address: A running cluster; None starts one on this machine, which ends with the
            block.

    Raises:
        UnreachableCluster: There is no cluster at the address.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # That a token guards a cluster of our own is not news to the person.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    init = partial(
        ray.init, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False
    )
    if address is None:
        init(address="local", num_cpus=workers, include_dashboard=False)
    else:
        try:
            # Workers elsewhere do not inherit this process's environment.
            init(address=address, runtime_env={"env_vars": _ENVIRONMENT})
        except ConnectionError as error:
            raise UnreachableCluster(address, str(error).partition("\n")[0]) from error
    try:
        yield
    finally:
        ray.shutdown()


def node_resources() -> list[Mapping[str, float]]:
    """What each living node of the connected cluster has in all, by the name of the resource."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray's are untyped
    return [node["Resources"] for node in nodes if node["Alive"]]
