"""How important layers are by what a mask on their weights does (OHQ, arXiv:2309.01945)."""

import torch

from bitfront.layers import Tower
from objectives.execution.similarity import divergence_nats
from objectives.profiling.full_precision import FullPrecisionReference

MASKS = 2
SHARE = 0.1


def masked_sensitivity(reference: FullPrecisionReference, tower: Tower) -> dict[str, float]:
    """`mean_r KL(p || p_r)` in nats, `p_r` with a random tenth of the layer's weights at zero.

    The mask-guided estimate of OHQ without gradients; which masks it draws, and how many, the paper
    leaves open. Each takes a run of the model.
    """
    reference.switch.clear()
    stream = reference.stream(tower)
    expected = reference.scores(stream, reference.outputs[stream.key])
    generator = torch.Generator().manual_seed(reference.seed)
    found = {}
    for layer in reference.model.layers:
        if layer.tower not in stream.towers:
            continue
        own = reference.model.weight(layer.name)
        total = 0.0
        for _ in range(MASKS):
            kept = torch.rand(own.shape, generator=generator) >= SHARE
            try:
                reference.model.put_weight(layer.name, own * kept.to(own.device, own.dtype))
                with torch.no_grad():
                    output = torch.cat([stream.run(n) for n in range(len(stream.sizes))])
            finally:
                reference.model.put_weight(layer.name, None)
            total += divergence_nats(expected, reference.scores(stream, output))
        found[layer.name] = max(0.0, total / MASKS)
    return found
