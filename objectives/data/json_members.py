"""The members of one large JSON object, those of its arrays one at a time: never the whole text."""

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Final, TextIO

_PART: Final = 1 << 16
"""Characters that are read at once."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_BEHIND: Final = frozenset(",]}: \t\n\r")
"""What stands behind a value; a number may go on before anything else."""


def members(file: TextIO, arrays: Collection[str]) -> Iterator[tuple[str, object]]:
    """The name and value of each member; the elements of some arrays singly, by the array's name.

    No more of the text is in memory than twice a member, or an element of those arrays, and a part
    of 64 KiB.

    Args:
        file: The text, at its start.
        arrays: Whose elements are given singly.

    Raises:
        ValueError: The text is no JSON object, or a member of such a name no array; the message
            says where.
    """
    text = _Text(file)
    text.take("{")
    for _ in text.listed("}"):
        name = text.value()
        if not isinstance(name, str):
            raise ValueError(f"a name is expected in quotes at {text.place}")
        text.take(":")
        if name in arrays:
            text.take("[")
            for _ in text.listed("]"):
                yield name, text.value()
        else:
            yield name, text.value()
    if text.next_one():
        raise ValueError(f"there is more behind the object's end at {text.place}")


class _Text:
    """A text that is read part by part, and let go as its values are taken."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._held, self._start, self._before = "", 0, 0
        self._decode: Callable[[str, int], tuple[object, int]] = json.JSONDecoder().raw_decode

    @property
    def place(self) -> str:
        """Where the text stands."""
        return f"character {self._before + self._start + 1}"

    def _more(self) -> bool:
        """Reads on, half as much again as is held at least; whether there was anything."""
        part = self._file.read(max(_PART, len(self._held) - self._start))
        self._before += self._start
        self._held, self._start = self._held[self._start :] + part, 0
        return bool(part)

    def next_one(self) -> str:
        """The next character that is not whitespace, or an empty string at the end."""
        while True:
            found = _SPACE.match(self._held, self._start)
            assert found is not None
            self._start = found.end()
            if self._start < len(self._held):
                return self._held[self._start]
            if not self._more():
                return ""

    def starts_with(self, character: str) -> bool:
        """Whether the next character that is not whitespace is this one."""
        return self.next_one() == character

    def take(self, character: str) -> None:
        """Passes over a character.

        Raises:
            ValueError: Another one comes next.
        """
        if not self.starts_with(character):
            raise ValueError(f"{character!r} is expected at {self.place}")
        self._start += 1

    def listed(self, end: str) -> Iterator[None]:
        """Stops at each thing that is listed, with commas between, until the end is taken."""
        if not self.starts_with(end):
            yield
            while self.starts_with(","):
                self.take(",")
                yield
        self.take(end)

    def value(self) -> object:
        """Takes a value.

        Raises:
            ValueError: There is none.
        """
        self.next_one()
        while True:
            try:
                value, end = self._decode(self._held, self._start)
            except json.JSONDecodeError as error:
                place = self._before + error.pos + 1
                if self._more():
                    continue
                raise ValueError(f"{error.msg} at character {place}") from error
            except RecursionError as error:
                raise ValueError(f"lists within lists are too deep at {self.place}") from error
            taken = end - self._start
            if self._held[end : end + 1] in _BEHIND or not self._more():
                self._start += taken
                return value
