"""A model with its layers: what plans are put onto, whatever the model does."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor, nn

from bitfront.errors import InvalidModel, SpecError
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.plan import digest
from bitfront.vlm.layers.effect import without_effect
from bitfront.vlm.layers.experts import has_called_experts
from bitfront.vlm.layers.rewrite import call_every_weight
from bitfront.vlm.layers.trace import Site, find_sites
from bitfront.vlm.models.residency import MakeWeight, Residency
from bitfront.vlm.models.settings import ModelSettings
from bitfront.vlm.models.stored_weights import StoredWeights
from bitfront.vlm.models.weights_digest import model_identity


class LeftReason(StrEnum):
    """Why no plan quantizes a matrix."""

    NOT_REACHED = "no sample runs through it"
    WITHOUT_EFFECT = "nothing that the model gives depends on it"
    NOT_MULTIPLIED = "it is looked up, added, or multiplied in a way that is not known"


@dataclass(frozen=True, slots=True)
class LeftWeight:
    """A matrix of a model that no plan quantizes.

    Attributes:
        name: Of its parameter.
        weights: The number of weights.
        reason: Why.
    """

    name: str
    weights: int
    reason: LeftReason


class LayeredModel(ABC):
    """A model whose layers can be watched and given other weights.

    The model is rewritten in place: afterwards every layer's weight belongs to a Linear,
    Conv2d or Embedding that is called as a module. It is put in eval mode, without gradients
    for its parameters.

    Attributes:
        module: The rewritten model.
        layers: In order of execution, vision tower first.
        kept: Parameters that stay in 16 bits with their numbers of elements: norms, biases,
            positions, class embeddings, the logit scale, and what never runs.
        left: Those of `kept` that are matrices.
        has_experts: Whether tokens go to some of several experts.
        buffers: The floating-point tensors that a checkpoint holds beside the parameters
            (batch norm statistics) with their numbers of elements.
        device: Where the model is.
        weights_identity: Hash of the architecture and the weights, as they were before rewriting.
        settings: What makes token ids and pixels; None for a bundled model, whose are
            part of the code.
        identity: Hash of the weights' identity and the input settings.
        switch: The `PlanSwitch` whose plan is on the model; None before the first.
        residency: What brings transformer blocks into memory, for a model that is larger; None
            where all of it is there.
    """

    switch: object | None = None
    residency: Residency | None = None

    def __init__(
        self,
        model: nn.Module,
        token_embedding: nn.Embedding,
        runs: Mapping[Tower, Callable[[], object]],
        settings: ModelSettings | None = None,
        parts: Mapping[nn.Module, Tower] = MappingProxyType({}),
        results: Sequence[Callable[[], Tensor]] = (),
        stored: StoredWeights | None = None,
    ) -> None:
        """Takes the model over.

        Args:
            model: The model.
            token_embedding: The only embedding that counts as a layer.
            runs: For each tower, what runs it on one empty sample.
            settings: What makes token ids and pixels.
            parts: As for `find_sites`.
            results: What the model gives for one sample, where layers may run for nothing.
            stored: Where the weights are, of a model whose parameters are on the meta device.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        model.eval().requires_grad_(requires_grad=False)
        parameters = dict(model.named_parameters())
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        identities = {id(parameter): name for name, parameter in parameters.items()}
        self.module = model
        self.device = next(model.parameters()).device if stored is None else stored.device
        self.weights_identity = model_identity(model, _finite_tensors(model, stored))
        self.settings = settings
        self.identity = (
            self.weights_identity
            if settings is None
            else digest([self.weights_identity, settings.digest])
        )
        self.buffers: Mapping[str, int] = {
            name: tensor.numel()
            for name, tensor in model.state_dict().items()
            if name not in aliases and tensor.is_floating_point()
        }
        names = call_every_weight(model)
        self.has_experts = any(map(has_called_experts, model.modules()))
        wanted = {
            module: name
            for module, name in names.items()
            if not isinstance(module, nn.Embedding) or module is token_embedding
        }
        with nullcontext() if stored is None else _buffers_on_meta(model):
            sites = find_sites(model, wanted, runs, parts)
        unused = without_effect({site.layer.name: site.modules for site in sites}, results)
        sites = [site for site in sites if site.layer.name not in unused]
        self._sites: dict[str, Site] = {site.layer.name: site for site in sites}
        self.layers: tuple[Layer, ...] = tuple(site.layer for site in sites)
        found: Counter[str] = Counter()
        for layer in self.layers:
            # The layers of packed experts have the parameter's name and their number.
            own = layer.name in sizes
            found[layer.name if own else layer.name.rpartition(".")[0]] += layer.weights
        self.kept: Mapping[str, int] = {
            name: count - found[name] for name, count in sizes.items() if count > found[name]
        }
        reasons = dict.fromkeys(wanted.values(), LeftReason.NOT_REACHED)
        reasons |= dict.fromkeys(unused, LeftReason.WITHOUT_EFFECT)
        self.left: tuple[LeftWeight, ...] = tuple(
            LeftWeight(name, count, reasons.get(name, LeftReason.NOT_MULTIPLIED))
            for name, count in self.kept.items()
            if sum(size > 1 for size in shapes[name]) > 1
        )
        if stored is not None:
            self.residency = Residency(model, identities, stored)
        # Aliases of the original storage: whatever `put_weight` does, these stay as they are.
        self._originals = {
            site.layer.name: site.modules[0].get_parameter("weight").detach() for site in sites
        }
        self._original_vectors: dict[str, Tensor] = {}

    @property
    def parts(self) -> dict[str, str]:
        """What the identity is made of, by name: a changed part is named by it."""
        settings = {} if self.settings is None else self.settings.to_provenance()
        return {"weights": self.weights_identity, **settings}

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """Width of the features that a recovery's adapter works on."""

    @property
    @abstractmethod
    def adapter_rows(self) -> int:
        """Rows of features that an adapter multiplies for one sample."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width of an embedded token, and so of a prompt vector."""

    @property
    @abstractmethod
    def prompted_towers(self) -> frozenset[Tower]:
        """The towers that run a recovery's prompt vectors anew for every sample."""

    @property
    def fixed_nbytes(self) -> int:
        """Bytes of everything that no plan changes, at 2 bytes an element."""
        return 2 * (sum(self.kept.values()) + sum(self.buffers.values()))

    @contextmanager
    def watch_inputs(self, callback: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Calls back with a layer's name and input whenever it runs; embeddings give none.

        The input is what the weight multiplies: with a plan on, the quantized one.
        """

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _module, args: callback(name, args[0])

        hooks = [
            module.register_forward_pre_hook(watch(name))
            for name in self._sites
            for module in self.multiplying(name)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def modules(self, layer: str) -> tuple[nn.Module, ...]:
        """The modules that hold the layer's weight: one, or several when it is tied.

        Raises:
            SpecError: The model has no such layer.
        """
        if layer not in self._sites:
            raise SpecError(f"the model has no layer {layer!r}: its first is {self.layers[0].name}")
        return self._sites[layer].modules

    def is_of_expert(self, layer: str) -> bool:
        """Whether a layer is one of an expert, which only some tokens reach."""
        return self.has_experts and "experts" in layer.split(".")

    def multiplying(self, layer: str) -> tuple[nn.Module, ...]:
        """Those of the layer's modules that multiply an input: all but embeddings."""
        return tuple(m for m in self.modules(layer) if not isinstance(m, nn.Embedding))

    def stream(self, layer: str) -> nn.Module | None:
        """The module whose input is the residual stream that the layer's output is added to.

        None where the output is not added to one, or not as it is.
        """
        self.modules(layer)
        return self._sites[layer].stream

    def acts_from_the_start(self, layer: str) -> bool:
        """Whether the weight is tied to an embedding, and so at work before its place in order."""
        embeds = any(isinstance(module, nn.Embedding) for module in self.modules(layer))
        return embeds and self._sites[layer].layer.kind is not LayerKind.EMBEDDING

    def weight(self, layer: str) -> Float[Tensor, "rows columns"]:
        """The layer's full-precision weight, whatever plan is on the model."""
        self.modules(layer)
        if self.residency is not None and layer in self.residency.stored:
            return self.residency.stored.read(layer).flatten(1)
        return self._originals[layer].flatten(1)

    def put_weight(
        self, layer: str, given: Float[Tensor, "rows columns"] | MakeWeight | None
    ) -> None:
        """Gives the layer another weight; None gives it its own back, bit for bit.

        What makes a weight is called at once, or, where only some blocks are in memory, whenever
        the layer's comes there.
        """
        modules = self.modules(layer)
        if self.residency is not None:
            make = (lambda: given) if isinstance(given, Tensor) else given
            for parameter in {
                id(p): p for m in modules for p in [m.get_parameter("weight")]
            }.values():
                self.residency.put(parameter, make)
            return
        original = self._originals[layer]
        weight = given() if callable(given) and not isinstance(given, Tensor) else given
        for module in modules:
            parameter = module.get_parameter("weight")
            parameter.data = original if weight is None else weight.view_as(original)

    @property
    def vectors(self) -> tuple[str, ...]:
        """The weights of norms and all biases: their names in the rewritten model."""
        layers = {id(m.get_parameter("weight")) for name in self._sites for m in self.modules(name)}
        return tuple(
            name
            for name, parameter in self.module.named_parameters()
            if id(parameter) not in layers
            and parameter.ndim == 1
            and name.rpartition(".")[2].endswith(("weight", "bias"))
        )

    def put_vector(self, name: str, values: Float[Tensor, " n"] | None) -> None:
        """Gives one of `vectors` other values; None gives it its own back, bit for bit."""
        parameter = self.module.get_parameter(name)
        original = self._original_vectors.setdefault(name, parameter.detach())
        parameter.data = original if values is None else values.to(original)


def _finite_tensors(model: nn.Module, stored: StoredWeights | None) -> Iterator[tuple[str, Tensor]]:
    """The state dict in order of the names, each tensor looked at once.

    Raises:
        InvalidModel: A value is not finite.
    """
    for name, tensor in sorted(model.state_dict().items()):
        read = tensor if stored is None or name not in stored else stored.read(name)
        if read.is_floating_point() and not read.is_meta and not read.isfinite().all():
            raise InvalidModel(f"{name} has values that are NaN or infinite")
        yield name, read


@contextmanager
def _buffers_on_meta(model: nn.Module) -> Iterator[None]:
    """Within it the buffers have no values either, so that a run needs only shapes."""
    owners = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in owners:
        setattr(module, name, buffer.to("meta"))
    try:
        yield
    finally:
        for module, name, buffer in owners:
            setattr(module, name, buffer)
