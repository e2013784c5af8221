"""A large JSON object read member by member, against Python's own parser."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.data import json_members
from objectives.data.json_members import members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    elements=st.lists(VALUES),
    others=st.dictionaries(st.text().filter(lambda name: name != "own"), VALUES),
    indent=st.none() | st.integers(0, 3),
    in_ascii=st.booleans(),
    part=st.integers(1, 9),
)
def test_members_are_those_that_a_parser_of_the_whole_finds(
    elements: list[object],
    others: dict[str, object],
    indent: int | None,
    in_ascii: bool,
    part: int,
) -> None:
    content = {"own": elements, **others}
    text = json.dumps(content, indent=indent, ensure_ascii=in_ascii)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_members, "_PART", part)
        found = list(members(io.StringIO(text), ["own"]))

    assert found == [*(("own", element) for element in elements), *others.items()]


@pytest.mark.parametrize("part", [1, 2, 3, 1 << 16])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'\{' is expected at character 1"),
        ("[1]", r"'\{' is expected at character 1"),
        ('{"own": [1, 2', r"'\]' is expected at character 14"),
        ('{"own": [1, 2}', r"'\]' is expected at character 14"),
        ('{"own": [1 2]}', r"'\]' is expected at character 12"),
        ('{"own": [1,]}', "Expecting value at character 12"),
        ('{"own": [1.]}', r"'\]' is expected at character 11"),
        ('{"own": 5}', r"'\[' is expected at character 9"),
        ('{"own" [5]}', "':' is expected at character 8"),
        ('{"a": "b', "Unterminated string starting at at character 7"),
        ('{"a": 1,}', "Expecting value at character 9"),
        ('{5: "a"}', "a name is expected in quotes at character 3"),
        ('{"a": 1} {', "there is more behind the object's end at character 10"),
        ('{"a": ' + "[" * 100_000, "lists within lists are too deep at character 7"),
    ],
)
def test_what_is_no_object_is_named_with_its_place(
    text: str, message: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_members, "_PART", part)

    with pytest.raises(ValueError, match=message):
        list(members(io.StringIO(text), ["own"]))


def test_a_long_array_takes_no_more_memory_than_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"own": [{"text": "x" * 100}] * 50_000}))
    assert path.stat().st_size > 5 << 20

    tracemalloc.start()
    with path.open() as file:
        count = sum(1 for _ in members(file, ["own"]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 50_000
    assert most < 1 << 20
