"""Targets: the runtimes that a configuration can be built for, and what each has a kernel for."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, Literal, get_args

from bitfront.formats import FORMATS
from bitfront.layers import LayerKind
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, Precision

Scheme = Literal["symmetric", "asymmetric"]
Ranges = Literal["static", "dynamic", "grouped", "dynamic_symmetric"]

_MULTIPLYING: Final = frozenset({LayerKind.LINEAR, LayerKind.CONVOLUTION})
_NARROW: Final = tuple(bits for bits in WEIGHT_BITS if bits < 16)
_ROUNDED: Final = tuple(bits for bits in ACTIVATION_BITS if bits < 16)
_BYTE: Final = (8,)
SMALLEST_INPUT_GROUP: Final = 32
_SUGGESTED_GROUPS: Final = (16, 32, 64, 128, 256)


class DeploymentTarget(StrEnum):
    """The runtime that a job's results are for."""

    ANY = "any"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    COMPRESSED_TENSORS = "compressed-tensors"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class NativeFormat:
    """A form of product that a runtime has a kernel for.

    Attributes:
        kernel: The kernel, as the runtime calls it.
        kinds: What the weight does with its input.
        weight_bits: Widths of weights that it takes.
        activation_bits: Widths of inputs; 16 is an input in floating point.
        ranges: What quantized inputs' ranges must be; None where it takes all.
        group_multiple: Groups are multiples of it; 0 where a whole row must share a scale. Beside
            inputs in groups, they are multiples of these too.
        held_bits: How wide codes lie in memory, by scheme and width; their own width where it
            says nothing. A file always has their own width.
        number_formats: Formats of weights that it takes beside integers; see `bitfront.formats`.
    """

    kernel: str
    kinds: frozenset[LayerKind]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    ranges: Ranges | None
    group_multiple: int
    held_bits: Mapping[Scheme, Mapping[int, int]]
    number_formats: frozenset[str] = frozenset()

    def takes(
        self, kind: LayerKind, precision: Precision, ranges: Ranges, input_group: int
    ) -> bool:
        """Whether it computes a layer of that kind and precision.

        Groups of weights hold whole groups of inputs, where these have ranges of their own.
        """
        rounds = precision.quantizes_input and kind is not LayerKind.EMBEDDING
        return (
            kind in self.kinds
            and precision.weight_bits in self.weight_bits
            and (not precision.format or precision.format in self.number_formats)
            and precision.activation_bits in self.activation_bits
            and (not rounds or self.ranges in (None, ranges))
            and self._takes_group(precision, input_group if self.ranges == "grouped" else 1)
        )

    def _takes_group(self, precision: Precision, input_group: int) -> bool:
        if not precision.group or not precision.quantizes_weight:
            return True
        multiple = max(self.group_multiple, input_group)
        return self.group_multiple > 0 and precision.group % multiple == 0

    def held(self, weight_bits: int, scheme: Scheme) -> int:
        """Bits that a weight takes in memory that has `weight_bits` in the file."""
        return self.held_bits.get(scheme, {}).get(weight_bits, weight_bits)


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime.

    Attributes:
        name: What a job calls it.
        artefact: What `bitfront build --to` calls that which it loads.
        packages: The Python packages that run it.
        builders: Those that build for it, beside.
        extra: The extra of bitfront that installs what builds and verifies it; empty for none.
        models: The models that can be built for it, in words.
        formats: What it has kernels for, the fastest first.
        rest: What becomes of a layer that it has no kernel for.
        fused: Modules beside each other, by the last part of their names, that what loads the
            artefact multiplies as one matrix: they should share a precision.
        dual_encoders: Whether models that compare pictures with texts can be built for it.
        schemes: The grids of weights that an artefact can hold.
        ranges: The ranges of quantized inputs that an artefact can say.
        number_formats: The formats of weights that an artefact can hold beside integers.
        recovers: Whether an artefact can hold a recovery's prompt and adapter.
        is_timed: Whether a search measures latencies in it.
        is_blocked: Whether codes lie in blocks, and kernels round inputs block by block: a search
            for it counts these bytes, and an evaluation rounds likewise.
    """

    name: DeploymentTarget
    artefact: str
    packages: tuple[str, ...]
    builders: tuple[str, ...]
    extra: str
    models: str
    formats: tuple[NativeFormat, ...]
    rest: str
    fused: tuple[tuple[str, ...], ...] = ()
    dual_encoders: bool = True
    schemes: frozenset[Scheme] = frozenset({"symmetric", "asymmetric"})
    ranges: frozenset[Ranges] = frozenset(get_args(Ranges))
    number_formats: frozenset[str] = frozenset()
    recovers: bool = True
    is_timed: bool = False
    is_blocked: bool = False

    @property
    def missing(self) -> list[str]:
        """The packages of builder and runtime that are not installed here."""
        return [name for name in (*self.builders, *self.packages) if not _is_installed(name)]

    def holds(
        self, plan: Iterable[Precision], scheme: Scheme, ranges: Ranges, *, recovery: bool
    ) -> bool:
        """Whether an artefact can hold a configuration at all, with a kernel or without."""
        precisions = list(plan)
        integers = [one for one in precisions if one.quantizes_weight and not one.format]
        return (
            (self.recovers or not recovery)
            and (ranges in self.ranges or not any(one.quantizes_input for one in precisions))
            and (scheme in self.schemes or not integers)
            and self.number_formats.issuperset(one.format for one in precisions if one.format)
        )

    def takes(self, *, answers: bool) -> bool:
        """Whether models that answer questions, or dual encoders, can be built for it."""
        return answers or self.dual_encoders

    def native(
        self,
        kind: LayerKind,
        precision: Precision,
        ranges: Ranges,
        input_group: int = SMALLEST_INPUT_GROUP,
    ) -> NativeFormat | None:
        """The format that runs a layer of that kind and precision; None if no kernel does."""
        takes = (form for form in self.formats if form.takes(kind, precision, ranges, input_group))
        return next(takes, None)

    def nearest(
        self, precision: Precision, ranges: Ranges, input_group: int = SMALLEST_INPUT_GROUP
    ) -> list[Precision]:
        """Precisions of linear layers near this one that it has kernels for, the nearest first.

        The width of weights is kept where there is a kernel for it; a group or the inputs give way.
        """
        found = list(dict.fromkeys(self._nearest(precision, ranges, input_group)))
        if found:
            return found
        bits = precision.weight_bits
        widths = sorted(WEIGHT_BITS, key=lambda other: (abs(other - bits), -other))
        nearest = (
            self._nearest(replace(precision, weight_bits=other), ranges, input_group)
            for other in widths
        )
        return list(dict.fromkeys(next(filter(None, map(list, nearest)), [])))

    def _nearest(
        self, precision: Precision, ranges: Ranges, input_group: int
    ) -> Iterator[Precision]:
        def multiplies(near: Precision) -> bool:
            return self.native(LayerKind.LINEAR, near, ranges, input_group) is not None

        bits, inputs, clip = precision.weight_bits, precision.activation_bits, precision.clip
        by_distance = sorted(_SUGGESTED_GROUPS, key=lambda size: abs(size - precision.group))
        for activation_bits in sorted({inputs, max(inputs, 8), 16}):
            own, *others, row = (
                Precision(bits, activation_bits, group, clip)
                for group in (precision.group, *by_distance, 0)
            )
            fitting = [near for near in others if multiplies(near)]
            yield from (near for near in (own, *fitting[:1], row) if multiplies(near))


_Held = Mapping[Scheme, Mapping[int, int]]

_BYTES: Final = MappingProxyType(dict.fromkeys(_NARROW, 8))
_IN_BYTES: Final[_Held] = MappingProxyType({"symmetric": _BYTES, "asymmetric": _BYTES})
# A zero point between two codes, as those of asymmetric codes are, is whole in a byte.
_IN_BLOCKS: Final[_Held] = MappingProxyType(
    {
        "symmetric": MappingProxyType({2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}),
        "asymmetric": _BYTES,
    }
)
_FLOATS: Final = MappingProxyType({16: 32})
_UNPACKED: Final[_Held] = MappingProxyType({"symmetric": _FLOATS, "asymmetric": _FLOATS})

_MODELS: Final = (
    "the bundled ones, CLIP with a vision transformer (open_clip's or transformers'), SigLIP of "
    "transformers, LLaVA of a CLIP and a Llama"
)

TORCH: Final = Target(
    name=DeploymentTarget.TORCH,
    artefact="packed",
    packages=("torch", "safetensors"),
    builders=(),
    extra="",
    models=_MODELS,
    formats=(
        NativeFormat(
            kernel="unpacks a layer, multiplies in float32",
            kinds=frozenset(LayerKind),
            weight_bits=WEIGHT_BITS,
            activation_bits=ACTIVATION_BITS,
            ranges=None,
            group_multiple=1,
            held_bits=MappingProxyType({}),
            number_formats=frozenset(FORMATS),
        ),
    ),
    rest="none, a kernel takes every precision",
    number_formats=frozenset(FORMATS),
)

ONNXRUNTIME: Final = Target(
    name=DeploymentTarget.ONNXRUNTIME,
    artefact="onnx",
    packages=("onnxruntime",),
    builders=("onnx",),
    extra="onnxruntime",
    models=_MODELS,
    formats=(
        NativeFormat(
            kernel="MatMulNBits",
            kinds=_MULTIPLYING,
            weight_bits=_NARROW,
            activation_bits=(16,),
            ranges=None,
            group_multiple=16,
            held_bits=_IN_BLOCKS,
        ),
        NativeFormat(
            kernel="MatMulNBits",
            kinds=_MULTIPLYING,
            weight_bits=_NARROW,
            activation_bits=_BYTE,
            ranges="grouped",
            group_multiple=32,
            held_bits=_IN_BLOCKS,
        ),
        NativeFormat(
            kernel="MatMulIntegerToFloat",
            kinds=_MULTIPLYING,
            weight_bits=_NARROW,
            activation_bits=_ROUNDED,
            ranges="static",
            group_multiple=0,
            held_bits=_IN_BYTES,
        ),
        NativeFormat(
            kernel="Gather",
            kinds=frozenset({LayerKind.EMBEDDING}),
            weight_bits=_NARROW,
            activation_bits=ACTIVATION_BITS,
            ranges=None,
            group_multiple=1,
            held_bits=_IN_BYTES,
        ),
        NativeFormat(
            kernel="MatMul",
            kinds=frozenset(LayerKind),
            weight_bits=(16,),
            activation_bits=ACTIVATION_BITS,
            ranges="static",
            group_multiple=1,
            held_bits=_UNPACKED,
        ),
    ),
    rest="weights are unpacked to float32 when the model is loaded, and inputs rounded by "
    "standard operators: the same numbers and the same file, but the memory and time of float32",
    is_timed=True,
)

_WHOLE_BYTES: Final = (2, 4, 8)
_TO_BYTES: Final = MappingProxyType(dict.fromkeys(_WHOLE_BYTES, 8))

OPENVINO: Final = Target(
    name=DeploymentTarget.OPENVINO,
    artefact="openvino",
    packages=("openvino",),
    builders=("onnx",),
    extra="openvino",
    models=_MODELS,
    formats=(
        NativeFormat(
            kernel="FullyConnected, packed",
            kinds=_MULTIPLYING,
            weight_bits=_WHOLE_BYTES,
            activation_bits=(16,),
            ranges=None,
            group_multiple=4,
            held_bits=MappingProxyType({}),
        ),
        NativeFormat(
            kernel="FullyConnected, packed",
            kinds=_MULTIPLYING,
            weight_bits=_WHOLE_BYTES,
            activation_bits=_BYTE,
            ranges="grouped",
            group_multiple=32,
            held_bits=MappingProxyType({}),
        ),
        NativeFormat(
            kernel="FullyConnected, int8",
            kinds=_MULTIPLYING,
            weight_bits=_WHOLE_BYTES,
            activation_bits=_ROUNDED,
            ranges="static",
            group_multiple=0,
            held_bits=MappingProxyType({"symmetric": _TO_BYTES}),
        ),
        NativeFormat(
            kernel="Gather",
            kinds=frozenset({LayerKind.EMBEDDING}),
            weight_bits=_WHOLE_BYTES,
            activation_bits=ACTIVATION_BITS,
            ranges=None,
            group_multiple=4,
            held_bits=MappingProxyType({}),
        ),
        NativeFormat(
            kernel="FullyConnected, float32",
            kinds=frozenset(LayerKind),
            weight_bits=(16,),
            activation_bits=ACTIVATION_BITS,
            ranges="static",
            group_multiple=1,
            held_bits=_UNPACKED,
        ),
    ),
    rest="codes of 3, 5 and 6 bits lie in 4 and 8 bits, also in the file; other rounded inputs, "
    "and those beside fractional zero points, are rounded as in the trial and multiplied in "
    "float32",
    is_timed=True,
)

_COMPRESSED_FLOATS: Final = frozenset({"fp8_e4m3", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4", "nvfp4"})

COMPRESSED_TENSORS: Final = Target(
    name=DeploymentTarget.COMPRESSED_TENSORS,
    artefact="compressed-tensors",
    packages=("transformers", "compressed_tensors"),
    builders=(),
    extra="compressed-tensors",
    models="CLIP with a vision transformer and LLaVA of a CLIP and a Llama, the bundled ones too",
    formats=(
        NativeFormat(
            kernel="Linear, packed",
            kinds=frozenset({LayerKind.LINEAR}),
            weight_bits=_NARROW,
            activation_bits=(16,),
            ranges=None,
            group_multiple=1,
            held_bits=_UNPACKED,
            number_formats=_COMPRESSED_FLOATS,
        ),
        NativeFormat(
            kernel="Linear, packed",
            kinds=frozenset({LayerKind.LINEAR}),
            weight_bits=_NARROW,
            activation_bits=_BYTE,
            ranges="dynamic_symmetric",
            group_multiple=1,
            held_bits=_UNPACKED,
            number_formats=_COMPRESSED_FLOATS,
        ),
        NativeFormat(
            kernel="Linear",
            kinds=frozenset(LayerKind),
            weight_bits=(16,),
            activation_bits=(16,),
            ranges=None,
            group_multiple=1,
            held_bits=_UNPACKED,
        ),
        NativeFormat(
            kernel="Linear",
            kinds=frozenset({LayerKind.LINEAR}),
            weight_bits=(16,),
            activation_bits=_BYTE,
            ranges="dynamic_symmetric",
            group_multiple=1,
            held_bits=_UNPACKED,
        ),
    ),
    rest="values of codes are stored in 32 bits for embeddings, convolutions, tied heads and "
    "groups that do not divide the columns; zero points and other rounded inputs are refused",
    fused=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    schemes=frozenset({"symmetric"}),
    number_formats=_COMPRESSED_FLOATS,
    ranges=frozenset({"dynamic_symmetric"}),
    recovers=False,
)

_LOOKED_UP: Final = frozenset({LayerKind.LINEAR, LayerKind.EMBEDDING})

GGUF: Final = Target(
    name=DeploymentTarget.GGUF,
    artefact="gguf",
    packages=("xllamacpp", "gguf"),
    builders=(),
    extra="gguf",
    models="LLaVA of a CLIP and a Llama, the bundled one too",
    formats=(
        NativeFormat(
            kernel="Q4_0, Q5_0, Q8_0",
            kinds=_LOOKED_UP,
            weight_bits=(4, 5, 8),
            activation_bits=(16,),
            ranges=None,
            group_multiple=32,
            held_bits=MappingProxyType({}),
        ),
        NativeFormat(
            kernel="Q2_K, Q3_K, Q6_K",
            kinds=_LOOKED_UP,
            weight_bits=(2, 3, 6),
            activation_bits=(16,),
            ranges=None,
            group_multiple=256,
            held_bits=MappingProxyType({}),
        ),
        NativeFormat(
            kernel="F16",
            kinds=frozenset(LayerKind),
            weight_bits=(16,),
            activation_bits=(16,),
            ranges=None,
            group_multiple=1,
            held_bits=MappingProxyType({}),
        ),
    ),
    rest="codes of 2, 3 and 6 bits lie in 4 and 8 where 256 does not divide the columns; values of "
    "codes are stored in 32 bits for convolutions and where 32 does not divide the columns; zero "
    "points, rounded inputs and other groups are refused",
    dual_encoders=False,
    schemes=frozenset({"symmetric"}),
    ranges=frozenset(),
    recovers=False,
    is_blocked=True,
)

TARGETS: Final = (TORCH, ONNXRUNTIME, OPENVINO, COMPRESSED_TENSORS, GGUF)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # what is None in sys.modules has no specification
        return False


def target_of(artefact: str) -> Target:
    """The target that loads an artefact of a kind.

    Raises:
        KeyError: No target does.
    """
    return {target.artefact: target for target in TARGETS}[artefact]


def target_named(name: DeploymentTarget) -> Target | None:
    """The target that a job names; None where any will do."""
    return next((target for target in TARGETS if target.name is name), None)
