"""Connecting to Ray: a cluster by address, or one of our own on this machine."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from bitfront.errors import SpecError, UnreachableCluster, UnstartedCluster

# A socket's path has at most 107 bytes; Ray's are up to so many longer than its folder.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
_SHORT_FOLDER = "/tmp"  # only as the parent of a folder of our own

_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # nothing in the current folder is a module
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
        UnstartedCluster: Ray does not start on this machine.
        SpecError: The folder for temporary files is unusable, or too long for Ray's sockets.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # That a token guards a cluster of our own is not news to the person.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    init = partial(
        ray.init, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False
    )
    with _empty_folder() as empty, _ray_folder(address) as folder:
        # Ray puts the current folder before all others on the workers' path.
        with chdir(empty):
            if address is None:
                try:
                    init(
                        address="local",
                        num_cpus=workers,
                        include_dashboard=False,
                        _temp_dir=folder,
                    )
                except Exception as error:
                    # Among them a plain Exception, where a busy machine takes over 30 seconds.
                    raise UnstartedCluster(str(error).partition("\n")[0]) from error
            else:
                try:
                    # Workers elsewhere do not inherit this process's environment.
                    init(address=address, runtime_env={"env_vars": _ENVIRONMENT})
                except ConnectionError as error:
                    reason = str(error).partition("\n")[0]
                    raise UnreachableCluster(address, reason) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _empty_folder(parent: str | None = None) -> Iterator[str]:
    """A folder of our own, in the one for temporary files or in `parent`."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="bitfront-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise SpecError(
            f"the folder for temporary files cannot be written ({error.strerror}): "
            "set TMPDIR to one that can"
        ) from error
    with folder as name:
        yield name


def _ray_folder(address: str | None) -> AbstractContextManager[str | None]:
    """Where a cluster of our own keeps its sockets; None leaves that to Ray.

    Raises:
        SpecError: RAY_TMPDIR is too long.
    """
    if address is not None:
        return nullcontext(None)
    named = os.environ.get("RAY_TMPDIR")
    if named is not None:
        if len(os.fsencode(Path(named).absolute())) > _LONGEST_FOLDER:
            raise SpecError(
                f"RAY_TMPDIR is {named}, too long for the paths of Ray's sockets: "
                f"set it to a folder of at most {_LONGEST_FOLDER} bytes"
            )
        return nullcontext(None)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        return _empty_folder(_SHORT_FOLDER)
    return nullcontext(None)


def node_resources() -> list[Mapping[str, float]]:
    """What each living node of the connected cluster has in all, by the name of the resource."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray's are untyped
    return [node["Resources"] for node in nodes if node["Alive"]]
