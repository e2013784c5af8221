"""Samples are split so that no image lies in two splits, and each one can be read."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from PIL import Image

from bitfront.errors import InvalidSample, MissingData
from bitfront.spec import DataSource, DataSpec, Samples
from objectives.data.inspection import Inspection, Inspector, inspect_sample
from objectives.data.sample import Sample
from objectives.data.split_name import SplitName
from objectives.data.splits import Splits, sources_of, split_samples


def image(number: int) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Images:
    """Images by number: those of one number are the same."""

    title = "test images"

    def __init__(self, numbers: Sequence[int], groups: Sequence[str] | None = None) -> None:
        self.numbers = numbers
        self.names = [f"image {place}" for place in range(len(numbers))]
        self._groups = groups or self.names

    def group(self, index: int) -> str:
        return self._groups[index]

    def sample(self, index: int) -> Sample | None:
        number = self.numbers[index]
        return Sample(b"" if number < 0 else image(number), self.where(index))

    def where(self, index: int) -> str:
        return self.names[index]


def data(each: int, **settings: object) -> DataSpec:
    samples = Samples(calibration=each, tuning=each, selection=each, test=each)
    return DataSpec.model_validate(
        {"source": DataSource.IMAGE_FOLDER, "path": "x", "samples": samples, **settings}
    )


def split(source: Images, spec: DataSpec, **others: Images) -> Splits:
    sources = {name: others.get(name.value, source) for name in SplitName}
    return split_samples(sources, spec, Inspector())


@given(numbers=st.lists(st.integers(0, 12), min_size=8, max_size=40), seed=st.integers(0, 2**31))
def test_no_image_lies_in_two_splits(numbers: list[int], seed: int) -> None:
    try:
        found = split(Images(numbers), data(2, seed=seed))
    except MissingData:
        reject()  # too many of them are copies

    contents = {name: {numbers[i] for i in own} for name, own in found.indices.items()}
    places = [index for own in found.indices.values() for index in own]
    assert all(len(own) == 2 for own in found.indices.values())
    assert len(set(places)) == 8
    names = list(SplitName)
    assert not any(contents[a] & contents[b] for a in names for b in names if a is not b)


def test_an_image_that_is_stored_in_two_ways_is_one_image() -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    stored = []
    for form in ("PNG", "BMP", "TIFF"):
        stream = BytesIO()
        picture.save(stream, form)
        stored.append(inspect_sample(Sample(stream.getvalue(), "here")).digest)

    assert len(set(stored)) == 1


def test_a_further_sample_moves_no_other_one() -> None:
    fewer = split(Images(list(range(40))), data(5))
    more = split(Images([*range(40), 99]), data(5))

    moved = {40} & {index for own in more.indices.values() for index in own}
    if not moved:
        assert fewer.indices == more.indices
    same = [set(fewer.indices[name]) & set(more.indices[name]) for name in SplitName]
    assert sum(map(len, same)) >= 15


def test_samples_of_one_group_stay_together() -> None:
    # Six questions about each of eight images.
    numbers = [place // 6 for place in range(48)]
    found = split(Images(numbers, [f"photo {n}" for n in numbers]), data(6))

    contents = [{numbers[index] for index in own} for own in found.indices.values()]
    assert all(len(own) == 1 for own in contents)


def test_what_cannot_be_read_is_named_all_at_once() -> None:
    with pytest.raises(InvalidSample) as caught:
        split(Images([-1, *range(10), -1]), data(3))

    text = str(caught.value)
    assert text.startswith("2 samples cannot be used (data.skip_unreadable: true leaves them out)")
    assert "the image image 0 is empty (0 bytes)" in text
    assert "the image image 11 is empty (0 bytes)" in text


def test_what_cannot_be_read_is_left_out_where_that_is_asked_for() -> None:
    found = split(Images([-1, *range(12), -1]), data(3, skip_unreadable=True))

    assert found.left_out == {"images that cannot be read": 2}
    assert not {0, 13} & {index for own in found.indices.values() for index in own}


def test_too_few_samples_are_told_with_what_was_left_out() -> None:
    with pytest.raises(MissingData) as caught:
        split(Images([-1, *range(11)]), data(3, skip_unreadable=True))

    assert str(caught.value) == (
        "the test images has 11 samples, without 1 images that cannot be read, but the splits ask "
        "for 12 (calibration 3, tuning 3, selection 3, test 3): lower data.samples"
    )


class Counting(Inspector):
    """Counts what it opens."""

    opened = 0

    def _open(self, samples: Sequence[Sample]) -> list[Inspection]:
        self.opened += len(samples)
        return [inspect_sample(sample) for sample in samples]


def test_a_file_is_opened_once_until_it_changes(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(image(number))
    files[3].write_bytes(b"broken")
    samples = [Sample(file) for file in files]
    memory = tmp_path / "memory" / "inspected.db"
    first = Counting(memory).inspect(samples)

    again, changed = Counting(memory), Counting(memory)
    assert again.inspect(samples) == first
    files[1].write_bytes(image(9) + b" ")
    second = changed.inspect(samples)

    assert again.opened == 0
    assert changed.opened == 1
    assert first[3].problem is not None
    assert str(files[3]) in first[3].problem
    assert second[1].digest != first[1].digest


def test_a_damaged_memory_is_done_without(tmp_path: Path) -> None:
    file, memory = tmp_path / "1.png", tmp_path / "inspected.db"
    file.write_bytes(image(1))
    memory.write_bytes(b"not a database, but long enough to be read as one" * 20)

    assert Inspector(memory).inspect([Sample(file)]) == [inspect_sample(Sample(file))]


def test_many_files_are_opened_in_parallel(tmp_path: Path) -> None:
    samples = []
    for number in range(300):
        file = tmp_path / f"{number}.png"
        file.write_bytes(image(number))
        samples.append(Sample(file))
    seen: list[int] = []

    found = Inspector(workers=2, on_progress=seen.append).inspect(samples)

    assert found == [inspect_sample(sample) for sample in samples]
    assert sum(seen) == 300


USUAL = DataSpec.model_validate({"source": DataSource.IMAGE_FOLDER, "path": "x"})


@given(count=st.integers(4, 40))
def test_usual_splits_shrink_to_what_there_is(count: int) -> None:
    found = split(Images(range(count)), USUAL)

    sizes = {name: len(own) for name, own in found.indices.items()}
    assert all(sizes.values())
    assert sum(sizes.values()) <= count
    assert sizes[SplitName.TEST] == max(1, 1024 * count // 2176)
    assert found.note.startswith("the test images has fewer than the usual 2176 samples")
    assert f"test {sizes[SplitName.TEST]} (data.samples chooses others)" in found.note


def test_usual_splits_shrink_again_where_samples_are_copies_or_cannot_be_read() -> None:
    numbers = [*range(20), *[0] * 30, *[-1] * 10]

    found = split(Images(numbers), USUAL.model_copy(update={"skip_unreadable": True}))

    places = [numbers[index] for own in found.indices.values() for index in own]
    assert min(places) >= 0
    assert all(found.indices.values())
    contents = [{numbers[index] for index in own} for own in found.indices.values()]
    assert sum(map(len, contents)) == len(set().union(*contents))


def test_splits_that_a_job_names_do_not_shrink() -> None:
    with pytest.raises(MissingData, match=r"has 7 samples, but the splits ask for 8"):
        split(Images(range(7)), data(2))
    with pytest.raises(MissingData, match=r"has 3 samples, but the splits ask for 4"):
        split(Images(range(3)), USUAL)


def test_a_split_of_its_own_path_takes_no_picture_that_another_has() -> None:
    test = Images([*range(6), *range(100, 104)])

    found = split(Images(range(9)), data(3), test=test)

    mine = {name: {own[i] for i in found.indices[name]} for name, own in _numbers(test).items()}
    assert {len(own) for own in mine.values()} == {3}
    assert mine[SplitName.TEST] <= set(test.numbers)
    assert not any(mine[a] & mine[b] for a in SplitName for b in SplitName if a is not b)
    with pytest.raises(MissingData, match="without 4 copies of images in another split"):
        split(Images(range(9)), data(3), test=Images([0, 1, 2, 3]))


def _numbers(test: Images) -> dict[SplitName, list[int]]:
    own = {name: list(range(9)) for name in SplitName}
    return {**own, SplitName.TEST: list(test.numbers)}


def test_each_path_shrinks_its_own_splits_only() -> None:
    found = split(Images(range(3000)), USUAL, test=Images(range(5000, 5040)))

    assert {name: len(own) for name, own in found.indices.items()} == {
        **{name: getattr(Samples(), name.value) for name in SplitName},
        SplitName.TEST: 40,
    }
    assert found.note.startswith("the test images has fewer than the usual 1024 samples")


def test_splits_of_one_path_share_a_source() -> None:
    opened: list[str | None] = []

    def opens(spec: DataSpec) -> Images:
        opened.append(spec.path)
        return Images([1])

    spec = DataSpec.model_validate(
        {**data(1).model_dump(), "splits": {"test": "y", "tuning": "x", "selection": "y"}}
    )
    found = sources_of(spec, opens)

    assert opened == ["x", "y"]
    assert found[SplitName.TEST] is found[SplitName.SELECTION]
    assert found[SplitName.CALIBRATION] is found[SplitName.TUNING]
