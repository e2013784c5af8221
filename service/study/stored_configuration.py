"""A configuration that a study found, with the model and the data that it was measured on."""

from pathlib import Path

from bitfront.errors import SpecError
from bitfront.identity.identities import Identities
from bitfront.quant.inputs import bounds_from_json
from objectives.evaluation.evaluator import Evaluator
from service.study.bounds import stored_bounds
from service.study.stored_model import check_same_model, naming_study
from storage.records import StudyRecord
from storage.store import Store


def bounds_of(store: Store, study: StudyRecord) -> dict[str, object]:
    """What a study learned for its vision tower's inputs; empty where it learns nothing.

    Raises:
        SpecError: It has not learned it yet.
    """
    if study.spec.profile.vision is None:
        return {}
    bounds = stored_bounds(store, study.spec, Identities.from_provenance(study.provenance))
    if bounds is None:
        raise SpecError(
            f"study {study.name!r} has not learned the bounds of its vision tower's inputs yet: "
            f"'bitfront resume {study.name}' does"
        )
    return bounds


def load_evaluator(
    study: StudyRecord, bounds: dict[str, object], features: Path | None = None
) -> Evaluator:
    """An evaluator on the model and the data that a study was made with.

    Args:
        study: The study.
        bounds: Learned bounds of the vision tower's inputs, as JSON content; empty without.
        features: Folder for features that memory has no room for.

    Raises:
        BitfrontError: They are no longer where they were, or are not the same any more.
    """
    with naming_study(study.name):
        evaluator = Evaluator.from_spec(study.spec, bounds_from_json(bounds), features=features)
    check_same_model(study, evaluator.model.identity, evaluator.model.weights_identity)
    return evaluator
