"""What a job's data are, looked at without its model: samples opened, captions as they will be."""

from dataclasses import dataclass

from bitfront.errors import SpecError
from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import TaskName
from objectives.data.caption_sources import ListedCaptions
from objectives.data.captions import fill, looks_like_identifier
from objectives.data.choice_sources import ListedChoices
from objectives.data.inspection import Inspector
from objectives.data.pictures import LabelledPictures, PictureSource
from objectives.data.question_sources import open_question_source
from objectives.data.sources import (
    DatasetSource,
    FolderSource,
    LabelledSource,
    open_labelled_source,
)
from objectives.data.splits import Source, split_samples

_CAPTIONS = 3


@dataclass(frozen=True, slots=True)
class DataPreview:
    """What was found.

    Attributes:
        notes: What was found and left out, and some captions.
        warnings: What may be a mistake.
    """

    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def preview_data(spec: DataSpec, inspector: Inspector | None) -> DataPreview:
    """Lists the samples of a job, and opens those that its splits take.

    Args:
        spec: The data.
        inspector: Opens the samples; None leaves them unopened.

    Raises:
        BitfrontError: As the loading of the data does.
    """
    if spec.source is DataSource.REFERENCE:
        return DataPreview(_bundled_notes(spec), ())
    source = _open(spec)
    left_out: tuple[str, ...] = ()
    if inspector is not None:
        splits = split_samples(source, spec, inspector)
        left_out = tuple(
            f"left out: {count} {what}" for what, count in sorted(splits.left_out.items())
        )
        left_out += (splits.note,) if splits.note else ()
    if isinstance(source, FolderSource | DatasetSource | LabelledPictures):
        return _classes(source, spec, left_out)
    if isinstance(source, PictureSource):
        return DataPreview((f"{source.title}: {source.summary}", *left_out), ())
    if isinstance(source, ListedCaptions):
        counted = f"{len(source.names)} images with {source.count} captions"
        return DataPreview((f"{source.title}: {counted}", *left_out), ())
    return DataPreview((f"{source.title}: {len(source.names)} questions", *left_out), ())


def _classes(source: LabelledSource, spec: DataSpec, left_out: tuple[str, ...]) -> DataPreview:
    captions = [fill(spec.templates[0], name) for name in source.classes[:_CAPTIONS]]
    more = ", ..." if len(source.classes) > _CAPTIONS else ""
    shown = ", ".join(map(repr, captions))
    codes = [name for name in source.classes if looks_like_identifier(name)]
    warnings: tuple[str, ...] = ()
    if codes:
        warnings = (
            f"data.classes: {len(codes)} of {len(source.classes)} class names look like "
            f"identifiers, such as {codes[0]!r}, which tell a model nothing: name the classes in "
            "data.classes",
        )
    return DataPreview((source.summary, *left_out, f"captions: {shown}{more}"), warnings)


def _bundled_notes(spec: DataSpec) -> tuple[str, ...]:
    """A word where the bundled captions are fewer than the job asks for."""
    if spec.task is not TaskName.RETRIEVAL:
        return ()
    # It loads torch, which looking at a person's own samples does not take.
    from objectives.data.reference_captions import MOST_SCENES

    if max(spec.samples.model_dump().values()) <= MOST_SCENES:
        return ()
    return (
        f"bundled captions: {MOST_SCENES} images a split at most, for more would have the same "
        "captions",
    )


def _open(spec: DataSpec) -> LabelledSource | Source:
    if spec.source is DataSource.QUESTIONS:
        return ListedChoices(spec) if spec.task is TaskName.CHOICE else open_question_source(spec)
    if spec.source is DataSource.CAPTIONS:
        return ListedCaptions(spec)
    if spec.source is DataSource.IMAGES:
        return PictureSource(spec) if spec.classes is None else LabelledPictures(spec)
    try:
        return open_labelled_source(spec)
    except SpecError as error:
        # Whether a dataset has classes or questions is the model's matter: either may do.
        if spec.source is not DataSource.DATASETS:
            raise
        try:
            return open_question_source(spec)
        except SpecError:
            raise error from None
