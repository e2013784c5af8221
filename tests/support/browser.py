"""A real browser for the tests of pages, and the real server that it asks."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REQUIRED = "BITFRONT_REQUIRE_BROWSER"


def chromium() -> str:
    """The browser's program; without one the test is skipped, or fails where one is required."""
    found = shutil.which("chromium")
    if found is None:
        reason = "chromium is not installed: 'make browser' installs it on Debian"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def serving(database: Path | str, *options: str) -> Iterator[str]:
    """`bitfront serve` in a process of its own; the address that it answers at."""
    place = ("--port", "0", "--db", str(database))
    command = [sys.executable, "-m", "service", "serve", *place, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://\S+(?=/)", line)
        try:
            assert found is not None, line + server.stderr.read()
            yield found[0]
        finally:
            server.send_signal(signal.SIGTERM)
            said = server.stderr.read()
        assert "Traceback" not in said, said
