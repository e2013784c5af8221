"""Upper limits as a program gives them."""

from collections.abc import Mapping

from bitfront.errors import SpecError
from bitfront.objective import BY_LIMIT, Quantity
from bitfront.units import parse_nbytes, parse_share
from storage.records import Limits


def read_limits(given: Mapping[str, object]) -> Limits:
    """The limits that a program gives, such as `{"max_nbytes": "40MB", "max_error": "10%"}`.

    Raises:
        SpecError: A figure has no such limit, or one of them is none of its kind.
    """
    read: dict[str, float | None] = {}
    for name, limit in given.items():
        if name not in BY_LIMIT:
            raise SpecError(f"{name} is not a limit: there are {', '.join(BY_LIMIT)}")
        read[name] = None if limit is None else _number(name, limit)
    return Limits(**read)


def _number(name: str, limit: object) -> float:
    quantity = BY_LIMIT[name].quantity
    try:
        if quantity is Quantity.NBYTES:
            value = parse_nbytes(limit)
        else:
            value = parse_share(limit) if quantity is Quantity.SHARE else limit
        number = float(str(value))
    except ValueError as error:
        wanted = {
            Quantity.NBYTES: "a size, such as 4096 or 40MB",
            Quantity.SHARE: "a share, such as 0.15 or 15%",
            Quantity.NUMBER: "a number",
        }[quantity]
        raise SpecError(f"{name} is {wanted}, not {limit!r}") from error
    if quantity is Quantity.SHARE and number > 1:
        raise SpecError(f"{name} is a share of at most 1, such as 0.15 or 15%, not {limit!r}")
    return number
