"""Names of classes become words, and templates captions."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.errors import SpecError
from objectives.data.captions import class_names, clean_name, fill, looks_like_identifier


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wheaten-terrier", "wheaten terrier"),
        ("aquarium_fish", "aquarium fish"),
        ("Yorkshire-terrier", "Yorkshire terrier"),
        ("t-shirt", "t-shirt"),
        ("x-ray_machine", "x-ray machine"),
        ("old T-shirt", "old T-shirt"),
        ("black-and-tan coonhound", "black-and-tan coonhound"),
        ("  two__underscores_ ", "two underscores"),
    ],
)
def test_names_are_words(name: str, words: str) -> None:
    assert clean_name(name) == words


@given(name=st.text(max_size=30))
def test_cleaning_twice_changes_nothing(name: str) -> None:
    assert clean_name(clean_name(name)) == clean_name(name)


@pytest.mark.parametrize(
    ("template", "name", "caption"),
    [
        ("a photo of a {}.", "aquarium fish", "a photo of an aquarium fish."),
        ("a photo of a {}.", "cat", "a photo of a cat."),
        ("a photo of an {}.", "cat", "a photo of a cat."),
        ("A {} in the wild", "owl", "An owl in the wild"),
        ("a photo of a {}", "unicorn", "a photo of a unicorn"),
        ("a photo of a {}", "hourglass", "a photo of an hourglass"),
        ("a digit, a {}", "8", "a digit, an 8"),
        ("a number: a {}", "18", "a number: an 18"),
        ("a number: a {}", "180", "a number: a 180"),
        ("a photo of the {}.", "owl", "a photo of the owl."),
        ("a photo of many {}.", "owl", "a photo of many owl."),
        ("{} and a {}", "owl", "owl and an owl"),
    ],
)
def test_the_article_suits_the_name(template: str, name: str, caption: str) -> None:
    assert fill(template, name) == caption


def test_a_mapping_names_the_classes_of_the_data() -> None:
    given = {"a": "cat", "b": "dog", "c": "not there"}

    assert class_names(("a", "b"), given, "folder") == ("cat", "dog")


def test_a_list_names_the_labels_in_their_order() -> None:
    assert class_names(("0", "1"), ("cat", "dog"), "folder") == ("cat", "dog")


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".txt"])
def test_a_file_names_the_classes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"classes{suffix}"
    file.write_text("cat\ndog\n" if suffix == ".txt" else json.dumps({"a": "cat", "b": "dog"}))

    assert class_names(("a", "b"), str(file), "folder") == ("cat", "dog")


def test_imagenet_and_cifar_have_their_names() -> None:
    assert class_names(("n01440764", "n01443537"), None, "folder") == ("tench", "goldfish")
    assert class_names(("0", "1"), "imagenet", "folder") == ("tench", "goldfish")
    assert class_names(("0", "9"), "cifar10", "folder") == ("airplane", "truck")
    assert class_names(("aquarium_fish", "2"), "cifar100", "x") == ("aquarium fish", "baby")


@pytest.mark.parametrize(
    ("found", "given", "sentence"),
    [
        (("a_b", "a b"), None, r"'a_b' and 'a b' of x are both called 'a b'"),
        (("a", "b"), {"a": "cat"}, "data.classes has no name for 'b', a class of x"),
        (("a", "b"), ("cat",), "data.classes has 1 names, but x has 2 classes"),
        (("a", "b"), ("cat", " "), "the class 'b' of x has no words in its name"),
        (("_", "b"), None, "the class '_' of x has no words"),
        (("a\udcff", "b"), None, "has a name that is not text: rename it"),
        (("a", "b"), "missing.json", "data.classes: missing.json cannot be read"),
    ],
)
def test_names_that_do_not_tell_classes_apart_are_refused(
    found: tuple[str, ...], given: object, sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        class_names(found, given, "x")  # type: ignore[arg-type] # as a job may have it


@pytest.mark.parametrize("name", ["n02123045", "class_7", "0012", "label 3", "3f2a9c1b"])
def test_codes_look_like_identifiers(name: str) -> None:
    assert looks_like_identifier(name)


@pytest.mark.parametrize("name", ["cat", "7up", "area 51", "decade", "effaceable"])
def test_words_do_not_look_like_identifiers(name: str) -> None:
    assert not looks_like_identifier(name)
