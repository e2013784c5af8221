"""A Ray cluster of several nodes with virtual GPUs on this machine, made to be killed.

A process of its own keeps the cluster, so that a dead one is left behind without a trace:

    python -m benchmarks.chaos_cluster FOLDER NODES

It prints the address and the process of each node's raylet as JSON lines, and adds a node for
each line that it reads.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NODE_CPUS = 2
NODE_GPUS = 1
_TRIALS = ("ray::TrialWorker", "ray::ResourceTrainable")
_TASKS = ("ray::_inspect", "ray::_measure", "ray::_evaluate_on_test")


class RayCluster:
    """A head without slots, and nodes of `NODE_CPUS` CPUs and `NODE_GPUS` virtual GPUs each.

    Attributes:
        address: Where drivers find it.
    """

    def __init__(self, environment: Mapping[str, str], nodes: int = 2) -> None:
        """Starts it; its workers inherit the environment."""
        # Ray's sockets need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="bf-"))
        with (self.folder / "keeper.err").open("wb") as errors:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos_cluster", str(self.folder), str(nodes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                text=True,
            )
        self.address = str(self._hear()["address"])
        self._raylets = [self._hear_raylet() for _ in range(nodes)]

    def _hear(self) -> dict[str, object]:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"no cluster: {(self.folder / 'keeper.err').read_text()}")
        heard: dict[str, object] = json.loads(line)
        return heard

    def _hear_raylet(self) -> psutil.Process:
        return psutil.Process(int(str(self._hear()["raylet"])))

    def add_node(self) -> None:
        """Starts one more node, and waits until it has joined."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.write("add\n")
        self._keeper.stdin.flush()
        self._raylets.append(self._hear_raylet())

    def kill_node(self, random: Random, notice_s: float = 0) -> None:
        """Ends a node as if its machine were gone; one that works, if there is one.

        Args:
            random: Which one.
            notice_s: Seconds between SIGTERM, as machines give it before they are taken away,
                and the end; 0 for no notice.
        """
        busy = [raylet for raylet in self._raylets if _busy_workers(raylet)]
        raylet = random.choice(busy or self._raylets)
        self._raylets.remove(raylet)
        processes = [raylet, *_descendants(raylet)]
        if notice_s:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(processes, timeout=notice_s)
        _kill(processes)

    def busy_workers(self) -> list[psutil.Process]:
        """The processes that run a trial or a task, by process."""
        found = [worker for raylet in self._raylets for worker in _busy_workers(raylet)]
        return sorted(found, key=lambda process: process.pid)

    def kill(self) -> None:
        """Ends every process of it at once."""
        keeper = psutil.Process(self._keeper.pid)
        _kill([keeper, *_descendants(keeper)])
        self._keeper.wait()
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                # What was told to a dead keeper cannot be flushed.
                with suppress(OSError):
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        found += process.children(recursive=True)
    return found


def _busy_workers(raylet: psutil.Process) -> list[psutil.Process]:
    """Ray names a worker after what it runs; those that run a trial, if there are any."""
    titles: dict[psutil.Process, str] = {}
    for process in _descendants(raylet):
        with suppress(psutil.Error):
            titles[process] = " ".join(process.cmdline())
    trials = [process for process, title in titles.items() if title.startswith(_TRIALS)]
    return trials or [process for process, title in titles.items() if title.startswith(_TASKS)]


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _keep(folder: str, nodes: int) -> None:
    """Starts a head without slots and some nodes, and adds one whenever it is told to."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": False,
            "temp_dir": folder,
        },
    )
    _say(address=cluster.address)
    for _ in range(nodes):
        _add(cluster, folder)
    for _ in sys.stdin:
        _add(cluster, folder)


def _add(cluster: "Cluster", folder: str) -> None:
    known = _raylet_pids()
    cluster.add_node(num_cpus=NODE_CPUS, num_gpus=NODE_GPUS, temp_dir=folder)
    (raylet,) = _raylet_pids() - known
    _say(raylet=raylet)


def _raylet_pids() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.name() == "raylet"}


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    _keep(sys.argv[1], int(sys.argv[2]))
