"""`bitfront models`: what is known, what is generic, what is refused and why."""

import json
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner

from bitfront.errors import InvalidModel
from bitfront.families import FAMILIES, Standing
from bitfront.spec import ModelSource
from bitfront.vlm import load_model
from service.cli import main
from tests.support.clip_models import TEXT, VISION, folder_spec, tokenizer
from tests.support.families import SMALL_MODELS


def test_the_known_families_are_those_that_have_a_small_model() -> None:
    known = {(f.source, f.name) for f in FAMILIES if f.standing is Standing.KNOWN}

    tested = {(m.source, m.name.removeprefix("open_clip ")) for m in SMALL_MODELS}
    assert known == tested
    assert all(family.tells for family in FAMILIES if family.standing is Standing.REFUSED)


def test_each_family_is_a_line_of_the_table_and_a_row_of_json() -> None:
    shown = CliRunner().invoke(main, ["models"])
    rows = CliRunner().invoke(main, ["models", "--format", "json"])

    _, *lines = shown.stdout.splitlines()
    for line, family in zip(lines, FAMILIES, strict=True):
        assert line.startswith(family.name)
        assert family.standing.value in line
        assert line.endswith(family.tells)
    assert [json.loads(row)["name"] for row in rows.stdout.splitlines()] == [
        family.name for family in FAMILIES
    ]


def test_a_model_whose_processor_has_no_image_token_is_refused(tmp_path: Path) -> None:
    config = transformers.BlipConfig(text_config=TEXT, vision_config=VISION)
    model = transformers.BlipForConditionalGeneration(config)
    model.generation_config.eos_token_id = 3
    model.save_pretrained(tmp_path)
    images = transformers.BlipImageProcessor(size={"height": 24, "width": 24})
    words = tokenizer(12, start=True)
    transformers.BlipProcessor(images, words).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]  # theirs

    with pytest.raises(InvalidModel, match="BlipProcessor, which puts no pictures into a text"):
        load_model(folder_spec(tmp_path))


def test_a_model_that_does_neither_is_refused_in_one_sentence(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)

    with pytest.raises(InvalidModel, match="is a 'bert' model, which neither compares pictures"):
        load_model(folder_spec(tmp_path))


def test_the_sources_are_those_of_a_job() -> None:
    assert {f.source for f in FAMILIES} <= {*ModelSource, None}
