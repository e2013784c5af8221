"""Verifying an artefact: it runs in a process of its own, and is held against what was measured."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import FailedBuild
from bitfront.objective import Objective
from bitfront.plan import Configuration
from bitfront.samples import effective_count
from bitfront.tasks import TaskMeasure
from bitfront.vlm import QuestionBatch
from objectives.data.answers import parse
from objectives.data.choices import ChoiceTask
from objectives.data.classification import ClassificationTask
from objectives.data.questions import QuestionTask
from objectives.data.retrieval import RetrievalTask
from objectives.data.split_name import SplitName
from objectives.data.written import WrittenTask
from objectives.evaluation.agreement_scorers import WrittenScorer
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.artefact_process import ArtefactProcess
from objectives.evaluation.choice_scorer import ChoiceScorer
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.retrieval_scorer import RetrievalScorer
from objectives.evaluation.speed import (
    TOKENS,
    Reference,
    WriteReference,
    reference_folder,
    take_times,
)
from objectives.execution.streams import token_log_p

# Outputs may differ by this share of their own spread: what was measured in float32 but is stored
# in 16 bits (norms, biases) moves them, and where inputs are quantized single codes flip.
DIFFERENCE_SHARE = 0.02
_SPREADS = 1.96  # standard errors of a 95 % interval
_LEAST_COSINE = 0.98
_CAPTIONS = 64
_TIMED_BATCHES = (1, 32)


@dataclass(frozen=True, slots=True)
class Verification:
    """What an artefact was seen to do.

    Attributes:
        largest_difference: Of the logits on the calibration samples, against the configuration;
            of retrieval they are the scaled cosines of images with captions, both ways.
        mean_difference: Of the same.
        spread: The standard deviation of those logits.
        same_predictions: The share of them whose largest is at the same place.
        measured_error: What the trial recorded as its error on the selection split.
        error: The artefact's error there.
        error_low: Lower end of the error's 95 % interval (Wilson).
        error_high: Its upper end.
        samples: How many samples the error is of.
        tensors_nbytes: Bytes of the packed tensors.
        files_nbytes: Bytes of all files.
        resident_nbytes: Memory that loading the model took.
        latency_s: Seconds of a forward by batch size, the median of `repeats`.
        text_cosine: The mean cosine of captions' features with those of the configuration's text
            tower; None for a model without one.
        same_tokens: The share of the selection split's captions that have the measured tokens in
            the folder's own tokenizer; None where no captions belong to the samples.
        token_s: Seconds of one more token at batch size 1, the median; None for a model that writes
            none. `latency_s` is then that of reading a prompt.
        references: The model at full precision in the same runtime, timed in turns with the
            artefact; empty where it was not timed.
        untimed: Why it was not timed; None where it was, or was not asked for.
        repeats: How many the medians are of, by batch size, and `token` for writing one: seven,
            more where they take next to no time, and fewer where they take a minute.
    """

    largest_difference: float
    mean_difference: float
    spread: float
    same_predictions: float
    measured_error: float
    error: float
    error_low: float
    error_high: float
    samples: int
    tensors_nbytes: int
    files_nbytes: int
    resident_nbytes: int
    latency_s: dict[str, float]
    text_cosine: float | None = None
    same_tokens: float | None = None
    token_s: float | None = None
    references: tuple[Reference, ...] = ()
    untimed: str | None = None
    repeats: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content."""
        return asdict(self)

    def check(self) -> None:
        """Refuses an artefact that does not compute what was measured.

        Raises:
            FailedBuild: Its outputs or its error differ too much.
        """
        allowed = DIFFERENCE_SHARE * self.spread
        if not self.mean_difference <= allowed:
            raise FailedBuild(
                f"the artefact's outputs differ from the measured by {self.mean_difference:.3g} "
                f"in the mean, more than {allowed:.3g}: it is not what was measured"
            )
        if self.text_cosine is not None and not self.text_cosine >= _LEAST_COSINE:
            raise FailedBuild(
                f"the artefact's text features have a mean cosine of {self.text_cosine:.4f} with "
                f"the measured ones, less than {_LEAST_COSINE}: it is not what was measured"
            )
        if self.same_tokens is not None and self.same_tokens < 1:
            raise FailedBuild(
                f"the artefact's tokenizer gives {1 - self.same_tokens:.2%} of the captions other "
                "tokens than were measured: it would not find what was found"
            )
        if not self.error_low <= self.measured_error <= self.error_high:
            raise FailedBuild(
                f"the artefact's error is {self.error:.4f} ({self.error_low:.4f} to "
                f"{self.error_high:.4f}), but {self.measured_error:.4f} was measured"
            )


