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
    # Tune keeps nothing that we would read: no snapshots, no result files.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A cancelled trial's process gets this long to end by itself.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The older of Tune's two displays is the one that can be silenced.
    "RAY_AIR_NEW_OUTPUT": "0",
    # The driver handles signals itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
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

    # Tune complains of the result files that it was told not to write.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # That a token guards a cluster of our own is no news to the person.
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
