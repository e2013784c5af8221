"""Looking at samples keeps few of them in memory, however many there are."""

import io
from typing import ClassVar

from PIL import Image

from bitfront.spec import DataSpec
from objectives.data.inspection import Inspector
from objectives.data.sample import Sample
from objectives.data.split_name import SplitName
from objectives.data.splits import split_samples

COUNT = 400


class Content(bytes):
    """An encoded image that counts how many there are at a time."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self, _content: bytes) -> None:
        Content.alive += 1
        Content.most = max(Content.most, Content.alive)

    def __del__(self) -> None:
        Content.alive -= 1


class Drawn:
    """Images of which each is encoded anew whenever it is asked for."""

    title = "drawn images"

    def __init__(self) -> None:
        self.names = [str(number) for number in range(COUNT)]

    def group(self, index: int) -> str:
        return self.names[index]

    def sample(self, index: int) -> Sample:
        file = io.BytesIO()
        Image.new("RGB", (2, 2), (index % 256, index // 256, 0)).save(file, "PNG")
        return Sample(Content(file.getvalue()), self.where(index))

    def where(self, index: int) -> str:
        return f"image {index}"


def test_splitting_holds_a_few_encoded_images_at_a_time() -> None:
    spec = DataSpec.model_validate(
        {
            "source": "datasets",
            "path": ".",
            "samples": dict.fromkeys((name.value for name in SplitName), COUNT // 4),
        }
    )

    found = split_samples(dict.fromkeys(SplitName, Drawn()), spec, Inspector(workers=1))

    assert sum(map(len, found.indices.values())) == COUNT
    assert 1 <= Content.most <= 4
