"""What a configuration costs: bytes of its packed checkpoint, bits, and bit operations."""

from collections.abc import Iterable, Mapping

from bitfront.kv_cache import KV_FULL, KvPlace
from bitfront.layers import Layer, LayerKind
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.quant.blocks import KEPT_NBYTES, blocked_nbytes
from bitfront.quant.inputs import input_nbytes
from bitfront.quant.packing import packed_length, weight_nbytes
from bitfront.spec import QuantizerSpec
from bitfront.vlm import LayeredModel
from objectives.recovery.adapter import AdapterShape

_FULL_BITS = 16
_KEPT_NBYTES = 2


def layer_nbytes(layer: Layer, precision: Precision, quantizer: QuantizerSpec) -> int:
    """The bytes that a packed checkpoint holds for a layer: weight, scales, input range."""
    weight = weight_nbytes(layer.rows, layer.columns, precision, quantizer)
    return weight + _input_nbytes(layer, precision, quantizer)


def layer_bit_operations(layer: Layer, precision: Precision) -> float:
    """Multiply-accumulates times weight bits times input bits, for one sample.

    A sample is an image in the vision tower and a caption in the text tower. An embedding
    multiplies nothing.
    """
    macs = layer.weights * layer.positions
    return float(macs * precision.weight_bits * precision.activation_bits)


def configuration_nbytes(
    model: LayeredModel, configuration: Configuration, quantizer: QuantizerSpec, classes: int = 0
) -> dict[str, int]:
    """The bytes of a configuration's packed checkpoint, part by part; their sum is `nbytes`.

    Parts: `TOWER.codes` (packed codes, and weights at 16 bits), `TOWER.scales` (scales and
    zero points), `inputs` (static input ranges), `kept` (all that no plan changes, in 16
    bits), and `prompt` and `adapter` where the recovery has them. `classes` is how many contexts
    a class-specific prompt has.
    """
    precisions = dict(configuration.plan)
    towers = dict.fromkeys(layer.tower for layer in model.layers)
    parts = {f"{tower}.{part}": 0 for tower in towers for part in ("codes", "scales")}
    parts |= {"inputs": 0, "kept": model.fixed_nbytes}
    for layer in model.layers:
        precision = precisions.get(layer.name, Precision(_FULL_BITS))
        codes = packed_length(layer.weights, precision.weight_bits)
        weight = weight_nbytes(layer.rows, layer.columns, precision, quantizer)
        parts[f"{layer.tower}.codes"] += codes
        parts[f"{layer.tower}.scales"] += weight - codes
        parts["inputs"] += _input_nbytes(layer, precision, quantizer)
    if configuration.recovery is not None:
        parts |= _recovery_parts(model, configuration.recovery, quantizer, classes)
    return parts


def blocked_parts(model: LayeredModel, plan: Plan) -> dict[str, int]:
    """The bytes of a configuration in blocks, part by part; their sum is `nbytes`.

    Parts: `TOWER.blocks` (codes with their scales, and weights at 16 bits), and `kept`, in 32 bits.
    """
    precisions = dict(plan)
    parts = {f"{layer.tower}.blocks": 0 for layer in model.layers}
    for layer in model.layers:
        precision = precisions.get(layer.name, Precision(_FULL_BITS))
        parts[f"{layer.tower}.blocks"] += blocked_nbytes(layer, precision)
    return parts | {"kept": kept_nbytes(model, is_blocked=True)}


def kept_nbytes(model: LayeredModel, *, is_blocked: bool) -> int:
    """The bytes of what no plan changes: in 16 bits, and beside blocks in 32."""
    return model.fixed_nbytes // _KEPT_NBYTES * (KEPT_NBYTES if is_blocked else _KEPT_NBYTES)


def cache_nbytes(places: Iterable[KvPlace], plan: Plan, tokens: int) -> int:
    """The bytes of a KV cache that holds so many tokens of one sequence."""
    forms = dict(plan.cache)
    return sum(place.nbytes(forms.get(place.name, KV_FULL), tokens) for place in places)


def bits_per_weight(model: LayeredModel, configuration: Configuration) -> float:
    """The mean width of the model's own weights; what no plan changes counts at 16 bits.

    Scales, zero points, prompt and adapter are not weights of the model: they are in `nbytes`.
    """
    precisions = dict(configuration.plan)
    fixed = model.fixed_nbytes // 2
    bits = float(fixed * _FULL_BITS)
    for layer in model.layers:
        bits += layer.weights * precisions.get(layer.name, Precision(_FULL_BITS)).weight_bits
    return bits / (fixed + sum(layer.weights for layer in model.layers))


def bit_operations(model: LayeredModel, configuration: Configuration) -> float:
    """Multiply-accumulates times both widths for one sample, adapter included.

    A sample is an image and a caption, or an image and a question of nominal length.
    """
    precisions = dict(configuration.plan)
    total = sum(
        layer_bit_operations(layer, precisions.get(layer.name, Precision(_FULL_BITS)))
        for layer in model.layers
    )
    if configuration.recovery is not None:
        total += _recovery_operations(model, configuration.recovery, precisions)
    return total


def _recovery_operations(
    model: LayeredModel, recovery: Recovery, precisions: Mapping[str, Precision]
) -> float:
    """What a recovery adds: the adapter's products, and a tower's positions for the prompt."""
    total = 0.0
    if recovery.reduction:
        hidden = max(1, model.feature_width // recovery.reduction)
        macs = 2 * hidden * model.feature_width * model.adapter_rows
        total += float(macs * recovery.adapter_bits**2)
    for layer in model.layers:
        if layer.tower in model.prompted_towers and layer.kind is not LayerKind.EMBEDDING:
            precision = precisions.get(layer.name, Precision(_FULL_BITS))
            macs = layer.weights * recovery.context_length
            total += float(macs * precision.weight_bits * precision.activation_bits)
    return total


def _input_nbytes(layer: Layer, precision: Precision, quantizer: QuantizerSpec) -> int:
    return 0 if layer.kind is LayerKind.EMBEDDING else input_nbytes(precision, quantizer)


def _recovery_parts(
    model: LayeredModel, recovery: Recovery, quantizer: QuantizerSpec, classes: int
) -> dict[str, int]:
    parts = {}
    if recovery.context_length:
        contexts = classes if recovery.class_specific else 1
        parts["prompt"] = 2 * contexts * recovery.context_length * model.text_width
    if recovery.reduction:
        parts["adapter"] = AdapterShape.of(recovery, model.feature_width, quantizer).nbytes
    return parts
