"""What the sections of a job share: their base class, and values that several of them hold."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from bitfront.errors import SpecError
from bitfront.kv_cache import KV_BITS
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, weight_precision, weight_text
from bitfront.units import parse_nbytes, parse_share

AUTO: Final = "auto"


def _weight_bits(bits: int) -> int:
    if bits not in WEIGHT_BITS:
        raise ValueError(f"weight bits must be among {', '.join(map(str, WEIGHT_BITS))}")
    return bits


def _activation_bits(bits: int) -> int:
    if bits not in ACTIVATION_BITS:
        raise ValueError(f"activation bits must be among {', '.join(map(str, ACTIVATION_BITS))}")
    return bits


def _weight_format(text: str) -> str:
    try:
        return weight_text(weight_precision(text))
    except SpecError as error:
        raise ValueError(str(error)) from error


def _kv_bits(bits: int) -> int:
    if bits not in KV_BITS:
        raise ValueError(f"bits of a KV cache must be among {', '.join(map(str, KV_BITS))}")
    return bits


# What a file may hold where a number is meant, for editors: see `bitfront.job.json_schema`.
_SIZE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^ *[0-9]+(\.[0-9]+)? *([kKmMgG][iI]?)?[bB]? *$"},
    ]
}
_SHARE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^ *[0-9]+(\.[0-9]+)? *% *$"},
    ]
}
_WEIGHT_SCHEMA: Final[dict[str, Any]] = {"enum": list(WEIGHT_BITS)}
_ACTIVATION_SCHEMA: Final[dict[str, Any]] = {"enum": list(ACTIVATION_BITS)}
_KV_SCHEMA: Final[dict[str, Any]] = {"enum": list(KV_BITS)}

Nbytes = Annotated[
    int, BeforeValidator(parse_nbytes), Field(gt=0), WithJsonSchema(_SIZE_SCHEMA, "validation")
]
ErrorShare = Annotated[
    float,
    BeforeValidator(parse_share),
    Field(gt=0, le=1),
    WithJsonSchema(_SHARE_SCHEMA, "validation"),
]
WeightBits = Annotated[
    int, BeforeValidator(_weight_bits), WithJsonSchema(_WEIGHT_SCHEMA, "validation")
]
ActivationBits = Annotated[
    int, BeforeValidator(_activation_bits), WithJsonSchema(_ACTIVATION_SCHEMA, "validation")
]
WeightFormatName = Annotated[str, AfterValidator(_weight_format)]
KvBits = Annotated[int, BeforeValidator(_kv_bits), WithJsonSchema(_KV_SCHEMA, "validation")]
Percentile = Annotated[float, Field(gt=0.5, le=1.0)]


def check_repeated(name: str, values: tuple[object, ...]) -> None:
    """Refuses a setting that names a value twice.

    Raises:
        ValueError: It does.
    """
    if len(set(values)) != len(values):
        raise ValueError(f"{name} names a value twice: {list(values)}")


class Section(BaseModel):
    """A part of the specification: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
