import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from bitfront.errors import InvalidSample, MissingModel
from bitfront.reference.digit_clip import (
    CHECKPOINT,
    CONTEXT_LENGTH,
    VOCABULARY,
    build_clip,
    load_clip,
    split_words,
    tokenize,
)
from bitfront.reference.scenes import (
    CLASSES,
    SIDE,
    TEMPLATES,
    WORDS,
    SplitTitle,
    digit_scans,
    draw_scenes,
    normalise,
    picture,
    split_scans,
)
from bitfront.reference.train import (
    CALM,
    WIDE,
    Schedule,
    draw_captions,
    encode_captions,
    measure_accuracy,
    save,
    train,
)

SPLITS: tuple[SplitTitle, ...] = get_args(SplitTitle)


def test_the_scans_are_those_of_scikit_learn() -> None:
    images, digits = digit_scans()
    expected = load_digits()

    assert np.array_equal(images.numpy(), expected.images / 16)
    assert np.array_equal(digits, expected.target)


def test_every_scan_is_in_exactly_one_split() -> None:
    dealt = np.concatenate([split_scans(split) for split in SPLITS])

    assert sorted(dealt.tolist()) == list(range(1797))


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_its_share_of_every_digit(split: SplitTitle) -> None:
    scans = split_scans(split)

    counts = np.bincount(digit_scans()[1][scans], minlength=10)

    assert 0.75 * len(scans) / 10 <= counts.min() <= counts.max() <= 1.25 * len(scans) / 10


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_show_only_scans_of_their_split(split: SplitTitle) -> None:
    scenes = draw_scenes(split, 300, seed=5)

    assert set(scenes.scans.flatten().tolist()) <= set(split_scans(split).tolist())
    assert scenes.identities[7] == "+".join(str(scan) for scan in scenes.scans[7].tolist())


def test_equal_arguments_draw_equal_scenes_and_others_draw_others() -> None:
    scenes = draw_scenes("tuning", 40, seed=3)
    again = draw_scenes("tuning", 40, seed=3)
    another_seed = draw_scenes("tuning", 40, seed=4)
    another_split = draw_scenes("selection", 40, seed=3)

    for name in ("images", "labels", "scans", "centres"):
        assert torch.equal(getattr(scenes, name), getattr(again, name))
    assert not torch.equal(scenes.images, another_seed.images)
    assert not torch.equal(scenes.scans, another_split.scans)


def test_labels_name_what_the_scenes_show() -> None:
    scenes = draw_scenes("test", 1000, seed=0)
    _, digits = digit_scans()

    for label, scans, centres in zip(
        scenes.labels.tolist(), scenes.scans.tolist(), scenes.centres.tolist(), strict=True
    ):
        found = re.fullmatch(r"an? (\w+) (left of|above) an? (\w+)", CLASSES[label])
        assert found is not None
        (row, column), (other_row, other_column) = centres
        assert [WORDS.index(found[1]), WORDS.index(found[3])] == digits[scans].tolist()
        if found[2] == "left of":
            assert other_column - column >= 9 > 3 >= abs(other_row - row)
        else:
            assert other_row - row >= 9 > 3 >= abs(other_column - column)


def test_scans_are_where_the_centres_say() -> None:
    scenes = draw_scenes("test", 200, seed=1)
    axis = torch.arange(SIDE) + 0.5

    inside, outside = [], []
    for image, centres in zip(scenes.images[:, 0], scenes.centres, strict=True):
        distances = (axis[:, None] - centres[:, 0, None, None]).square()
        distances = distances + (axis - centres[:, 1, None, None]).square()
        nearest = distances.amin(dim=0)
        inside.append(image[nearest < 3**2].mean())
        outside.append(image[nearest > 7**2].mean())

    assert (torch.stack(inside) > torch.stack(outside) + 0.2).all()


def test_classes_are_drawn_equally_often() -> None:
    full = draw_scenes("train", 600, seed=0).labels
    few = draw_scenes("train", 150, seed=0).labels

    assert full.bincount().tolist() == [3] * len(CLASSES)
    assert len(set(few.tolist())) == 150
    assert (few < 100).any()
    assert (few >= 100).any()


def test_a_picture_normalises_to_its_image() -> None:
    image = draw_scenes("test", 1, seed=0).images[0]

    pixels = torch.from_numpy(np.array(picture(image)))

    assert torch.equal(normalise(pixels[None])[0], image)


def test_jitter_moves_from_one_range_to_another() -> None:
    halfway = CALM.towards(WIDE, 0.5)

    assert CALM.towards(WIDE, 0.0) == CALM
    assert halfway.rotation == pytest.approx((CALM.rotation + WIDE.rotation) / 2)
    assert halfway.noise[1] == pytest.approx((CALM.noise[1] + WIDE.noise[1]) / 2)


