"""Processes of our own that know nothing of the program that starts them.

Python starts a fresh process with the main module of its parent, so a person's script without
`if __name__ == "__main__"` would run again in each. What ours do is in modules with a name.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from typing import Final


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hides where the main module came from, for as long as a process is started."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, object] = {key: main[key] for key in ("__spec__", "__file__") if key in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(hidden)


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: SpawnProcess) -> Popen:  # type: ignore[override]  # noqa: N802  # theirs
        with _nameless_main():
            return Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


FRESH: Final = _Context()
"""Makes pools of fresh processes, as `multiprocessing.get_context("spawn")` does."""
