"""Parameters that routes share: names, numbers, limits."""

from http import HTTPStatus
from inspect import Parameter, Signature
from typing import Annotated, Final

from fastapi import Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import Field

from bitfront.job.document import cut
from bitfront.objective import FIGURES, Quantity
from bitfront.spec import STUDY_NAME, ErrorShare, Nbytes
from search.choice import Ranking
from service.http.problems import Refused
from storage.records import Limits

LARGEST_NUMBER: Final = 2**31 - 1

StudyName = Annotated[
    str, Path(pattern=STUDY_NAME, description="The study's name.", examples=["pets"])
]
TrialNumber = Annotated[int, Path(ge=0, le=LARGEST_NUMBER, description="The trial's number.")]
By = Annotated[
    Ranking,
    Query(description="What stands for the error: an estimate from all trials, or the measured."),
]

_TYPES: Final = {
    Quantity.SHARE: ErrorShare | None,
    Quantity.NBYTES: Nbytes | None,
    Quantity.NUMBER: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
}


def limits(**given: float | None) -> Limits:
    """The limits of a query, one parameter for each figure."""
    return Limits(**given)


# FastAPI reads from it which parameters there are.
limits.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        Parameter(
            figure.limit,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_TYPES[figure.quantity], Query(description=figure.limit_help)],
        )
        for figure in FIGURES
    ]
)


def refuse_unknown(request: Request) -> None:
    """Refuses parameters that a route has not: a misspelt limit would be none.

    Raises:
        Refused: There is one.
    """
    route = request.scope["route"]
    known = sorted(_names(route.dependant)) if isinstance(route, APIRoute) else []
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the parameter {cut(repr(unknown))} is not known here: "
            + (f"the parameters are {', '.join(known)}" if known else "there are none"),
        )


def _names(dependant: Dependant) -> set[str]:
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(_names, dependant.dependencies))


LimitsDependency = Annotated[Limits, Depends(limits)]
