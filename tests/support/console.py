"""Follows a document literally: saves its files, types its commands into a shell, reads the screen.

A fence of kind `console` has commands after `$ `, and below each what a terminal of 120 columns
shows for it. A line of them that ends in `^C` says when Ctrl-C is pressed: once the screen shows
what stands before it, or more of it done. A fence with a `title` is a file to save.
"""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pexpect
import pyte

COLUMNS: Final = 120
PATIENCE_S: Final = 300
_READY: Final = "\x1b]0;ready\x07"
_PROMPT: Final = r"\e]0;ready\a$ "
_STOP: Final = "^C"
_FENCE: Final = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE: Final = re.compile(r'title="([^"]+)"')

VARYING: Final = (
    (r"\b\d[\d.]* (?:ms|s|min|h)\b(?: \d+ s)?", "TIME"),
    (r"\b\d[\d.]* [MG]B\b", "MEMORY"),
    (r"\b\d+ (?:threads?|cores?)\b", "CORES"),
    (r"\b\d+ of \d+ \([^)]*\)", "TRIALS"),
    (r"\ball \d+ are there", "PACKAGES"),
    (r"(?<=by )[\w.-]+:\d+|(?<=127\.0\.0\.1:)\d+", "PROCESS"),
    (r"\b\d+\.\d+\.\d[\w.+]*", "VERSION"),
    (r"\b\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?", "DATE"),
    (r"\b[0-9a-f]{8,}\b", "DIGEST"),
    (r"(?<![\w.:/])(?:sqlite://)?/+[\w.-]+(?:/[\w.-]+)*", "PATH"),
    (r"\bdiffer by \S+ at most, \S+ in the mean", "DIFFERENCE"),
    (r"\b\d+ kB with all files", "FILES"),
    (r"[━╸╺]+", "BAR"),
)
"""What differs between runs and machines. Beside it, a share may be another one by a point, and
a number with a decimal point by a fifth: the last digits hang on the processor."""

_NUMBER: Final = re.compile(r"(?<![\w^])\d+\.\d+(?: %)?")


@dataclass(frozen=True, slots=True)
class File:
    """A file that the reader saves."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the reader types, and the lines that the terminal then shows."""

    text: str
    shown: tuple[str, ...]

    @property
    def stop(self) -> str | None:
        """What the screen shows when Ctrl-C is pressed, if it is."""
        lines = [line for line in self.shown if line.endswith(_STOP)]
        return lines[0].removesuffix(_STOP).strip() if lines else None


def steps(document: str) -> Iterator[File | Command]:
    """What the reader of a document does, in its order."""
    for kind, words, text in _FENCE.findall(document):
        title = _TITLE.search(words)
        if title is not None:
            yield File(title[1], text)
        elif kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *shown = part.rstrip("\n").split("\n")
                yield Command(command, tuple(shown))


def differences(command: Command, screen: Sequence[str]) -> list[str]:
    """The lines of the document that the screen does not have, and the reverse."""
    told, found = _lines(command.shown), _lines(screen)
    if len(told) != len(found):
        return [f"{len(told)} lines stand there, the screen has {len(found)}", *screen]
    return [
        f"- {ours}\n+ {theirs}"
        for ours, theirs in zip(told, found, strict=True)
        if not _is_same(ours, theirs)
    ]


def _lines(shown: Sequence[str]) -> list[str]:
    """The lines without empty ones; of a bar that is not full, only its name."""
    plain = [_unfilled(line.removesuffix(_STOP)) for line in shown]
    return [line for line in plain if line.strip()]


def _unfilled(line: str) -> str:
    count = re.search(r"(\d+)/(\d+)", line)
    is_open = "━" in line and (count is None or count[1] != count[2])
    return line.partition("━")[0] + "BAR" if is_open and "done" not in line else line


def _is_same(ours: str, theirs: str) -> bool:
    pair = [_plain(line) for line in (ours, theirs)]
    texts = [_NUMBER.sub("NUMBER", line) for line in pair]
    numbers = [_NUMBER.findall(line) for line in pair]
    return texts[0] == texts[1] and all(map(_is_close, *numbers))


def _plain(line: str) -> str:
    for pattern, name in VARYING:
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


def _is_close(ours: str, theirs: str) -> bool:
    first, second = (float(number.removesuffix(" %")) for number in (ours, theirs))
    return abs(first - second) <= (1 if ours.endswith("%") else 0.2 * abs(first))


def visit(screen: str) -> None:
    """Opens the address on the screen, as the reader does.

    Raises:
        OSError: Nothing answers there, or with an error.
    """
    for address in re.findall(r"http://127\.0\.0\.1:\d+/", screen):
        with urllib.request.urlopen(address) as answer:
            answer.read()


class Terminal:
    """A shell on a terminal, in a folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Starts the shell.

        Args:
            folder: Where it starts.
            environment: All its variables.
        """
        self._screen = pyte.Screen(1000, 200)
        self._stream = pyte.Stream(self._screen)
        self._shell: pexpect.spawn[str] = pexpect.spawn(
            "bash",
            ["--noprofile", "--norc", "--noediting"],
            cwd=str(folder),
            env={**environment, "PS1": _PROMPT, "TERM": "xterm-256color"},
            dimensions=(50, COLUMNS),
            encoding="utf-8",
        )
        self._read_until(lambda text: _READY in text)
        self._shell.sendline("stty noflsh")  # or Ctrl-C would swallow what was just written
        self._read_until(lambda text: _READY in text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shell.close(force=True)

    def run(self, command: Command, *, look: Callable[[str], None] = lambda _: None) -> list[str]:
        """Types a command; the lines that are on the screen once it has ended.

        Args:
            command: What to type.
            look: Sees the screen just before Ctrl-C is pressed.
        """
        self._screen.reset()
        self._shell.sendline(command.text)
        stop = command.stop
        if stop is not None:
            self._read_until(lambda text: _READY in text or _reaches(self.lines, stop))
            look("\n".join(self.lines))
            self._shell.sendintr()
        self._read_until(lambda text: _READY in text)
        return self.lines[1:-1]  # without the echo and the prompt

    @property
    def lines(self) -> list[str]:
        """The lines that the screen shows."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def _read_until(self, is_enough: Callable[[str], bool]) -> None:
        text, end = "", time.monotonic() + PATIENCE_S
        while not is_enough(text):
            if time.monotonic() > end:
                raise TimeoutError("\n".join(self.lines))
            try:
                read = self._shell.read_nonblocking(65536, timeout=1)
            except pexpect.TIMEOUT:
                continue
            self._stream.feed(read)
            text += read


def _reaches(lines: Sequence[str], stop: str) -> bool:
    """Whether a line shows what stands there, or a bar of that name as much done or more."""
    goal = re.search(r"(\d+)/\d+", stop)
    if goal is None:
        return any(_is_same(stop, line) for line in lines)
    name = stop.partition("━")[0]
    counts = [re.search(r"(\d+)/\d+", line) for line in lines if line.startswith(name)]
    return any(count is not None and int(count[1]) >= int(goal[1]) for count in counts)
