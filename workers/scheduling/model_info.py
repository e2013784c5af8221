"""What a worker finds when it loads a job's model and data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitfront.identity.identities import Identities
from bitfront.kv_cache import KvPlace
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
        identities: Of model, quantizer and splits: what results depend on.
        provenance: Versions, host and device.
        model_parts: The hashes and settings that the model's identity is made of, by name.
        fixed_times: Seconds that no plan changes, by the name of the time that is measured.
        cache: The places of its KV cache, for a job that counts or rounds it.
        warnings: What a person should look at before they trust the results.
    """

    layers: tuple[Layer, ...]
    fixed_nbytes: int
    entropies: tuple[LayerEntropy, ...]
    full: Evaluation
    footprint: Footprint
    identities: Identities
    provenance: Mapping[str, str]
    model_parts: Mapping[str, str] = field(default_factory=dict)
    fixed_times: Mapping[str, float] = field(default_factory=dict)
    cache: tuple[KvPlace, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The name of the device that the model was loaded on."""
        return self.provenance["device"]
