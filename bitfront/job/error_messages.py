"""What pydantic finds wrong with a job, in one sentence that says what to do."""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Final, cast, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bitfront.job.document import Place, cut, one_line, place_name

_LIMITS = {
    "greater_than": ("gt", "must be above"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text (put it in quotes)",
    "tuple": "a list, such as [2, 3, 4]",
    "dict": "a section with keys under it",
    "model": "a section with keys under it",
}
# Fields that take values of several kinds, and which: pydantic tells what is wrong for each.
_SEVERAL: Final[Mapping[Place, str]] = {
    ("data", "classes"): (
        "a mapping of texts to texts, a list of texts, or the name of a file or a known data set "
        "(words such as no and on, and numbers, need quotes to be texts)"
    ),
    ("data", "task"): "the name of a task (letters, digits, '.', '_' and '-')",
    ("search", "gpus_per_worker"): "a number of at least 0, or auto",
}
_LONGEST_REASON = 500
_NAMED = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")


def place_of(error: ErrorDetails, schema: type[BaseModel]) -> Place:
    """The place that an error is about, as precise as its own text is.

    A rule over a whole section says which of its keys it is about: where the text starts with
    `key` or `section.key`, the place goes down to that key.
    """
    place: Place = error["loc"]
    if place[:2] in _SEVERAL:
        return place[:2]
    section = _section(schema, place)
    if error["type"] != "value_error" or section is None:
        return place
    match = _NAMED.match(str(error["ctx"]["error"]))
    named = match[0].split(".") if match else []
    if place and named[:1] == [place[-1]]:
        named = named[1:]
    return (*place, named[0]) if named and named[0] in section.model_fields else place


def sentence(error: ErrorDetails, schema: type[BaseModel]) -> str:
    """The mistake, starting with the field's name."""
    place = place_of(error, schema)
    name = _name(place)
    value = error["input"]
    if place in _SEVERAL:
        return f"{name}: {_shown(value)} is not possible: write {_SEVERAL[place]}"
    limits: Mapping[str, object] = error.get("ctx", {})
    kind = error["type"]
    if kind == "missing":
        return f"{name} is missing{_suggested_values(schema, place)}"
    if kind == "extra_forbidden":
        return _unknown_key(place, schema)
    if kind == "value_error":
        return _refused(name, value, str(limits["error"]))
    if kind in ("enum", "literal_error"):
        return (
            f"{name}: {_shown(value)} is not possible: {_choices(value, str(limits['expected']))}"
        )
    if kind == "string_pattern_mismatch":
        return (
            f"{name}: {_shown(value)} is not possible: use 1 to 64 letters, digits, "
            "'.', '_' and '-', starting with a letter or digit"
        )
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"{name}: {_shown(value)} is not possible: it {words} {limits[key]:g}"
    base = next((words for start, words in _TYPES.items() if kind.startswith(start)), None)
    if kind == "tuple_type":
        base = f"a list, such as {_example(schema, place)}"
    if base is not None:
        return f"{name} must be {base}, not {_shown(value)}"
    return f"{name}: {_shown(value)} is not possible: {error['msg']}"


def _example(schema: type[BaseModel], place: Place) -> str:
    """A list that a field may hold: its own default, where it has one of its kind."""
    section = _section(schema, place[:-1])
    entry = section.model_fields.get(str(place[-1])) if section and place else None
    annotation = str(entry.annotation) if entry is not None else ""
    default = entry.default if entry is not None else None
    if isinstance(default, tuple) and default and "int" not in annotation:
        return f"[{', '.join(_item(value) for value in default)}]"
    return "['first', 'second']" if "str" in annotation else "[2, 3, 4]"


def _item(value: object) -> str:
    if isinstance(value, StrEnum):
        return str(value)
    return json.dumps(value)


def _name(place: Place) -> str:
    return place_name([part for part in place if isinstance(part, str)]) or "the job"


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    try:
        return cut(repr(value) if isinstance(value, str) else str(value))
    except ValueError:  # Python writes no number of so many digits
        return "a number of thousands of digits"


def _refused(name: str, value: object, reason: str) -> str:
    """`reason` with the field and the value put before it where it does not have them."""
    reason = one_line(reason)[:_LONGEST_REASON]
    first = reason.split(" ", 1)[0].rstrip(":")
    if name == first or name.endswith(f".{first}"):
        return name + reason.removeprefix(first)
    if isinstance(value, dict) or reason.startswith(repr(value)):
        return f"{name}: {reason}"
    return f"{name}: {_shown(value)} is not possible: {reason}"


def _choices(value: object, expected: str) -> str:
    """`expected` is pydantic's list, such as "'tpe', 'nsga2' or 'random'"."""
    known = re.findall(r"'([^']+)'", expected)
    return f"write {expected.replace(chr(39), '')}{_nearest(str(value), known)}"


def _nearest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_key(place: Place, schema: type[BaseModel]) -> str:
    section = _section(schema, place[:-1])
    known = list(section.model_fields) if section else []
    close = get_close_matches(str(place[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"{_name(place)} is not a known key: did you mean {close[0]}?"
    where = f"of {_name(place[:-1])}" if place[:-1] else "at the top"
    return f"{_name(place)} is not a known key: the keys {where} are {', '.join(known)}"


def _suggested_values(schema: type[BaseModel], place: Place) -> str:
    section = _section(schema, place[:-1])
    if section is None:
        return ""
    annotation = section.model_fields[str(place[-1])].annotation
    members = getattr(annotation, "__members__", None)
    if members:
        return f": write one of {', '.join(str(member) for member in members.values())}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        needed = [key for key, entry in annotation.model_fields.items() if entry.is_required()]
        return f": write this section with at least {', '.join(needed)}"
    return ""


def _section(schema: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """The section of the specification that a place is in; None where it is in no section."""
    for part in place:
        entry = schema.model_fields.get(str(part))
        if entry is None:
            return None
        inner = [t for t in (entry.annotation, *get_args(entry.annotation)) if _is_schema(t)]
        if not inner:
            return None
        schema = cast("type[BaseModel]", inner[0])
    return schema


def _is_schema(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
