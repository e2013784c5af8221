"""A reporter for code that is run without a person."""

from types import TracebackType
from typing import Self


class NullReporter:
    """Hears everything and shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    def stage(self, name: str, total: int | None) -> None:
        """Shows nothing."""

    def advance(self, n: int = 1) -> None:
        """Shows nothing."""

    def trial(self, done: int, total: int, best_error: float | None, hypervolume: float) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def warn(self, text: str) -> None:
        """Shows nothing."""
