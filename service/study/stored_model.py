"""Whether a study's model and data are where they were, and still the same."""

from collections.abc import Iterator
from contextlib import contextmanager

from bitfront.errors import InvalidModel, MissingData, MissingModel
from storage.records import StudyRecord


@contextmanager
def naming_study(name: str) -> Iterator[None]:
    """Errors about a missing model or missing data name the study that they belong to."""
    try:
        yield
    except MissingModel as error:
        raise MissingModel(f"the model of study {name!r} is missing: {error}") from error
    except MissingData as error:
        raise MissingData(f"the data of study {name!r} are missing: {error}") from error


def check_same_model(study: StudyRecord, identity: str, weights_identity: str) -> None:
    """Refuses a model that is not the one that the study was measured with.

    Args:
        study: The study, which may not have loaded its model yet.
        identity: Of the model that was loaded.
        weights_identity: Of its weights; the first versions recorded nothing else.

    Raises:
        InvalidModel: It is another one.
    """
    if study.provenance.get("model", identity) not in (identity, weights_identity):
        raise InvalidModel(
            f"study {study.name!r} was measured with another model than "
            f"{study.spec.model.name} is now: put that one back, or see "
            f"'bitfront resume {study.name} --accept-changes'"
        )
