"""What gguf cannot hold, and what it holds in another way, in sentences."""

from collections.abc import Mapping, Sequence

from bitfront.artefact.gguf.files import Files
from bitfront.errors import InvalidModel
from bitfront.layers import Layer, LayerKind
from bitfront.precision import Precision
from bitfront.quant.blocks import BLOCK_TYPES, block_rounding
from bitfront.units import size_text

_BLOCK = min(one.size for one in BLOCK_TYPES)

PROJECTOR_NOTE = (
    "mmproj.gguf is run by gguf_model.py, with NumPy: llama.cpp loads it, but puts the class token "
    "of a CLIP tower last and then drops the first row, so it would lose the first patch and shift "
    "the positions of the others"
)


WORDS_NOTE = (
    "decoder.gguf has no tokenizer, for llama.cpp knows none of this kind: gguf_model.py makes the "
    "tokens"
)


def refuse_other_formats(
    plan: Mapping[str, Precision],
    *,
    symmetric: bool,
    recovery: bool,
    layers: Sequence[Layer] = (),
) -> None:
    """Refuses what the format cannot say.

    Args:
        plan: The precision of each layer.
        symmetric: Whether weights have no zero points.
        recovery: Whether there is a prompt or an adapter.
        layers: The model's, whose columns say which groups fit.

    Raises:
        InvalidModel: Weights have zero points, inputs are rounded, groups do not fit, or there is a
            recovery.
    """
    if recovery:
        raise InvalidModel(
            "gguf has no place for a recovery's prompt and adapter: choose a trial without one, or "
            "build it with --to packed"
        )
    quantized = {name: one for name, one in plan.items() if one.quantizes_weight}
    if quantized and not symmetric:
        raise InvalidModel(
            "llama.cpp's blocks have no place for zero points: search with quantizer.scheme: "
            "symmetric, or build it with --to packed"
        )
    rounded = [name for name, one in plan.items() if one.quantizes_input]
    if rounded:
        raise InvalidModel(
            f"the inputs of {len(rounded)} layers, first {rounded[0]}, are rounded, and llama.cpp "
            "rounds them in its own way: search with space.activation_bits: [16], or build it with "
            "--to packed"
        )
    for layer in layers:
        group = quantized[layer.name].group if layer.name in quantized else 0
        has_blocks = layer.kind is not LayerKind.CONVOLUTION and layer.columns % _BLOCK == 0
        if has_blocks and group % _BLOCK and group < layer.columns:
            raise InvalidModel(
                f"{layer.name} has scales for groups of {group} columns, and llama.cpp's blocks "
                f"have {_BLOCK} or 256: search with space.groups: [0] or multiples of {_BLOCK}, or "
                "build it with --to packed"
            )


def changes(
    files: Files,
    layers: Sequence[Layer],
    plan: Mapping[str, Precision],
    *,
    is_blocked: bool,
    has_words: bool,
) -> list[str]:
    """What the files hold or compute in another way than the trial.

    Args:
        files: The files.
        layers: The model's.
        plan: The precision of each layer.
        is_blocked: Whether the trial's inputs were rounded and its bytes counted as llama.cpp does
            it.
        has_words: Whether the decoder's file has a tokenizer.
    """
    found = [PROJECTOR_NOTE] if has_words else [PROJECTOR_NOTE, WORDS_NOTE]
    values = [name for name, kind in files.types.items() if kind == "F32"]
    if values:
        found.append(
            f"the codes of {len(values)} layers, first {values[0]}, have no blocks there "
            f"(convolutions, columns that are not a multiple of {_BLOCK}): their values are "
            "stored in 32 bits; space.keep: 16 for them saves half"
        )
    if files.wider:
        found.append(
            f"the codes of {len(files.wider)} layers, first {files.wider[0]}, lie in wider blocks, "
            "which changes no number: 2, 3 and 6 bits have their own for columns and groups in "
            "multiples of 256 only"
        )
    if not is_blocked:
        found += _unblocked(files, layers, plan)
    return found


def _unblocked(files: Files, layers: Sequence[Layer], plan: Mapping[str, Precision]) -> list[str]:
    """What a trial did not count on that was not searched for gguf."""
    rounded = [x for x in layers if x.name in plan and block_rounding(x, plan[x.name])]
    return [
        f"the tensors take {size_text(files.nbytes)}, with the scales of llama.cpp's blocks and "
        "what no plan changes in 32 bits: target: gguf counts that",
        f"llama.cpp rounds the inputs of {len(rounded)} layers to 8 bits, in blocks of 32 or "
        "256 columns, which the trial left alone: target: gguf measures with that",
    ]
