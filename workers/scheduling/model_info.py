"""What a worker finds when it loads a job's model and data."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitfront.layers import Layer
from bitfront.profile import LayerEntropy
from bitfront.trial import Evaluation
from workers.scheduling.placement import Footprint


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The facts that the driver plans with; it never loads the model itself.

    Attributes:
        layers: Every quantizable layer, in order of execution.
        fixed_nbytes: Bytes that no plan changes.
        entropies: One for each layer that takes an input.
        full: The full-precision model on the selection split, with every objective.
        footprint: The memory that it took.
        identities: Hashes of what results depend on: `model`, `calibration`, `tuning`,
            `selection`, `test`, `cells` (quantizer and error measure).
        provenance: Versions, host and device.
    """

    layers: tuple[Layer, ...]
    fixed_nbytes: int
    entropies: tuple[LayerEntropy, ...]
    full: Evaluation
    footprint: Footprint
    identities: Mapping[str, str]
    provenance: Mapping[str, str]
