"""Tasks of installed packages: their samples in streams, and what identifies them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import BitfrontError, SpecError
from bitfront.installed_tasks import InstalledTask, installed_task
from bitfront.own_task import OwnTask, TaskMaker
from bitfront.plan import digest
from bitfront.spec import DataSpec
from bitfront.vlm import LayeredModel
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.streams import Rows, Stream

# Of the section `data`: what says where samples are, how many and in which batches, and not what
# the task makes of them, which their contents say.
_PLACES = {
    *("path", "images", "splits", "samples", "batch_size"),
    *("source", "task", "measure", "horizontal_flip", "skip_unreadable"),
}


class OwnStream(Stream):
    """Samples of a person's own task, through all towers of the model."""

    are_independent = False  # of towers that do not see samples, such as texts that all share

    def __init__(self, own: OwnTask, model: LayeredModel, name: str, batch_size: int) -> None:
        self._own = own
        self.key = name
        self.towers = frozenset(layer.tower for layer in model.layers)
        self._batches = torch.split(torch.arange(own.count(name)), batch_size)
        self.sizes = tuple(map(len, self._batches))
        self._shape: torch.Size | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample's logits: rows, where there are several, and classes."""
        if self._shape is None:
            with torch.no_grad():
                self._logits([0])
        assert self._shape is not None
        return tuple(self._shape)

    @property
    def rows(self) -> tuple[int, ...]:  # type: ignore[override]  # known once a sample has run
        """Rows of each batch's output."""
        each = 1 if len(self.shape) == 1 else self.shape[0]
        return tuple(size * each for size in self.sizes)

    def run(
        self,
        batch: int,
        *,
        rows: Rows = slice(None),
        stand_in: bool = False,  # noqa: ARG002 - the task reads all of its samples
    ) -> Float[Tensor, "rows classes"]:
        """The logits of a batch, the rows of each sample one after the other."""
        return self._logits(self._batches[batch][rows].tolist()).flatten(0, -2)

    def _logits(self, places: list[int]) -> Tensor:
        found = self._own.logits(self.key, places)
        shape = found.shape[1:]
        if len(found) != len(places) or len(shape) not in (1, 2) or shape != (self._shape or shape):
            raise SpecError(
                f"the task's logits of {len(places)} samples of the split {self.key} have the "
                f"shape {tuple(found.shape)}: it must be (samples, classes) or (samples, rows, "
                "classes), with as many rows and classes for every sample"
            )
        self._shape = shape
        return found


@dataclass(frozen=True)
class InstalledPackageTask(Task):
    """A person's own task with its model.

    Attributes:
        model: What its samples run through.
        own: The task.
        package: Where it comes from.
        by_split: The samples of each split.
        identities: The hash of each split.
    """

    model: LayeredModel
    own: OwnTask
    package: InstalledTask
    by_split: Mapping[SplitName, OwnStream]
    identities: Mapping[SplitName, str]

    @property
    def class_count(self) -> int:
        """Zero: what the classes are is the task's own matter."""
        return 0

    def stream(self, name: SplitName) -> OwnStream:
        """The samples of a split."""
        return self.by_split[name]

    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """The samples of a split, in one stream."""
        return (self.by_split[name],)

    def scores(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows classes"]:
        """The logits of all rows."""
        (logits,) = outputs.values()
        return logits

    def split_identity(self, name: SplitName) -> str:
        """The hash of package, version, code, settings and samples."""
        return self.identities[name]

    def errors(self, name: SplitName, logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " n"]:
        """Each sample's share in the error.

        Raises:
            SpecError: They are not one for each sample, or not between 0 and 1.
        """
        count = self.own.count(name.value)
        found = self.own.errors(name.value, logits.reshape(count, *self.by_split[name].shape))
        if found.shape != (count,) or not bool(((found >= 0) & (found <= 1)).all()):
            raise SpecError(
                f"the errors of the {self.package.title} on the split {name} have the shape "
                f"{tuple(found.shape)} and lie between {float(found.min()):g} and "
                f"{float(found.max()):g}: it must be ({count},), a share between 0 and 1 for each "
                "sample"
            )
        return found.double().cpu()


def load_own(spec: DataSpec, model: LayeredModel) -> InstalledPackageTask:
    """The task that a job names, made by its package; one sample has run through the model.

    Raises:
        SpecError: No package brings the task, it cannot be made, a sample is in two splits, or
            some tower of the model is not used.
    """
    package = installed_task(str(spec.task))
    own = _made(package, spec, model)
    for name in SplitName:
        if own.count(name.value) < 1:
            raise SpecError(f"the {package.title} has no sample in the split {name}: add some")
    streams = {name: OwnStream(own, model, name.value, spec.batch_size) for name in SplitName}
    _refuse_unused_towers(package, model, streams[SplitName.CALIBRATION])
    return InstalledPackageTask(model, own, package, streams, _identities(package, own, spec))


def _made(package: InstalledTask, spec: DataSpec, model: LayeredModel) -> OwnTask:
    make = cast("TaskMaker", package.load())
    try:
        own = make(spec, model)
    except BitfrontError:
        raise
    except Exception as error:
        raise SpecError(
            f"the {package.title} cannot be made ({type(error).__name__}: {error}): correct the "
            "section data of the job, or the task"
        ) from error
    if not isinstance(own, OwnTask):
        raise SpecError(
            f"the {package.title} is a {type(own).__name__}: its entry point must name what makes "
            "a bitfront.own_task.OwnTask"
        )
    return own


def _refuse_unused_towers(
    package: InstalledTask, model: LayeredModel, calibration: OwnStream
) -> None:
    """Refuses a task that leaves a tower out: nothing would be known of its layers."""
    towers = {layer.name: layer.tower for layer in model.layers}
    used = set()
    with torch.no_grad(), model.watch_inputs(lambda layer, _: used.add(towers[layer])):
        calibration.run(0, rows=slice(1))
    unused = sorted(tower.value for tower in calibration.towers - used)
    if unused:
        raise SpecError(
            f"the {package.title} runs no layer of the model's {' and '.join(unused)}, so nothing "
            "would be known of them: call all of the model in logits"
        )


def _identities(package: InstalledTask, own: OwnTask, spec: DataSpec) -> dict[SplitName, str]:
    """The hash of each split, no sample of which is in another.

    Raises:
        SpecError: One is.
    """
    settings = spec.model_dump(mode="json", exclude=_PLACES)
    owners: dict[str, SplitName] = {}
    found = {}
    for name in SplitName:
        contents = []
        for place in range(own.count(name.value)):
            content = hashlib.sha256(own.content(name.value, place)).hexdigest()
            owner = owners.setdefault(content, name)
            if owner is not name:
                raise SpecError(
                    f"sample {place} of the split {name} of the {package.title} is in the split "
                    f"{owner} too: give each split samples of its own"
                )
            contents.append(content)
        found[name] = digest([name, package.identity, settings, contents])
    return found
