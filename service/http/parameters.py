"""Parameters that routes share: names, numbers, limits."""

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from bitfront.job.document import cut
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

_Positive = Annotated[float | None, Query(gt=0, allow_inf_nan=False)]


def limits(
    max_error: Annotated[
        ErrorShare | None, Query(description="Highest error, such as 0.1 or 10%.")
    ] = None,
    max_nbytes: Annotated[
        Nbytes | None, Query(description="Largest checkpoint, such as 40000, 40kB or 8GB.")
    ] = None,
    max_bits: _Positive = None,
    max_bit_operations: _Positive = None,
    max_latency_s: _Positive = None,
    max_activation_nbytes: Annotated[
        Nbytes | None, Query(description="Peak memory of a batch's activations, such as 200MB.")
    ] = None,
    max_divergence: _Positive = None,
) -> Limits:
    """The limits of a query."""
    return Limits(
        max_error=max_error,
        max_nbytes=max_nbytes,
        max_bits=max_bits,
        max_bit_operations=max_bit_operations,
        max_latency_s=max_latency_s,
        max_activation_nbytes=max_activation_nbytes,
        max_divergence=max_divergence,
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