@pytest.mark.parametrize("template", ["{}", *TEMPLATES, "A photo of {}."])
def test_tokens_spell_the_caption(template: str) -> None:
    captions = [template.format(name) for name in CLASSES]

    tokens = tokenize(captions)

    assert tokens.shape == (len(CLASSES), CONTEXT_LENGTH)
    for caption, row in zip(captions, tokens.tolist(), strict=True):
        words = [VOCABULARY[code] for code in row if code != 0]
        assert words == ["<start>", *caption.lower().strip(".").split(), "<end>"]


def test_the_end_is_the_largest_code_and_padding_is_zero() -> None:
    tokens = tokenize(["a three above a seven", "a"])

    assert tokens.argmax(dim=1).tolist() == [6, 2]
    assert tokens.max() == len(VOCABULARY) - 1
    assert tokens[1, 3:].eq(0).all()
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_captions_leave_room_for_sixteen_context_vectors() -> None:
    longest = max(len(split_words(TEMPLATES[0].format(name))) for name in CLASSES)

    assert 1 + 16 + longest + 1 <= CONTEXT_LENGTH


def test_unknown_words_and_long_texts_are_refused() -> None:
    with pytest.raises(InvalidSample, match="'zebra', which the reference does not know"):
        tokenize(["a zebra above a seven"])
    with pytest.raises(InvalidSample, match="does not know"):
        tokenize(["<end>"])
    with pytest.raises(InvalidSample, match="has 27 words, but the reference reads at most 26"):
        tokenize(["a " * 27])


def test_a_missing_checkpoint_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"none\.safetensors.*bitfront\.reference\.train"):
        load_clip(tmp_path / "none.safetensors")


def test_the_checkpoint_is_small_float16_and_says_how_it_was_trained() -> None:
    assert CHECKPOINT.stat().st_size < 2.5e6
    with safe_open(CHECKPOINT, framework="pt") as file:
        notes = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert notes["seed"] == "0"
    assert 0 < int(notes["steps"]) <= Schedule().steps
    assert float(notes["selection_accuracy"]) == pytest.approx(
        measure_accuracy(load_clip(), "selection", 1000), abs=0.03
    )


def test_loaded_weights_are_float32_and_exact_in_float16() -> None:
    weights = load_clip().state_dict()

    for weight in weights.values():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.half().float(), weight)


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    load_clip()

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("template", ["{}", *TEMPLATES])
def test_the_checkpoint_reads_scenes_zero_shot(template: str) -> None:
    accuracy = measure_accuracy(load_clip(), "selection", 400, template=template)

    assert accuracy >= 0.85


def test_cut_captions_have_the_features_of_padded_ones() -> None:
    model = build_clip()
    captions = draw_captions(CLASSES[:20], 1.0, np.random.default_rng(1))
    padded = torch.nn.functional.pad(captions, (0, CONTEXT_LENGTH - captions.shape[1]))

    with torch.no_grad():
        features = encode_captions(model, captions)
        expected = model.encode_text(padded)

    torch.testing.assert_close(features, expected)


def test_wild_captions_end_with_their_class_and_reach_every_position() -> None:
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        tokens = draw_captions(["a two above a six"], 1.0, rng)[0]
        words = [VOCABULARY[code] for code in tokens[tokens != 0].tolist()]
        lengths.add(len(words))
        assert words[-6:] == ["a", "two", "above", "a", "six", "<end>"]

    assert lengths == set(range(7, CONTEXT_LENGTH + 1))


def test_training_again_gives_the_same_weights(tmp_path: Path) -> None:
    schedule = Schedule(
        digit_steps=2, calm_steps=2, ramp_steps=2, wild_steps=2, batch_size=8, interval=4
    )

    for name in ("once", "again"):
        for step, model in train(schedule, seed=1):
            save(model, tmp_path / f"{name}-{step}", {"seed": 1, "steps": step})

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["again-4", "again-8", "once-4", "once-8"]
    once, again = load_file(tmp_path / "once-8"), load_file(tmp_path / "again-8")
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["visual.proj"], load_file(tmp_path / "once-4")["visual.proj"])


def test_stages_grow_from_calm_to_wild() -> None:
    schedule = Schedule(digit_steps=10, calm_steps=20, ramp_steps=40, wild_steps=5)

    assert schedule.steps == 75
    assert [schedule.wildness(step) for step in (0, 30, 40, 70, 74)] == [0, 0, 0.25, 1, 1]


def test_the_last_step_is_kept_between_two_intervals() -> None:
    schedule = Schedule(
        digit_steps=1, calm_steps=1, ramp_steps=1, wild_steps=2, batch_size=4, interval=3
    )

    assert [step for step, _ in train(schedule, seed=0)] == [3, 5]
