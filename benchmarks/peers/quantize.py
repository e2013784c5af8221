"""Weights as a peer quantizes them; runs in the peer's environment, without bitfront.

    python -m benchmarks.peers.quantize FOLDER GROUP METHOD:BITS:SCHEME ...

FOLDER is what `exchange` wrote; GROUP 0 is one scale a row; SCHEME is symmetric or asymmetric.
`METHOD-BITS.safetensors` in the folder gets the values that the codes stand for, by the names of
the modules, and the seconds in its metadata; `METHOD-BITS.txt` what a peer said when it failed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.reading import Batch, Model, read_exchange

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What a peer is asked for: the model, its batches, the layers, and the form of the codes."""

    model: Model
    batches: list[Batch]
    layers: list[str]
    bits: int
    group: int
    is_symmetric: bool
    before: Weights

    def forward(self, model: Model) -> None:
        """Runs every calibration batch."""
        with torch.no_grad():
            for batch in self.batches:
                model(**batch)

    def check(self, name: str, weight: Tensor) -> Tensor:
        """The weight of a layer, which must have changed and have no more levels than asked for."""
        before = self.before[name]
        groups = weight.reshape(-1, self.group or weight.shape[1])
        levels = max(len(group.unique()) for group in groups)
        if torch.equal(weight, before) or levels > 1 << self.bits:
            raise ValueError(f"{name} has {levels} levels in a group, and {self.bits} bits")
        return weight

    def weights(self, model: Model) -> Weights:
        """The weights that the layers have now, checked."""
        return {
            name: self.check(name, model.get_submodule(name).weight.detach().clone())
            for name in self.layers
        }


def read(folder: Path, bits: int, group: int, scheme: str) -> Asked:
    """The exchange folder, as a peer sees it: without the right answers."""
    model, samples = read_exchange(folder)
    batches = [
        {name: tensor for name, tensor in batch.items() if name != "answers"} for batch in samples
    ]
    layers = json.loads((folder / "layers.json").read_text())
    before = {name: model.get_submodule(name).weight.detach().clone() for name in layers}
    return Asked(model, batches, layers, bits, group, scheme == "symmetric", before)


def hqq(asked: Asked) -> Weights:
    """HQQ: no calibration; half-quadratic fit of zero points."""
    from hqq.core.quantize import Quantizer

    found = {}
    for name, weight in asked.before.items():
        codes, meta = Quantizer.quantize(
            weight,
            nbits=asked.bits,
            channel_wise=True,
            group_size=asked.group or weight.shape[1],
            optimize=True,
            axis=1,
            device="cpu",
            compute_dtype=torch.float32,
        )
        found[name] = asked.check(name, Quantizer.dequantize(codes, meta).view_as(weight).float())
    return found


def quanto(asked: Asked) -> Weights:
    """Quanto: no calibration; the extremes of each group."""
    from optimum.quanto import qint2, qint4
    from optimum.quanto.tensor import MaxOptimizer, quantize_weight

    kind = {2: qint2, 4: qint4}[asked.bits]
    found = {}
    for name, weight in asked.before.items():
        group = asked.group or None
        scale, shift = MaxOptimizer()(weight, qtype=kind, axis=0, group_size=group)
        codes = quantize_weight(
            weight, qtype=kind, axis=0, scale=scale, shift=shift, group_size=group
        )
        found[name] = asked.check(name, codes.dequantize().float())
    return found


