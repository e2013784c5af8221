"""YAML text as plain content in which every value still knows its line."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bitfront.errors import SpecError

MAX_NBYTES: Final = 1_000_000
MAX_DEPTH: Final = 20
MAX_VALUES: Final = 20_000
MAX_MERGES: Final = 100
LARGEST_WHOLE: Final = 2**63 - 1
LONGEST_QUOTE: Final = 60

_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_OCTAL: Final = re.compile(r"[-+]?0[0-7_]+")
_BASE_60: Final = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_PLAIN_TAGS: Final = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Place = tuple[str | int, ...]


def one_line(text: str) -> str:
    """The text with what no terminal should be sent, such as a line's end, as escapes."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def cut(text: str) -> str:
    """The text, or its start where it is too long to be quoted."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def place_name(place: Sequence[str | int]) -> str:
    """A place as a person writes it, such as `space.weight_bits`."""
    return ".".join(cut(one_line(str(part))) for part in place)


@dataclass(frozen=True, slots=True)
class Document:
    """A job's content and the line of each of its places.

    Attributes:
        path: The file; for a job that is in no file, what stands for one in its folder.
        content: Nested mappings, lists and scalars.
        lines: Keys and indices from the top down, to the line (from 1) they stand on; without
            a file, to their place in the order of the content.
        is_file: Whether there is a file, whose lines mean something to a person.
    """

    path: Path
    content: dict[str, object]
    lines: Mapping[Place, int]
    is_file: bool = True

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest place around it that the file has."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


def plain_document(content: Mapping[str, object], folder: Path) -> Document:
    """A job that a program holds as a mapping, as if its file lay in a folder.

    Paths become texts; what is no plain value is left for the specification to refuse.

    Raises:
        SpecError: It is nested too deep.
    """
    lines: dict[Place, int] = {(): 0}

    def read(value: object, place: Place) -> object:
        lines.setdefault(place, len(lines))
        if len(place) > MAX_DEPTH:  # a mapping that holds itself
            raise SpecError(f"the job has values nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return {str(key): read(inner, (*place, str(key))) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [read(inner, (*place, number)) for number, inner in enumerate(value)]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    read_content = {str(key): read(value, (str(key),)) for key, value in content.items()}
    return Document(folder / "job", read_content, lines, is_file=False)


def read_document(path: Path) -> Document:
    """The content of a YAML file; nothing in the file can run code or grow without bound.

    Raises:
        SpecError: The file cannot be read, is not text, is not YAML, holds no mapping, names a
            key twice, or is too large, too deep, or too long once its aliases are followed.
    """
    text = _read_text(path)
    try:
        loader = _BoundedLoader(text, path)
        root = loader.get_single_node()
        if root is None:
            raise SpecError(
                f"{path} is empty: a job needs at least 'study', 'model' and 'data' "
                "(the folder examples/ has whole ones)"
            )
        if not isinstance(root, MappingNode):
            raise SpecError(
                f"{path}, line {_line(root)}: a job file is a mapping of keys to values "
                f"(such as 'study: first'), but this one holds {_kind(root)}"
            )
        reader = _Reader(path, loader)
        content = reader.mapping(root, ())
    except yaml.reader.ReaderError as error:
        raise SpecError(
            f"{path} is not a text file: it holds the character U+{error.character:04X}"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_sentence(path, error)) from error
    return Document(path, content, {(): _line(root), **reader.lines})


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError(f"{path} is a folder: name the job file in it")
        raw = path.read_bytes() if path.stat().st_size <= MAX_NBYTES else None
    except FileNotFoundError as error:
        raise SpecError(f"there is no job file {path}") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    if raw is None:
        raise SpecError(f"{path} is larger than {MAX_NBYTES:,} bytes: this is not a job file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is not a text file: byte {error.start} is not UTF-8 (save it as UTF-8)"
        ) from error
    return text


class _BoundedLoader(yaml.SafeLoader):
    """Builds nodes of plain data only, down to a depth that recursion can follow."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self._path = path
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SpecError(_too_deep(self._path, self.line + 1))
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(slots=True)
class _Reader:
    """Turns nodes into content, noting lines."""

    path: Path
    loader: _BoundedLoader
    lines: dict[Place, int] = field(default_factory=dict)
    merges: int = 0

    def mapping(self, node: MappingNode, place: Place) -> dict[str, object]:
        content: dict[str, object] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                merged.append(value_node)
                continue
            key = self._key(key_node)
            here = (*place, key)
            if key in content:
                raise SpecError(
                    f"{self.path}, line {_line(key_node)}: {place_name(here)} is given "
                    f"a second time (first on line {self.lines[here]}): keep one of them"
                )
            self.lines[here] = _line(key_node)
            content[key] = self._value(value_node, here)
        for source in merged:
            self._merge(source, content, place)
        return content

    def _merge(self, node: Node, content: dict[str, object], place: Place) -> None:
        """Adds what `<<` brings in: a mapping, or several, whose first wins; given keys win."""
        if isinstance(node, SequenceNode):
            for item in node.value:
                self._merge(item, content, place)
            return
        if not isinstance(node, MappingNode):
            raise SpecError(
                f"{self.path}, line {_line(node)}: '<<' takes in {_kind(node)}: "
                "write an alias of a mapping after it, such as '<<: *base'"
            )
        self.merges += 1
        if self.merges > MAX_MERGES:  # a mapping that takes in itself, or others again and again
            raise SpecError(
                f"{self.path}, line {_line(node)}: the file merges mappings more than "
                f"{MAX_MERGES} times: write fewer '<<'"
            )
        known = {here: line for here, line in self.lines.items() if here[: len(place)] == place}
        for here in known:
            if len(here) > len(place):
                del self.lines[here]
        brought = self.mapping(node, place)
        self.lines.update(known)
        for key, value in brought.items():
            content.setdefault(key, value)

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise SpecError(
                f"{self.path}, line {_line(node)}: {_kind(node)} cannot be a key "
                "(text in braces that is meant as text needs quotes)"
            )
        return str(node.value)

    def _value(self, node: Node, place: Place) -> object:
        if len(place) > MAX_DEPTH:  # an alias that holds itself
            raise SpecError(_too_deep(self.path, _line(node)))
        if len(self.lines) > MAX_VALUES:
            raise SpecError(
                f"{self.path}, line {_line(node)}: the file stands for more than "
                f"{MAX_VALUES:,} values: write fewer, or use fewer aliases"
            )
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if node.tag not in _PLAIN_TAGS:
            raise SpecError(_strange_tag(self.path, _line(node), node.tag))
        if isinstance(node, MappingNode):
            return self.mapping(node, place)
        return self._items(node, place)

    def _scalar(self, node: ScalarNode) -> object:
        try:
            value: object = self.loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # A date such as 2026-99-99, or a tag such as !!bool that the text does not fit.
            raise SpecError(
                f"{self.path}, line {_line(node)}: {node.value[:40]!r} cannot be read "
                f"({_reason(node, error)}): put text in quotes"
            ) from error
        if isinstance(value, int) and _OCTAL.fullmatch(node.value) and node.style is None:
            raise SpecError(
                f"{self.path}, line {_line(node)}: {node.value} is {value} in YAML, where a 0 in "
                f"front means octal: write {node.value.replace('0', '', 1)} or {value}"
            )
        if isinstance(value, int | float) and _BASE_60.fullmatch(node.value) and node.style is None:
            raise SpecError(
                f"{self.path}, line {_line(node)}: {cut(node.value)} is {cut(f'{value:g}')} in "
                "YAML, where colons mean base 60: write the number itself"
            )
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
            raise SpecError(
                f"{self.path}, line {_line(node)}: {cut(node.value)} is larger than any whole "
                "number that a job may hold"
            )
        return value

    def _items(self, node: Node, place: Place) -> list[object]:
        items: list[object] = []
        for index, item in enumerate(node.value):
            self.lines[(*place, index)] = _line(item)
            items.append(self._value(item, (*place, index)))
        return items


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _reason(node: ScalarNode, error: Exception) -> str:
    if isinstance(error, ValueError):
        return cut(one_line(str(error)))
    return f"it is not a valid {node.tag.rpartition(':')[2]}"