def verify(
    evaluator: Evaluator,
    configuration: Configuration,
    folder: Path,
    measured_error: float,
    kind: str,
    write_reference: WriteReference | None = None,
) -> Verification:
    """Runs the artefact in a folder beside the configuration that it is of.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What the artefact is of.
        folder: The artefact.
        measured_error: What its trial recorded, on the selection split.
        kind: What it is built as, such as `packed`.
        write_reference: Writes the model at full precision for the same target, to be timed beside
            the artefact and removed again; None times the artefact alone.

    Raises:
        FailedBuild: It cannot be loaded or run.
    """
    verifier = _verifier(evaluator, configuration)
    differences, predictions, spreads = [], [], []
    with ArtefactProcess(folder, kind, reference_folder(folder)) as process:
        for found, wanted in verifier.compared(process):
            differences.append((found - wanted).abs().flatten())
            predictions.append((found.argmax(-1) == wanted.argmax(-1)).flatten())
            spreads.append(wanted.flatten())
        text_cosine = verifier.text_cosine(process)
        same_tokens = verifier.same_tokens(process)
        errors = verifier.errors(process).double().numpy()
        sizes = _timed_batches(evaluator)
        speed = take_times(process, verifier, sizes, folder, kind, write_reference)
        resident = process.resident_nbytes
    error = float(errors.mean())
    low, high = wilson(error, effective_count(errors))
    files = [path.stat().st_size for path in folder.iterdir()]
    return Verification(
        largest_difference=float(torch.cat(differences).max()),
        mean_difference=float(torch.cat(differences).double().mean()),
        spread=float(torch.cat(spreads).double().std()),
        same_predictions=float(torch.cat(predictions).double().mean()),
        measured_error=measured_error,
        error=error,
        error_low=low,
        error_high=high,
        samples=len(errors),
        tensors_nbytes=sum(evaluator.nbytes(configuration).values()),
        files_nbytes=sum(files),
        resident_nbytes=resident,
        latency_s=speed.latency_s,
        text_cosine=text_cosine,
        same_tokens=same_tokens,
        token_s=speed.token_s,
        references=speed.references,
        untimed=speed.untimed,
        repeats=speed.repeats,
    )


def _timed_batches(evaluator: Evaluator) -> list[int]:
    """Batch sizes that everybody asks for, and that of the job's own latencies."""
    stages = [meter.stage for meter in evaluator.latency_meters]
    own = {stage.batch_size for stage in stages if stage.figure is Objective.LATENCY_S}
    return sorted({*_TIMED_BATCHES, *own})