def compressed(asked: Asked, modifier: Callable[..., Any]) -> Weights:
    """A modifier of llm-compressor over the calibration batches."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    arguments = QuantizationArgs(
        num_bits=asked.bits,
        symmetric=asked.is_symmetric,
        strategy="group" if asked.group else "channel",
        group_size=asked.group or None,
    )
    groups = {"all": QuantizationScheme(targets=asked.layers, weights=arguments)}
    recipe = modifier(config_groups=groups)
    samples: Any = [
        {name: tensor[row % len(tensor)][None] for name, tensor in batch.items()}
        for batch in asked.batches
        for row in range(max(map(len, batch.values())))
    ]
    oneshot(
        model=asked.model,
        processor=object(),  # the batches are ready; it only must not be looked for
        dataset=DataLoader(samples, batch_size=None),
        recipe=recipe,
        pipeline="basic",
        num_calibration_samples=len(samples),
    )
    return {
        name: asked.check(name, _on_its_grid(asked.model.get_submodule(name)))
        for name in asked.layers
    }


def _on_its_grid(module: Model) -> Tensor:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    values: Tensor = fake_quantize(
        module.weight,
        scale=module.weight_scale,
        zero_point=getattr(module, "weight_zero_point", None),
        args=module.quantization_scheme.weights,
    )
    return values.detach()


def llmcompressor_gptq(asked: Asked) -> Weights:
    """GPTQ as llm-compressor has it."""
    from llmcompressor.modifiers.quantization import GPTQModifier

    return compressed(asked, GPTQModifier)


def llmcompressor_rtn(asked: Asked) -> Weights:
    """Round to nearest as llm-compressor has it."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return compressed(asked, QuantizationModifier)


def modelopt(algorithm: object) -> Callable[[Asked], Weights]:
    """An algorithm of ModelOpt's quantize."""

    def run(asked: Asked) -> Weights:
        import modelopt.torch.quantization as mtq

        weight: dict[str, object] = {"num_bits": asked.bits}
        weight |= {"block_sizes": {-1: asked.group}} if asked.group else {"axis": 0}
        rules: list[dict[str, object]] = [{"quantizer_name": "*", "enable": False}]
        rules += [
            {"quantizer_name": f"{name}.weight_quantizer", "cfg": weight, "enable": True}
            for name in asked.layers
        ]
        model = mtq.quantize(
            asked.model, {"quant_cfg": rules, "algorithm": algorithm}, asked.forward
        )
        found = {}
        for name in asked.layers:
            layer = model.get_submodule(name)
            found[name] = asked.check(name, layer.weight_quantizer(layer.weight).detach())
            scale = getattr(layer.input_quantizer, "_pre_quant_scale", None)
            if scale is not None:  # AWQ: what the inputs are multiplied by, folded back
                found[name] = found[name] * scale
        return found

    return run


def nncf(**settings: object) -> Callable[[Asked], Weights]:
    """Weight compression of NNCF."""

    def run(asked: Asked) -> Weights:
        import nncf

        side = "SYM" if asked.is_symmetric else "ASYM"
        mode = nncf.CompressWeightsMode[f"INT{asked.bits}_{side}"]
        model = nncf.compress_weights(
            asked.model,
            mode=mode,
            group_size=asked.group or -1,
            ratio=1.0,
            all_layers=True,
            dataset=nncf.Dataset(asked.batches),
            **settings,
        )
        model = nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
        return asked.weights(model)

    return run


METHODS: dict[str, Callable[[Asked], Weights]] = {
    "hqq": hqq,
    "quanto": quanto,
    "llmcompressor-rtn": llmcompressor_rtn,
    "llmcompressor-gptq": llmcompressor_gptq,
    "modelopt-max": modelopt("max"),
    "modelopt-mse": modelopt("mse"),
    "modelopt-awq": modelopt({"method": "awq_lite"}),
    "modelopt-gptq": modelopt({"method": "gptq"}),
    "nncf-scale": nncf(scale_estimation=True),
    "nncf-awq-scale": nncf(awq=True, scale_estimation=True),
}


def main(folder: Path, group: int, wanted: Iterable[str]) -> None:
    """Quantizes the model anew for each that is wanted."""
    for method, bits, scheme in (text.split(":") for text in wanted):
        out = folder / f"{method}-{bits}"
        asked = read(folder, int(bits), group, scheme)
        started_s = time.process_time()
        try:
            found = METHODS[method](asked)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            out.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")
            continue
        seconds = time.process_time() - started_s
        tensors = {name: found[name].float().contiguous().clone() for name in asked.layers}
        save_file(tensors, out.with_suffix(".safetensors"), {"seconds": f"{seconds:.2f}"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
