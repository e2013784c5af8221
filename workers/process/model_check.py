"""Loads a job's model once before there is a study, to find what is wrong with it."""

from bitfront.artefact.architectures import describe
from bitfront.layers import Layer
from bitfront.spec import JobSpec
from bitfront.targets import DeploymentTarget
from bitfront.vlm import load_model
from objectives.data.inspection import Inspector
from objectives.data.retrieval import RetrievalTask
from objectives.evaluation.chance import refuse_like_classes
from objectives.evaluation.families.registry import load_family
from objectives.evaluation.limits import refuse_limits
from workers.observability.logs import set_up
from workers.process.cache_folder import inspection_file


def load_and_look(spec: JobSpec) -> tuple[Layer, ...]:
    """The layers of a job's model, which loads, fits the data and tells their classes apart.

    Where the job has a target, the model can be built for one. Nothing is calibrated or evaluated.

    Raises:
        BitfrontError: The model or the data cannot be used.
    """
    set_up()
    model = load_model(spec.model)
    family = load_family(spec.data, model, Inspector(inspection_file(), workers=1))
    family.check(spec)
    refuse_limits(spec, model)
    if spec.target is not DeploymentTarget.ANY:
        describe(model, reads_captions=isinstance(family.task, RetrievalTask))
    refuse_like_classes(family.task)
    return model.layers
