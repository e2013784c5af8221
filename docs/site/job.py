"""The page of the job file's keys, from its JSON schema."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from bitfront.job.json_schema import job_schema
from docs.site.markdown import code, table

_Schema: TypeAlias = Mapping[str, Any]

_INTRODUCTION: Final = """\
# The job file

A job is YAML. `study`, `model` and `data` have to be there; everything else has a default.
`bitfront init` writes a first one, `bitfront validate` says all that is wrong with it, and
`bitfront schema` prints the JSON schema that this page is made of.
"""
_NAMED: Final = re.compile(r"(`\w+`(?:(?:, | and |, and )`\w+`)*): ")


def page() -> str:
    """All keys: type, default, meaning."""
    schema: _Schema = job_schema()
    lines = [_INTRODUCTION, "## The keys of a job", "", *_prose(schema)[0]]
    lines += _keys(schema, schema, "")
    for path, section in _sections(schema, schema, ()):
        lines += [f"## `{path}` {{#{path}}}", "", *_prose(section)[0]]
        lines += _keys(section, schema, f"{path}.")
    lines += ["## The choices", ""]
    for name, choice in schema["$defs"].items():
        if "enum" in choice:
            values = ", ".join(code(value) for value in choice["enum"])
            lines += [f"### {name}", "", f"{values}.", "", *_prose(choice)[0]]
    return "\n".join(lines)


def _sections(
    section: _Schema, schema: _Schema, path: Sequence[str]
) -> Iterator[tuple[str, _Schema]]:
    """The sections below one, in the order of the file: path and schema."""
    for key, value in section["properties"].items():
        found = _section(value, schema)
        if found is not None:
            yield ".".join([*path, key]), found
            yield from _sections(found, schema, [*path, key])


def _section(value: _Schema, schema: _Schema) -> _Schema | None:
    for way in (value, *value.get("anyOf", ())):
        name = way.get("$ref", "").rpartition("/")[2]
        if name and "properties" in schema["$defs"][name]:
            found: _Schema = schema["$defs"][name]
            return found
    return None


def _prose(section: _Schema) -> tuple[list[str], dict[str, str]]:
    """What a section says of itself, and what it says of single keys."""
    text, meanings = list[str](), dict[str, str]()
    for paragraph in section.get("description", "").split("\n\n"):
        plain, names = list[str](), list[str]()
        for line in paragraph.splitlines():
            named = _NAMED.match(line)
            if named is not None and "enum" not in section:
                names = re.findall(r"\w+", named[1].replace(" and ", " "))
                meanings |= dict.fromkeys(names, line[named.end() :])
            elif names:
                meanings |= {name: f"{meanings[name]} {line}" for name in names}
            else:
                plain.append(line)
        text += [*plain, ""] if plain else []
    return text, meanings


def _keys(section: _Schema, schema: _Schema, path: str) -> list[str]:
    meanings = _prose(section)[1]
    required = section.get("required", ())
    rows = [
        (
            f"[{code(key)}](#{path}{key})" if _section(value, schema) else code(key),
            _kind(value, schema),
            "required" if key in required else _default(value, schema),
            meanings.get(key, ""),
        )
        for key, value in section["properties"].items()
    ]
    return table(["key", "value", "default", "meaning"], rows)


def _default(value: _Schema, schema: _Schema) -> str:
    if _section(value, schema) is not None:
        return "none" if value.get("default") is None else ""
    default = value.get("default")
    return "none" if default is None else code(json.dumps(default, ensure_ascii=False).strip('"'))


def _kind(value: _Schema, schema: _Schema) -> str:
    if "anyOf" in value:
        ways = [_kind(way, schema) for way in value["anyOf"] if way.get("type") != "null"]
        return " or ".join(dict.fromkeys(ways))
    if "$ref" in value:
        found = schema["$defs"][value["$ref"].rpartition("/")[2]]
        if "enum" in found:
            return f"one of [{found['title']}](#{found['title'].lower()})"
        return "a section"
    if "enum" in value:
        return "one of " + ", ".join(code(choice) for choice in value["enum"])
    if "const" in value:
        return code(value["const"])
    if value["type"] == "array":
        items = value.get("items") or {}
        return f"list: {_kind(items, schema)}" if items else "list"
    if value["type"] == "object":
        return f"mapping to {_kind(value['additionalProperties'], schema)}"
    return _scalar(value)


def _scalar(value: _Schema) -> str:
    pattern = value.get("pattern", "")
    if pattern:
        shown = "a share such as `15%`" if "%" in pattern else "a size such as `40MB`"
        return shown if pattern.startswith("^ *") else "text, " + code(pattern)
    names = {"integer": "integer", "number": "number", "boolean": "yes or no", "string": "text"}
    signs = (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    )
    limits = [f"{sign} {value[name]}" for name, sign in signs if name in value]
    return ", ".join([names[value["type"]], *limits])
