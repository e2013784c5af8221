"""`bitfront methods`: every method with its source and what it brought, as the results say."""

import json
import re
from enum import StrEnum
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitfront.formats import FORMATS
from bitfront.methods import METHODS, Method
from bitfront.spec import (
    AllocatorKind,
    ClipSearchKind,
    ErrorMeasure,
    RangeKind,
    Rounding,
    Sampler,
    Target,
)
from service.cli import main

RESULTS = Path(__file__).parents[3] / "docs" / "results.md"


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("quantizer.rounding", Rounding),
        ("quantizer.target", Target),
        ("quantizer.ranges", RangeKind),
        ("profile.measure", ErrorMeasure),
        ("profile.clip_search", ClipSearchKind),
        ("search.allocator", AllocatorKind),
        ("search.sampler", Sampler),
    ],
)
def test_every_value_of_a_setting_is_listed(setting: str, values: type[StrEnum]) -> None:
    listed = [method.value for method in METHODS if method.setting == setting]

    assert sorted(listed) == sorted(values)


def test_every_number_format_is_listed() -> None:
    listed = [method.value for method in METHODS if method.setting == "space.formats"]

    assert sorted(listed) == sorted(FORMATS)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.section], ids=lambda m: f"{m.setting}: {m.value}"
)
def test_each_figure_is_in_the_section_of_the_results(method: Method) -> None:
    _, _, after = RESULTS.read_text().partition(f"\n## {method.section}\n")
    section, _, _ = after.partition("\n## ")
    figures = re.findall(r"\d+\.\d+", method.brought)

    assert figures
    assert [figure for figure in figures if figure not in section] == []


def test_a_method_without_a_section_has_no_figure() -> None:
    assert not any(re.search(r"\d+\.\d", m.brought) for m in METHODS if not m.section)


def test_each_method_is_a_line_of_the_table_and_a_row_of_json() -> None:
    shown = CliRunner().invoke(main, ["methods"])
    rows = CliRunner().invoke(main, ["methods", "--format", "json"])

    _, *lines = shown.stdout.splitlines()
    assert len(lines) == len(METHODS)
    for line, method in zip(lines, METHODS, strict=True):
        assert line.startswith(method.setting)
        assert method.source in line
        assert method.brought in line
    assert [json.loads(row)["source"] for row in rows.stdout.splitlines()] == [
        method.source for method in METHODS
    ]