def wilson(share: float, samples: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    z = _SPREADS
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    root = math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    reach = z * root / (1 + z * z / samples)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _verifier(evaluator: Evaluator, wanted: Configuration) -> "_Classes | _Pairs | _Answers":
    task, scorer = evaluator.task, evaluator.scorer
    if isinstance(task, ClassificationTask):
        assert isinstance(scorer, ClassificationScorer)
        return _Classes(task, scorer, wanted)
    if isinstance(task, RetrievalTask):
        assert isinstance(scorer, RetrievalScorer)
        return _Pairs(task, scorer, wanted)
    if isinstance(scorer, WrittenScorer):
        assert isinstance(task, WrittenTask)
        return _Written(task, scorer, wanted)
    if isinstance(task, ChoiceTask):
        assert isinstance(scorer, ChoiceScorer)
        return _Choices(task, scorer, wanted)
    assert isinstance(task, QuestionTask)
    assert isinstance(scorer, AnswerScorer)
    return _Answers(task, scorer, wanted)


class _Classes:
    """Samples of a classification task for an artefact."""

    def __init__(
        self, task: ClassificationTask, scorer: ClassificationScorer, configuration: Configuration
    ) -> None:
        self._task = task
        self._scorer = scorer
        self._configuration = configuration

    def compared(self, process: ArtefactProcess) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `(n, classes)` of the artefact and of the configuration, batch by batch."""
        for pixels in _pixels(self._task, SplitName.CALIBRATION):
            wanted = self._scorer.logits(self._configuration, pixels).cpu()
            yield process.run({"pixels": pixels}), wanted

    def errors(self, process: ArtefactProcess) -> Float[Tensor, " n"]:
        """Each image's share in the error of the selection split."""
        batches = _pixels(self._task, SplitName.SELECTION)
        found = [process.run({"pixels": pixels}) for pixels in batches]
        logits = torch.cat(found).to(self._task.model.device)
        return self._scorer.errors(logits, SplitName.SELECTION).cpu()

    def text_cosine(self, process: ArtefactProcess) -> float:
        """How near captions' features are to those of the text tower that has the last plan on."""
        captions = self._task.captions[:_CAPTIONS].cpu()
        with torch.no_grad():
            wanted = self._task.model.encode_texts(captions).float().cpu()
        found = process.run({"captions": captions})
        return float(torch.nn.functional.cosine_similarity(found, wanted, dim=-1).mean())

    def same_tokens(self, process: ArtefactProcess) -> None:
        """Always None, because what tells classes apart has the features of its captions."""
        del process

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""
        pixels = next(_pixels(self._task, SplitName.CALIBRATION))
        return {"pixels": _repeated(pixels, size)}

    def writing(self) -> None:
        """Always None, because such a model writes nothing."""


class _Pairs:
    """Images with their captions for an artefact."""

    def __init__(
        self, task: RetrievalTask, scorer: RetrievalScorer, configuration: Configuration
    ) -> None:
        self._task = task
        self._scorer = scorer
        self._configuration = configuration

    def compared(self, process: ArtefactProcess) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled cosines of the artefact and of the configuration, some queries at a time.

        First those of images with all captions, then those of captions with all images.
        """
        found = self._found(process, SplitName.CALIBRATION)
        wanted = [features.cpu() for features in self._wanted()]
        scale, size = self._task.model.logit_scale, self._task.batch_size
        for queries, candidates in ((0, 1), (1, 0)):
            parts = (torch.split(features[queries], size) for features in (found, wanted))
            for own, measured in zip(*parts, strict=True):
                yield scale * own @ found[candidates].T, scale * measured @ wanted[candidates].T

    def errors(self, process: ArtefactProcess) -> Float[Tensor, " n"]:
        """Each image's share, with its captions, in the error of the selection split."""
        device = self._task.model.device
        images, captions = self._found(process, SplitName.SELECTION)
        return self._scorer.errors(images.to(device), captions.to(device), SplitName.SELECTION)

    def text_cosine(self, process: ArtefactProcess) -> float:
        """How near captions' features are to those under the configuration."""
        captions = self._task.split(SplitName.CALIBRATION).tokens[:_CAPTIONS].cpu()
        _, wanted = self._wanted()
        found = process.run({"captions": captions})
        cosines = torch.nn.functional.cosine_similarity(found, wanted[:_CAPTIONS].cpu(), dim=-1)
        return float(cosines.mean())

    def same_tokens(self, process: ArtefactProcess) -> float:
        """The share of the selection split's captions that get the measured tokens."""
        split = self._task.split(SplitName.SELECTION)
        captions = [caption for own in split.captions for caption in own]
        content = json.dumps(captions).encode()
        found = process.run({"texts": torch.frombuffer(bytearray(content), dtype=torch.uint8)})
        wanted = split.tokens.cpu()
        if found.shape != wanted.shape:
            return 0.0
        return float((found == wanted).all(dim=-1).double().mean())

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""
        pixels = next(_pixels(self._task, SplitName.CALIBRATION))
        return {"pixels": _repeated(pixels, size)}

    def writing(self) -> None:
        """Always None, because such a model writes nothing."""

    def _wanted(self) -> tuple[Float[Tensor, "images d"], Float[Tensor, "captions d"]]:
        return self._scorer.features(self._configuration, SplitName.CALIBRATION)

    def _found(
        self, process: ArtefactProcess, name: SplitName
    ) -> tuple[Float[Tensor, "images d"], Float[Tensor, "captions d"]]:
        """The artefact's features of a split's images and captions, of length 1."""
        images = [process.run({"pixels": pixels}) for pixels in _pixels(self._task, name)]
        tokens = torch.split(self._task.split(name).tokens.cpu(), self._task.batch_size)
        captions = [process.run({"captions": some}) for some in tokens]
        return torch.cat(images), torch.cat(captions)


class _Answers:
    """Samples of a question task for an artefact."""

    def __init__(
        self, task: QuestionTask, scorer: AnswerScorer, configuration: Configuration
    ) -> None:
        self._task = task
        self._scorer = scorer
        self._configuration = configuration

    def compared(self, process: ArtefactProcess) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `(n, answer, vocabulary)` of the artefact and of the configuration, by batches."""
        split = self._task.split(SplitName.CALIBRATION)
        for number in range(len(split.batches)):
            batch = split.read(number)
            wanted = self._scorer.logits(self._configuration, batch).float().cpu()
            yield process.run(_taught(batch)), wanted

    def errors(self, process: ArtefactProcess) -> Float[Tensor, " n"]:
        """Each question's share in the error of the selection split: 1 where it is wrong."""
        split, task = self._task.split(SplitName.SELECTION), self._task
        wrong = torch.zeros(len(split))
        for number, places in enumerate(split.batches):
            given = _given(split.read(number)) | {"limit": torch.tensor(task.answer_tokens)}
            rows: Sequence[Sequence[int]] = process.run(given).tolist()
            for place, row in zip(places.tolist(), rows, strict=True):
                tokens = [token for token in row if token >= 0]
                answer = None
                if task.model.has_ended(tokens):
                    answer = parse(task.model.decode(tokens), task.answer_pattern)
                wrong[place] = not task.judge(SplitName.SELECTION, place, answer)
        return wrong

    def text_cosine(self, process: ArtefactProcess) -> None:
        """Always None, because such a model has no text tower of its own."""
        del process

    def same_tokens(self, process: ArtefactProcess) -> None:
        """Always None, because its samples are prompts."""
        del process

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""
        given = _given(self._task.split(SplitName.CALIBRATION).read(0))
        tensors = {name: _repeated(tensor, size) for name, tensor in given.items()}
        return tensors | {"kept": torch.tensor(1)}

    def writing(self) -> dict[str, Tensor]:
        """A prompt, and answers of two lengths: their difference is what further tokens take."""
        return self.sample(1) | {
            "endless": torch.tensor(1),
            "limits": torch.tensor([1, 1 + TOKENS]),
        }


class _Written(_Answers):
    """What the full model wrote, for an artefact."""

    def __init__(
        self, task: WrittenTask, scorer: WrittenScorer, configuration: Configuration
    ) -> None:
        super().__init__(task, scorer, configuration)
        self._written = scorer

    def errors(self, process: ArtefactProcess) -> Float[Tensor, " n"]:
        """Each picture's share in the error of the selection split."""
        split = self._task.split(SplitName.SELECTION)
        batches = [split.read(number) for number in range(len(split.batches))]
        logits = torch.cat([process.run(_taught(batch)).flatten(0, 1) for batch in batches])
        return self._written.errors(logits.to(self._task.model.device), split.name).cpu()


class _Choices(_Answers):
    """Samples of multiple choice for an artefact."""

    def __init__(
        self, task: ChoiceTask, scorer: ChoiceScorer, configuration: Configuration
    ) -> None:
        super().__init__(task, scorer, configuration)
        self._choices = task
        self._options = scorer

    def errors(self, process: ArtefactProcess) -> Float[Tensor, " n"]:
        """Each question's share in the error of the selection split: 1 where it is wrong."""
        if self._choices.measure is TaskMeasure.LETTER:
            return super().errors(process)
        split = self._choices.options[SplitName.SELECTION]
        batches = [split.read(number) for number in range(len(split.batches))]
        log_p = [token_log_p(process.run(_taught(batch)), batch.answers) for batch in batches]
        return self._options.wrong(
            self._options.by_option(torch.cat(log_p), split.name), split.name
        )


def _pixels(task: ClassificationTask | RetrievalTask, name: SplitName) -> Iterator[Tensor]:
    """The pixels of a split, batch by batch."""
    split, size = task.split(name), task.batch_size
    for start in range(0, len(split), size):
        yield split.read(start, min(start + size, len(split))).cpu()


def _taught(batch: QuestionBatch) -> dict[str, Tensor]:
    tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
    return _given(batch) | {"tokens": tokens, "kept": torch.tensor(batch.answers.shape[1])}


def _given(batch: QuestionBatch) -> dict[str, Tensor]:
    optional = {"pixels": batch.pixels, "sizes": batch.sizes}
    known = {name: tensor for name, tensor in optional.items() if tensor is not None}
    return {"tokens": batch.prompts, **known}


def _repeated(tensor: Tensor, size: int) -> Tensor:
    return tensor[torch.arange(size) % len(tensor)]
