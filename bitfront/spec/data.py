"""The section `data`: the samples, their splits, and what the model does with them."""

import re
import warnings
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from bitfront.spec.section import Section
from bitfront.tasks import TaskMeasure, TaskName

CLASS_LISTS: Final = ("imagenet", "cifar10", "cifar100")
"""Well-known data sets whose class names `data.classes` may name in place of a list."""


def _class_list(named: object) -> object:
    """The name of the class list that is meant, such as by ImageNet or CIFAR-10."""
    plain = named.lower().replace("-", "") if isinstance(named, str) else None
    return plain if plain in CLASS_LISTS else named


def _refuse_other_colours(text: str) -> None:
    from PIL import ImageColor  # takes a while to import, and few jobs name a colour

    try:
        is_opaque = len(ImageColor.getrgb(text)) == 3
    except ValueError:
        is_opaque = False
    if not is_opaque:
        raise ValueError(
            f"data.background: {text!r} is not an opaque colour: write it as CSS does, such as "
            "white or '#808080'"
        )


class DataSource(StrEnum):
    """Where the samples come from."""

    REFERENCE = "reference"
    IMAGE_FOLDER = "image_folder"
    DATASETS = "datasets"
    QUESTIONS = "questions"
    CAPTIONS = "captions"
    IMAGES = "images"
    TABLE = "table"
    WEBDATASET = "webdataset"
    PACKAGE = "package"

    @property
    def is_file(self) -> bool:
        """Whether the samples are listed in a file, and not in a folder."""
        return self in (DataSource.QUESTIONS, DataSource.CAPTIONS, DataSource.TABLE)


class Samples(Section):
    """How many samples each split takes."""

    calibration: int = Field(128, ge=1)
    tuning: int = Field(512, ge=1)
    selection: int = Field(512, ge=1)
    test: int = Field(1024, ge=1)


class SplitPaths(Section):
    """Where single splits take their samples, in place of `data.path`, in the same form."""

    calibration: str | None = None
    tuning: str | None = None
    selection: str | None = None
    test: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The paths that are given, by the name of the split."""
        known: dict[str, str | None] = self.model_dump()
        return {name: path for name, path in known.items() if path is not None}


OwnOrKnownTask = Annotated[
    TaskName | Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)],
    Field(union_mode="left_to_right"),
]
"""A task that bitfront has, or the name of one that an installed package brings."""


class DataSpec(Section):
    """The task: images with one class each, with captions, or with questions and their answers.

    `task` says what the model does with them, where model and source leave a choice. `measure` says
    what `error` is 1 less: for classification `accuracy` over all images, or
    `mean_per_class_accuracy`, in which every class counts alike however many images it has; for
    retrieval the mean of the recall in both directions, at 1, 5 or 10; for multiple choice the
    accuracy of the option with the highest `likelihood`, or of the `letter` that the model writes.
    Each option is then listed behind the question as `option_format` says; empty lists none, and
    the model writes the option itself. For `images` without labels it is the agreement with the
    model in full precision: `divergence` counts each prediction by `exp(-KL)`, `agreement` whether
    the same class, or the same token, is the most probable one. Data of source `package` are those
    that the installed package brings which `task` names: see docs/howto/task.md.

    `path` is a folder with one sub-folder a class, a `datasets` dataset saved to disk, a JSON Lines
    file of questions or captions, captions as COCO has them, a `table` in CSV or Parquet with a
    path of an image a row, or `webdataset` shards: a folder of tar files, one of them, or several
    as `train/{000..012}.tar`, on a disk or at an address that fsspec knows. The images of a file
    lie beside it, or in `images`. `splits` names other paths for single splits; pictures that are
    in two of them come into one split only. Captions of classes are made from `templates`; a
    question is put to the model as `prompt`. An answer is what `answer_pattern` finds in the
    model's text (its first group, where it has one); without a pattern it is the whole text, which
    must end within `answer_tokens` tokens. `horizontal_flip` says that a mirrored picture keeps its
    class: then augmented views may be mirrored.

    `classes` says what the classes are called in captions: a mapping from the names that the
    data have, a list in the order of the labels, `imagenet`, `cifar10` or `cifar100`, or a file
    with one of these. `background` is the colour that shows through transparent images, and
    `skip_unreadable` leaves out images that cannot be read instead of refusing the job.
    """

    source: DataSource
    task: OwnOrKnownTask | None = None
    measure: TaskMeasure | None = None
    path: str | None = None
    images: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    question_column: str = "question"
    answer_column: str = "answer"
    caption_column: str = "caption"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    prompt: str = "USER: <image>\n{} ASSISTANT:"
    option_format: str = "\n{letter}. {option}"
    answer_pattern: str | None = None
    answer_tokens: int = Field(16, ge=1)
    samples: Samples = Samples()
    splits: SplitPaths = SplitPaths()
    horizontal_flip: bool = False
    classes: Annotated[
        dict[str, str] | tuple[str, ...] | str | None, BeforeValidator(_class_list)
    ] = None
    background: str = "white"
    skip_unreadable: bool = False
    seed: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=1)

    @property
    def is_unlabelled(self) -> bool:
        """Whether nothing is known to be right: then the model in full precision says it."""
        return self.task is TaskName.AGREEMENT or self.source is DataSource.IMAGES

    @property
    def classes_file(self) -> str | None:
        """The file that holds the names of the classes, if they are in one."""
        named = self.classes
        return named if isinstance(named, str) and named not in CLASS_LISTS else None

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if self.source is DataSource.PACKAGE and self.task is None:
            raise ValueError(
                "data of source package needs a task: name one of an installed package"
            )
        brings_data = self.source in (DataSource.REFERENCE, DataSource.PACKAGE)
        if not brings_data and not self.path:
            raise ValueError(f"data of source {self.source} needs a path")
        if not self.templates:
            raise ValueError("data.templates is empty: give one, such as 'a photo of a {}.'")
        if any("{}" not in template for template in self.templates):
            raise ValueError("data.templates: each one needs {} where the class name goes")
        if self.option_format and "{option}" not in self.option_format:
            raise ValueError("data.option_format needs {option} where an option goes")
        if "{}" not in self.prompt and self.source is not DataSource.IMAGES:
            raise ValueError("data.prompt needs {} where the question goes")
        if self.background != DataSpec.model_fields["background"].default:
            _refuse_other_colours(self.background)
        if self.answer_pattern is not None:
            try:
                with warnings.catch_warnings(action="ignore", category=FutureWarning):
                    re.compile(self.answer_pattern)  # of sets that a later Python may read anew
            except re.error as error:
                raise ValueError(
                    f"data.answer_pattern is not a regular expression: {error}"
                ) from error
        return self