def _kind(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, SequenceNode) else f"only {node.value[:40]!r}"


def _too_deep(path: Path, line: int) -> str:
    return f"{path}, line {line}: values are nested deeper than {MAX_DEPTH} levels"


def _strange_tag(path: Path, line: int, tag: str) -> str:
    short = cut(one_line(tag.replace("tag:yaml.org,2002:", "!!")))
    return f"{path}, line {line}: the tag {short} is not possible: write plain values"


def _text_of(mark: yaml.Mark | None) -> str:
    """The line that a mark stands on."""
    if mark is None or mark.buffer is None:
        return ""
    start = mark.buffer.rfind("\n", 0, mark.pointer) + 1
    return mark.buffer[start:].partition("\n")[0]


def _syntax_sentence(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = error.problem or "it cannot be read"
    if r"'\t'" in problem:
        return f"{path}, line {line}: a tab indents this line: YAML is indented with spaces"
    if "another document" in problem:
        return f"{path}, line {line}: a second document starts here ('---'): keep one"
    if "could not determine a constructor" in problem:
        return _strange_tag(path, line, problem.split("'")[1])
    if "{}" in _text_of(mark):
        return f"{path}, line {line}: this is not valid YAML: text with {{}} in it needs quotes"
    context = f"{error.context}, " if error.context else ""
    return f"{path}, line {line}: this is not valid YAML: {one_line(context + problem)[:200]}"
