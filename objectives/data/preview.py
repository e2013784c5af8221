"""What a job's data are, looked at without its model: samples opened, captions as they will be."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitfront.errors import SpecError
from bitfront.installed_tasks import installed_task
from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import TaskName
from objectives.data.caption_sources import ListedCaptions, open_caption_source
from objectives.data.captions import fill, looks_like_identifier
from objectives.data.choice_sources import ListedChoices
from objectives.data.inspection import Inspector
from objectives.data.pictures import LabelledPictures, PictureSource
from objectives.data.question_sources import open_question_source
from objectives.data.shards import ShardCaptions, ShardLabels
from objectives.data.sources import (
    DatasetSource,
    FolderSource,
    LabelledSource,
    one_classes,
    open_labelled_source,
)
from objectives.data.splits import Source, sources_of, split_samples
from objectives.data.tables import TableCaptions, TableLabels

_CAPTIONS = 3
_LABELLED = (FolderSource, DatasetSource, LabelledPictures, TableLabels, ShardLabels)
_CAPTIONED = (ListedCaptions, TableCaptions, ShardCaptions)


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
    if spec.source is DataSource.PACKAGE:  # whose code runs where the model does
        return DataPreview((f"the {installed_task(str(spec.task)).title}",), ())
    sources = sources_of(spec, _open)
    distinct = list({id(source): source for source in sources.values()}.values())
    labelled = {n: s for n, s in sources.items() if isinstance(s, _LABELLED)}
    captions, warnings = ((), ()) if not labelled else _captions(one_classes(labelled), spec)
    found: tuple[str, ...] = ()
    if inspector is not None:
        splits = split_samples(sources, spec, inspector)
        found = tuple(f"left out: {n} {what}" for what, n in sorted(splits.left_out.items()))
        found += (splits.note,) if splits.note else ()
    counted = tuple(_counted(source, is_only=len(distinct) == 1) for source in distinct)
    return DataPreview((*counted, *found, *captions), warnings)


def _counted(source: LabelledSource | Source, *, is_only: bool) -> str:
    """How many samples a source has."""
    if isinstance(source, (*_LABELLED, PictureSource)):
        is_plain = is_only and isinstance(source, _LABELLED)
        return source.summary if is_plain else f"{source.title}: {source.summary}"
    if isinstance(source, _CAPTIONED):
        return f"{source.title}: {len(source.names)} images with {source.count} captions"
    return f"{source.title}: {len(source.names)} questions"


def _captions(classes: Sequence[str], spec: DataSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A note with captions as they will be, and a warning of names that tell a model nothing."""
    captions = [fill(spec.templates[0], name) for name in classes[:_CAPTIONS]]
    more = ", ..." if len(classes) > _CAPTIONS else ""
    shown = ", ".join(map(repr, captions))
    codes = [name for name in classes if looks_like_identifier(name)]
    warnings: tuple[str, ...] = ()
    if codes:
        warnings = (
            f"data.classes: {len(codes)} of {len(classes)} class names look like "
            f"identifiers, such as {codes[0]!r}, which tell a model nothing: name the classes in "
            "data.classes",
        )
    return (f"captions: {shown}{more}",), warnings


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
    if spec.source is DataSource.CAPTIONS or spec.task is TaskName.RETRIEVAL:
        return open_caption_source(spec)
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
