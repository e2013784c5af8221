"""Models: the studies that searched one, and whether what they measured can be compared."""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection, Row, exists, select

from bitfront.errors import SpecError
from bitfront.objective import FIGURES
from bitfront.trial import TrialState
from storage.tables import Model, Provenance, Study, Trial

MEASURED_ON: Final = {"device": "on different devices", "latency": "in different runtimes"}
"""The facts of its provenance that a figure depends on which depends on the device."""


def comparable_studies(
    connection: Connection, model: str, compared: Collection[str] = ()
) -> list[Row[int, str, list[str]]]:
    """Key, name and objectives of the model's studies with results, the oldest first.

    Args:
        connection: An open transaction.
        model: Name or hash of the model.
        compared: The names of figures that are to be compared beside their errors.

    Raises:
        SpecError: No study or more than one model is meant, or the studies measured their
            errors on different data, or a figure that depends on the device on different ones.
    """
    has_results = exists().where(
        Trial.study_id == Study.id, Trial.state == TrialState.COMPLETE, Trial.feasible
    )
    query = select(Study.id, Study.name, Study.objectives).order_by(Study.id)
    model_id = _find_model(connection, model)
    found = list(connection.execute(query.where(Study.model_id == model_id, has_results)))
    _refuse_mixture(connection, model, found, "selection", "errors on different selection data")
    for figure in FIGURES:
        if figure.per_device and figure.name in compared:
            for fact, differing in MEASURED_ON.items():
                difference = f"{figure.label} {differing}"
                _refuse_mixture(connection, model, found, fact, difference)
    return found


def is_alike(connection: Connection, keys: Sequence[int], fact: str) -> bool:
    """Whether studies have the same value recorded in their provenance."""
    return len(_values(connection, keys, fact)) <= 1


def _refuse_mixture(
    connection: Connection,
    model: str,
    found: Sequence[Row[int, str, list[str]]],
    fact: str,
    difference: str,
) -> None:
    groups = _values(connection, [row.id for row in found], fact)
    if len(groups) <= 1:
        return
    names = {row.id: row.name for row in found}
    listed = " | ".join(", ".join(names[key] for key in keys) for keys in groups)
    raise SpecError(
        f"the studies of model {model!r} measured their {difference} ({listed}): "
        "name one of them as STUDY"
    )


def _values(connection: Connection, keys: Sequence[int], fact: str) -> list[list[int]]:
    """The studies in groups that share a value; those without one are a group of their own."""
    query = select(Provenance.study_id, Provenance.value).where(
        Provenance.study_id.in_(keys), Provenance.name == fact
    )
    values = {row.study_id: row.value for row in connection.execute(query)}
    groups: dict[str | None, list[int]] = {}
    for key in keys:
        groups.setdefault(values.get(key), []).append(key)
    return list(groups.values())


def _find_model(connection: Connection, model: str) -> int:
    query = select(Model.id, Model.identity, Model.name).order_by(Model.id)
    known = connection.execute(query).all()
    found = {key: identity for key, identity, name in known if model in (identity, name)}
    if len(found) == 1:
        return next(iter(found))
    if found:
        identities = ", ".join(found.values())
        raise SpecError(f"the name {model!r} stands for several models: name one of {identities}")
    names = ", ".join(sorted({name for _, _, name in known})) or "none"
    raise SpecError(f"no study has searched a model {model!r}; searched are: {names}")
