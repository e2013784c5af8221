"""What happened to a study, as a program sees it."""

from collections.abc import Collection, Sequence
from typing import overload

from service.views.logs import line_text
from storage.records import LogLine


class Log(Sequence[LogLine]):
    """What happened to a study, oldest first; its text is what `bitfront logs` prints."""

    def __init__(self, lines: Collection[LogLine]) -> None:
        """Takes the lines."""
        self._lines = tuple(lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, place: int) -> LogLine: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[LogLine, ...]: ...

    def __getitem__(self, place: int | slice) -> LogLine | tuple[LogLine, ...]:
        return self._lines[place]

    def __str__(self) -> str:
        return "\n".join(map(line_text, self._lines))

    def __repr__(self) -> str:
        return str(self)
