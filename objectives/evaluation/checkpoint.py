"""A configuration as what a checkpoint holds of it: exactly the bytes that `nbytes` counts."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitfront.artefact.architectures import Architecture, describe
from bitfront.artefact.packed import kept_tensors, packed_layers, tensors_nbytes
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from bitfront.quant.inputs import input_group
from bitfront.vlm import DualEncoder, GenerativeModel
from objectives.data.classification import ClassificationTask
from objectives.data.questions import QuestionTask
from objectives.data.retrieval import RetrievalTask
from objectives.data.split_name import SplitName
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.recovery.adapter import LINEARS, AdapterShape


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What an artefact is made of, whatever its files.

    Attributes:
        architecture: What rebuilds the model's modules.
        tensors: By name: the codes, scales, zero points and input formats of the layers, what
            no plan changes, and a recovery's prompt and adapter.
        layers: How the tensors of each layer are read; see `packed_layers`.
        kept: Names of the tensors that no plan changes.
        adapter: The adapter's settings; None without one.
        task: What a card says of the task.
        class_features: Of length 1; None for a task without classes. They follow from the rest,
            and are not among its bytes.
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Mapping[str, object]]
    kept: tuple[str, ...]
    adapter: Mapping[str, object] | None
    task: Mapping[str, object]
    class_features: Float[Tensor, "classes d"] | None

    @property
    def answers(self) -> bool:
        """Whether the model answers questions; another compares pictures with texts."""
        return self.task["task"] == "answering"


def read_checkpoint(evaluator: Evaluator, configuration: Configuration) -> Checkpoint:
    """The checkpoint of a configuration; a recovery that is not known is trained.

    Raises:
        InvalidModel: The model's architecture or its tokenizer is not known, or its tensors do not
            take the promised bytes.
    """
    model = evaluator.model
    architecture = describe(model, reads_captions=isinstance(evaluator.task, RetrievalTask))
    tensors, layers = packed_layers(model, evaluator.switch, configuration.plan)
    kept = architecture.renamed(kept_tensors(model))
    tensors |= kept
    if configuration.recovery is not None:
        stored = evaluator.scorer.stored(configuration)
        tensors |= {name: tensor.cpu().contiguous() for name, tensor in stored.items()}
    found, promised = tensors_nbytes(tensors), sum(evaluator.packed_nbytes(configuration).values())
    if found != promised:
        raise InvalidModel(
            f"the checkpoint's tensors take {found:,} bytes, but {promised:,} were promised"
        )
    return Checkpoint(
        architecture,
        tensors,
        architecture.placed(layers),
        tuple(kept),
        _adapter_part(evaluator, configuration),
        _task_part(evaluator),
        _class_features(evaluator, configuration),
    )


def _task_part(evaluator: Evaluator) -> dict[str, object]:
    """What a card says of the task."""
    task = evaluator.task
    if isinstance(task, ClassificationTask):
        return {
            "task": "classification",
            "classes": list(task.classes),
            "templates": list(task.templates),
        }
    if isinstance(task, RetrievalTask):
        return {"task": "retrieval"}
    assert isinstance(task, QuestionTask)
    return {
        "task": "answering",
        "prompt": task.split(SplitName.TEST).template,
        "image_token": task.model.image_token,
        "answer_tokens": task.answer_tokens,
        "answer_pattern": task.answer_pattern,
    }


def _class_features(evaluator: Evaluator, configuration: Configuration) -> Tensor | None:
    if not isinstance(evaluator.scorer, ClassificationScorer):
        return None
    return evaluator.scorer.text_features(configuration).float().cpu().contiguous()


def _adapter_part(evaluator: Evaluator, configuration: Configuration) -> dict[str, object] | None:
    recovery, model = configuration.recovery, evaluator.model
    if recovery is None or not recovery.reduction:
        return None
    assert isinstance(model, DualEncoder | GenerativeModel)
    is_residual = isinstance(model, GenerativeModel)
    quantizer = evaluator.spec.quantizer
    shape = AdapterShape.of(recovery, model.feature_width, quantizer, is_residual=is_residual)
    return {
        "bits": recovery.adapter_bits,
        "activation_group": input_group(quantizer),
        "activation_symmetric": quantizer.activations == "dynamic_symmetric",
        "blend": recovery.blend,
        "residual": is_residual,
        "shapes": {name: list(shape.matrix(name)) for name in LINEARS},
    }
