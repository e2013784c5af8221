"""A first job file: what a person has is recognised, and everything else gets a good default."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from bitfront.errors import SpecError
from bitfront.job import CHECKPOINT_SUFFIXES, examine_job
from bitfront.spec import (
    REFERENCE_CLIP,
    REFERENCE_LLAVA,
    DataSource,
    DataSpec,
    ModelSource,
    Samples,
)
from bitfront.tasks import TaskName, meant_tasks
from bitfront.units import size_text

_BUNDLED: Final = {
    "bundled": REFERENCE_CLIP,
    REFERENCE_CLIP: REFERENCE_CLIP,
    REFERENCE_LLAVA: REFERENCE_LLAVA,
}
_TABLES: Final = frozenset({".csv", ".tsv", ".parquet", ".pq"})
_PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_BUNDLED_SAMPLES: Final = "{calibration: 96, tuning: 512, selection: 512, test: 1024}"
_BUNDLED_CAPTIONS: Final = "{calibration: 96, tuning: 200, selection: 200, test: 200}"
_COMMENTS: Final = 34
_FEWEST: Final = 40
# What each split takes of the samples that there are, where there are few.
_SHARES: Final = {"calibration": 0.06, "tuning": 0.24, "selection": 0.24, "test": 0.46}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstJob:
    """What a person says of their job.

    Attributes:
        model: `bundled`, a name of open_clip or of a hub, or a folder.
        weights: Of an open_clip name: a pretrained tag or a file.
        data: `bundled`, a folder, or a file of questions or captions.
        task: What the model does, where model and data leave a choice; None for the usual task.
        max_nbytes: The largest checkpoint; None for no limit.
        study: The study's name.
        trials: How many trials.
    """

    model: str
    weights: str | None = None
    data: str = "bundled"
    task: str | None = None
    max_nbytes: int | None = None
    study: str = "first"
    trials: int = 100

    @property
    def is_bundled(self) -> bool:
        """Whether the model is bitfront's own."""
        return self.source is ModelSource.REFERENCE

    @property
    def needs_weights(self) -> bool:
        """Whether the model has no weights of its own and none are given."""
        is_open_clip = self.source is ModelSource.OPEN_CLIP
        return is_open_clip and ":" not in self.name and self.weights is None

    @property
    def source(self) -> ModelSource:
        """Which library the model comes from."""
        if self.model in _BUNDLED:
            return ModelSource.REFERENCE
        if self.model.startswith(("local-dir:", "hf-hub:")) or self.weights is not None:
            return ModelSource.OPEN_CLIP
        if _expanded(self.model).is_dir():
            has_open_clip = (_expanded(self.model) / "open_clip_config.json").is_file()
            return ModelSource.OPEN_CLIP if has_open_clip else ModelSource.TRANSFORMERS
        looks_local = self.model.startswith((".", "/", "~", "$"))
        return (
            ModelSource.TRANSFORMERS if "/" in self.model or looks_local else ModelSource.OPEN_CLIP
        )

    @property
    def name(self) -> str:
        """The model as the job names it."""
        if self.source is ModelSource.REFERENCE:
            return _BUNDLED[self.model]
        if _expanded(self.model).is_dir():
            place = str(_expanded(self.model).absolute())
            return f"local-dir:{place}" if self.source is ModelSource.OPEN_CLIP else place
        return self.model


def write_job(first: FirstJob, path: Path) -> None:
    """Writes the job file, if it is a job that can be validated; a file that is there stays.

    Raises:
        SpecError: What was said is no job, or the file cannot be written.
    """
    text = job_text(first)
    _check(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SpecError(f"{path} is there already: name another file, or remove it") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}") from error


