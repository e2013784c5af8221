"""What a test of durability asks of running processes: points to die at, and a log of their work.

Both do nothing unless the environment asks for them. `BITFRONT_FAILPOINT=NAME` kills the first
process that comes by the point of that name, `NAME:3` the one that comes by for the third time.
`BITFRONT_WITNESS=FILE` makes every process add a line of JSON for what it does.
"""

import json
import os
import signal
import time
from collections import Counter

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Kills this process, as a power cut would, if the environment names this point."""
    wanted, _, count = os.environ.get("BITFRONT_FAILPOINT", "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def witness(event: str, **facts: object) -> None:
    """Adds what happened to the log that the environment names, synced before it returns."""
    path = os.environ.get("BITFRONT_WITNESS")
    if path is None:
        return
    line = json.dumps({"event": event, "pid": os.getpid(), "at_s": time.time(), **facts})
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
