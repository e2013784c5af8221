"""A Ray cluster of real processes on this machine, as `ray start` makes it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LONGEST_START_S = 120


@dataclass(frozen=True, slots=True)
class Head:
    """A head node that also takes trials.

    Attributes:
        dashboard: Where jobs are submitted to.
        address: Where drivers connect to.
        process: `ray start --block`; SIGTERM to it is a node's notice to end.
    """

    dashboard: str
    address: str
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def head(environment: Mapping[str, str], *, num_cpus: int = 2) -> Iterator[Head]:
    """Starts a head with an environment of its own; in the end all its processes are killed."""
    port, dashboard_port = free_port(), free_port()
    options = {
        "port": port,
        "dashboard-port": dashboard_port,
        "dashboard-host": "127.0.0.1",
        "ray-client-server-port": free_port(),
    }
    with _started(["--head"], options, environment, num_cpus) as process:
        started = Head(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}", process)
        _await(started)
        yield started


@contextmanager
def node(
    cluster: Head, environment: Mapping[str, str], *, num_cpus: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Adds a node; SIGTERM to its process is the notice that it has to go."""
    options = {"address": cluster.address}
    with _started([], options, environment, num_cpus) as process:
        yield process


@contextmanager
def _started(
    flags: list[str],
    options: Mapping[str, object],
    environment: Mapping[str, str],
    num_cpus: int,
) -> Iterator[subprocess.Popen[bytes]]:
    common = {
        "node-ip-address": "127.0.0.1",
        "dashboard-agent-listen-port": free_port(),
        "num-cpus": num_cpus,
        "object-store-memory": 100_000_000,
    }
    inherited = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    inherited.pop("PYTHONPATH", None)
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    with tempfile.TemporaryDirectory(prefix="bf-ray-", ignore_cleanup_errors=True) as folder:
        if flags:
            flags = [*flags, f"--temp-dir={folder}"]
        arguments = [f"--{name}={value}" for name, value in {**common, **options}.items()]
        process = subprocess.Popen(
            [*_ray(), "start", "--block", *flags, *arguments],
            env={**inherited, **environment},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process, folder)


def _ray() -> list[str]:
    return [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def _await(started: Head) -> None:
    deadline = time.monotonic() + LONGEST_START_S
    while True:
        try:
            with urllib.request.urlopen(f"{started.dashboard}/api/version", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert started.process.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "the dashboard does not answer"
            time.sleep(0.2)


def kill(process: subprocess.Popen[bytes], folder: str = "") -> None:
    """Kills a node's processes as a power cut would: its descendants, and what names `folder`."""
    victims = {process.pid, *_descendants(process.pid)}
    for other in psutil.process_iter(["pid", "cmdline"]) if folder else ():
        if any(folder in part for part in other.info["cmdline"] or ()):
            victims |= {other.info["pid"], *_descendants(other.info["pid"])}
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> set[int]:
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