def _check(text: str) -> None:
    """Refuses what `validate` would refuse at once, in its own words but for the lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(text, encoding="utf-8")
        examined = examine_job(path)
    if examined.mistakes:
        raise SpecError("\n".join(sentence for _, sentence in examined.mistakes))


def job_text(first: FirstJob) -> str:
    """The commented job file.

    Raises:
        SpecError: There is nothing at the place of the data, or it is of no known kind.
    """
    lines = [
        "# A search job of bitfront: 'bitfront validate' checks it, 'bitfront submit' starts it.",
        "# 'bitfront schema' lists every key; what is left out here has its default.",
        f"study: {_scalar(first.study)}",
        "",
        "model:",
        *_model_lines(first),
        "",
        "data:",
        *_data_lines(first),
        "",
        *_space_lines(first),
        "",
        "# What every configuration on the front must hold; also max_error: 15%, max_bits: 4, ...",
        *_constraint_lines(first),
        "",
        "search:",
        _commented("  workers: 2", "trials that run side by side"),
        "",
        "stop:",
        _commented(f"  trials: {first.trials}", "or after a time, such as time_s: 3600"),
    ]
    return "\n".join(lines) + "\n"


def _model_lines(first: FirstJob) -> list[str]:
    lines = [f"  source: {first.source.value}", f"  name: {_scalar(first.name)}"]
    if first.weights is not None:
        local = _expanded(first.weights)
        named = str(local.absolute()) if local.is_file() else first.weights
        lines.append(f"  weights: {_scalar(named)}")
    elif first.needs_weights:
        raise SpecError(
            f"{first.name} has no weights of its own: give --weights, a pretrained tag or a file "
            f"({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    return [*lines, _commented("  device: auto", "auto, cpu, cuda")]


def _data_lines(first: FirstJob) -> list[str]:
    if first.data == "bundled":
        if not first.is_bundled:
            raise SpecError(
                f"the bundled data are for the bundled models: name data for {first.model}"
            )
        finds = first.task == TaskName.RETRIEVAL
        samples = _BUNDLED_CAPTIONS if finds else _BUNDLED_SAMPLES
        return [f"  source: {DataSource.REFERENCE.value}", *_task(first), f"  samples: {samples}"]
    path = _expanded(first.data)
    if not path.exists():
        raise SpecError(f"there are no data at {path.absolute()}: give a folder or a file")
    source, count = _recognised(path, first.task)
    lines = [
        f"  source: {source.value}",
        *_task(first, path),
        f"  path: {_scalar(str(path.absolute()))}",
    ]
    if source is DataSource.IMAGES:
        lines.append(_commented("  # classes: FILE", "what they may show, one a line, for a CLIP"))
        prompt = '  # prompt: "USER: <image>\\nDescribe it. ASSISTANT:"'
        lines.append(_commented(prompt, "for a LLaVA"))
    elif source is DataSource.CAPTIONS:
        lines.append(_commented("  # images: FOLDER", "where they do not lie beside the file"))
    elif source is DataSource.QUESTIONS:
        prompt = '  prompt: "USER: <image>\\n{} ASSISTANT:"'
        lines.append(_commented(prompt, "{} is the question"))
    else:
        lines.append(_commented('  templates: ["a photo of a {}."]', "{} is the name of the class"))
    lines.append(f"  samples: {_samples(count)}")
    return lines


def _task(first: FirstJob, path: Path | None = None) -> list[str]:
    """The task, where one is named or the first question of a file has options."""
    named = first.task
    if named is None and path is not None and path.is_file():
        with path.open("rb") as file:
            named = TaskName.CHOICE.value if b'"options"' in file.readline() else None
    return [] if named is None else [f"  task: {named}"]


def _recognised(path: Path, task: str | None) -> tuple[DataSource, int | None]:
    """What kind of data there is, and how many samples; None where that takes a library to know."""
    if path.is_file() and path.suffix.lower() in _TABLES:
        return DataSource.TABLE, None
    if path.suffix.lower() == ".tar" or any(path.glob("*.tar")):
        return DataSource.WEBDATASET, None
    if path.is_file():
        if path.suffix.lower() not in (".jsonl", ".json"):
            raise SpecError(
                f"{path} is not a file of questions or captions: such a file is JSON Lines with "
                "question, answers and image, or with image and captions, and its name ends in "
                ".jsonl; tables end in .csv, .tsv or .parquet, shards in .tar"
            )
        with path.open("rb") as file:
            first = file.readline().strip()
            if b'"caption' not in first and first.endswith(b"}"):  # COCO's may take many lines
                return DataSource.QUESTIONS, 1 + sum(1 for line in file if line.strip())
        from objectives.data.caption_sources import ListedCaptions

        data = DataSpec(source=DataSource.CAPTIONS, path=str(path))
        return DataSource.CAPTIONS, len(ListedCaptions(data).names)
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return DataSource.DATASETS, None
    if task == TaskName.AGREEMENT:
        return DataSource.IMAGES, _count_pictures(path)
    classes = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    if not classes:
        raise SpecError(
            f"{path} has no sub-folders: a folder of images has one for each class, with its "
            "images; --task agreement takes images without classes"
        )
    counts = [_count_pictures(folder) for folder in classes]
    filled = sum(count > 0 for count in counts)
    if filled < 2 or sum(counts) < _FEWEST:
        raise SpecError(
            f"{path} has {sum(counts)} images in {filled} classes: a search needs at least "
            f"{_FEWEST} in two classes"
        )
    return DataSource.IMAGE_FOLDER, sum(counts)


def _count_pictures(folder: Path) -> int:
    return sum(
        Path(name).suffix.lower() in _PICTURES and not name.startswith(".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _samples(count: int | None) -> str:
    """The sizes of the splits: the usual ones, or shares of the samples where those are too few."""
    usual: dict[str, int] = Samples().model_dump()
    if count is not None and count < sum(usual.values()):
        usual = {name: max(1, int(count * share)) for name, share in _SHARES.items()}
    listed = ", ".join(f"{name}: {size}" for name, size in usual.items())
    return f"{{{listed}}}"


def _space_lines(first: FirstJob) -> list[str]:
    is_bundled = first.data == "bundled"
    source = (
        DataSource.REFERENCE if is_bundled else _recognised(_expanded(first.data), first.task)[0]
    )
    asks = first.name == REFERENCE_LLAVA or source is DataSource.QUESTIONS
    recovers = all(task.recovers for task in meant_tasks(source, first.task, asks=asks))
    widths = "[3, 4, 6, 8]" if asks else "[2, 3, 4, 6, 8]"
    recovery = [
        "  # P4Q: prompts and adapters that repair what is lost; training them takes longer.",
        "  # recovery: {context_length: [0, 4], reduction: [0, 4]}",
    ]
    return [
        "space:",
        _commented(f"  weight_bits: {widths}", "what each layer may have"),
        f"  activation_bits: {'[6, 8]' if asks else '[8]'}",
        *(recovery if recovers else ()),
    ]


def _constraint_lines(first: FirstJob) -> list[str]:
    if first.max_nbytes is None:
        return ["# constraints:", "#   max_nbytes: 60MB"]
    return [
        "constraints:",
        _commented(f"  max_nbytes: {first.max_nbytes}", size_text(first.max_nbytes)),
    ]


def _commented(line: str, comment: str) -> str:
    """A line and what it means, in a column of their own."""
    return f"{line.ljust(_COMMENTS)} # {comment}"


def _scalar(text: str) -> str:
    """The text as YAML has it, in quotes where it needs some."""
    return yaml.safe_dump(text, width=10_000, allow_unicode=True).splitlines()[0]


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
