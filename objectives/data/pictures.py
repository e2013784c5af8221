"""Pictures without labels: a folder of them, and what a generative model is asked about each."""

from collections.abc import Sequence

from PIL import Image

from bitfront.errors import SpecError
from bitfront.spec import DataSpec
from objectives.data.captions import class_names, names_in
from objectives.data.decoded import DecodedImages
from objectives.data.image_folder import existing_folder, list_pictures, names_below, shown
from objectives.data.sample import Sample

ASKED = "describe the picture"
"""What stands in the place of the question where a prompt has one."""


class PictureSource:
    """All images of a folder and of those in it."""

    def __init__(self, spec: DataSpec) -> None:
        root = existing_folder(spec.path)
        self._files, left_out = list_pictures(root)
        self.title = f"folder {shown(root)}"
        left = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
        self.summary = f"{len(self._files)} images" + (f"; left out: {left}" if left else "")
        self.names = names_below(root, self._files)
        self._background = spec.background

    def group(self, index: int) -> str:
        """The file's name: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The file."""
        return Sample(self._files[index])

    def content(self, index: int) -> bytes:
        """The file as it is on disk."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The file's path."""
        return shown(self._files[index])

    def question(self, index: int) -> str:  # noqa: ARG002 - all are asked the same
        """What is asked about every image."""
        return ASKED

    def answers(self, index: int) -> Sequence[str]:  # noqa: ARG002 - none is known
        """None: the full model says what is right."""
        return ()

    def image(self, index: int, images: DecodedImages) -> Image.Image:
        """The image in RGB."""
        return images.open(self.sample(index), self.where(index), self._background)


class LabelledPictures(PictureSource):
    """The same beside the classes that they may show; no label is known."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        if spec.classes is None:
            raise SpecError(
                f"data.classes: the {self.title} has no classes: list what its images may show, or "
                "name a file that does"
            )
        names = names_in(spec.classes)
        if len(names) < 2:
            raise SpecError(
                f"data.classes: there is one class, {names[0]!r}, and nothing to tell it from: "
                "list more of what the images may show"
                if names
                else "data.classes is empty: list what the images may show"
            )
        self.classes = class_names(names, names, self.title)
        self.labels = [-1] * len(self.names)
