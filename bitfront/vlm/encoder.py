"""A dual encoder with its layers: the one form in which every library's model is used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from bitfront.errors import InvalidModel, SpecError
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.vlm.captions import CaptionLayout, Tokenize
from bitfront.vlm.identity import model_identity
from bitfront.vlm.rewrite import call_every_weight
from bitfront.vlm.trace import Site, find_sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How one library's model is called.

    Attributes:
        encode_images: `(n, c, h, w)` to `(n, d)`, not normalised.
        encode_texts: `(n, context_length)` to `(n, d)`, not normalised.
        preprocess: A picture to `(c, h, w)`.
        tokenize: Captions to `(n, context_length)`.
        token_embedding: The embedding that the text tower looks the tokens up in.
        logit_scale: The logarithm of the factor on cosine similarities.
        image_shape: `(c, h, w)`.
        context_length: Tokens in a row.
    """

    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Tensor], Tensor]
    preprocess: Callable[[Image], Tensor]
    tokenize: Tokenize
    token_embedding: nn.Embedding
    logit_scale: Tensor
    image_shape: tuple[int, int, int]
    context_length: int


class DualEncoder:
    """An image and a text encoder whose layers can be watched and given other weights.

    The model is rewritten in place: afterwards every layer's weight belongs to a Linear,
    Conv2d or Embedding that is called as a module. It is put in eval mode, without gradients
    for its parameters.

    Attributes:
        module: The rewritten model.
        layers: In order of execution, vision tower first.
        kept: Parameters that stay in 16 bits with their numbers of elements: norms, biases,
            positions, class embeddings, the logit scale, and what encoding never runs.
        buffers: The floating-point tensors that a checkpoint holds beside the parameters
            (batch norm statistics) with their numbers of elements.
        device: Where the model is.
        feature_width: Width of a feature.
        text_width: Width of an embedded token, and so of a prompt vector.
        context_length: Tokens in a row.
        identity: Hash of the architecture and the weights, as they were before rewriting.
    """

    def __init__(self, model: nn.Module, interface: Interface) -> None:
        """Takes the model over.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        _refuse_non_finite(model)
        model.eval().requires_grad_(requires_grad=False)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.module = model
        self.device = next(model.parameters()).device
        self.identity = model_identity(model)
        self.buffers: Mapping[str, int] = {
            name: tensor.numel()
            for name, tensor in model.state_dict().items()
            if name not in aliases and tensor.is_floating_point()
        }
        self._interface = interface
        self._layout: CaptionLayout | None = None
        names = call_every_weight(model)
        wanted = {
            module: name
            for module, name in names.items()
            if not isinstance(module, nn.Embedding) or module is interface.token_embedding
        }
        sites = find_sites(model, wanted, self._runs())
        self._sites: dict[str, Site] = {site.layer.name: site for site in sites}
        self.layers: tuple[Layer, ...] = tuple(site.layer for site in sites)
        self.kept: Mapping[str, int] = {
            name: count for name, count in sizes.items() if name not in self._sites
        }
        # Aliases of the original storage: whatever `put_weight` does, these stay as they are.
        self._originals = {
            site.layer.name: site.modules[0].get_parameter("weight").detach() for site in sites
        }

    def _runs(self) -> dict[Tower, Callable[[], object]]:
        """What runs each tower on one empty sample."""
        interface = self._interface
        pixels = torch.zeros(1, *interface.image_shape, device=self.device)
        tokens = torch.zeros(1, interface.context_length, dtype=torch.long, device=self.device)

        def run_vision() -> None:
            self.feature_width = int(interface.encode_images(pixels).shape[-1])

        def run_text() -> None:
            interface.encode_texts(tokens)

        return {Tower.VISION: run_vision, Tower.TEXT: run_text}

    @property
    def context_length(self) -> int:
        """Tokens in a row."""
        return self._interface.context_length

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an encoded picture."""
        return self._interface.image_shape

    @property
    def text_width(self) -> int:
        """Width of an embedded token, and so of a prompt vector."""
        return self._interface.token_embedding.embedding_dim

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities."""
        return float(self._interface.logit_scale.detach().exp())

    @property
    def fixed_nbytes(self) -> int:
        """Bytes of everything that no plan changes, at 2 bytes an element."""
        return 2 * (sum(self.kept.values()) + sum(self.buffers.values()))

    def preprocess(self, image: Image) -> Float[Tensor, "c h w"]:
        """The picture as the model takes it: resized, in its channels, normalised."""
        return self._interface.preprocess(image)

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "n length"]:
        """The captions as rows of tokens, filled up to the context length."""
        return self._interface.tokenize(texts)

    def encode_images(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Image features, not normalised."""
        return self._interface.encode_images(pixels.to(self.device))

    def encode_texts(
        self, tokens: Int[Tensor, "n length"], context: Float[Tensor, "m d"] | None = None
    ) -> Float[Tensor, "n out"]:
        """Text features, not normalised.

        Args:
            tokens: What `tokenize` gave.
            context: Prompt vectors that go between the start token and the caption; gradients
                reach them.

        Raises:
            SpecError: The vectors have another width than the tower, or do not fit.
        """
        tokens = tokens.to(self.device)
        if context is None or len(context) == 0:
            return self._interface.encode_texts(tokens)
        if context.ndim != 2 or context.shape[1] != self.text_width:
            raise SpecError(
                f"prompt vectors must be (count, {self.text_width}), got {tuple(context.shape)}"
            )
        layout = self._caption_layout()
        tokens = layout.make_room(tokens, len(context))

        def fill(_module: nn.Module, _args: object, embedded: Tensor) -> Tensor:
            return layout.fill(embedded, context.to(self.device))

        hook = self._interface.token_embedding.register_forward_hook(fill)
        try:
            return self._interface.encode_texts(tokens)
        finally:
            hook.remove()

    def embed_words(self, text: str) -> Float[Tensor, "m d"]:
        """The full-precision embeddings of the text's own tokens, to start a prompt from."""
        layout = self._caption_layout()
        tokens = self.tokenize([text]).to(self.device)
        words = tokens[0, layout.start : int(layout.ends(tokens)[0])]
        weight = next(
            self._originals[layer.name]
            for layer in self.layers
            if layer.kind is LayerKind.EMBEDDING
        )
        return weight[words].clone()

    def _caption_layout(self) -> CaptionLayout:
        if self._layout is None:
            self._layout = CaptionLayout.of(self.tokenize)
        return self._layout

    @contextmanager
    def watch_inputs(self, callback: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Calls back with a layer's name and input whenever it runs; embeddings give none.

        The input is what the weight multiplies: with a plan on, the quantized one.
        """

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _module, args: callback(name, args[0])

        hooks = [
            module.register_forward_pre_hook(watch(name))
            for name, site in self._sites.items()
            if site.layer.kind is not LayerKind.EMBEDDING
            for module in site.modules
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

    def weight(self, layer: str) -> Float[Tensor, "rows columns"]:
        """The layer's full-precision weight, whatever plan is on the model."""
        self.modules(layer)
        return self._originals[layer].flatten(1)

    def put_weight(self, layer: str, weight: Float[Tensor, "rows columns"] | None) -> None:
        """Gives the layer another weight; None gives it its own back, bit for bit."""
        modules = self.modules(layer)
        original = self._originals[layer]
        for module in modules:
            parameter = module.get_parameter("weight")
            parameter.data = original if weight is None else weight.view_as(original)


def _refuse_non_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise InvalidModel(f"{name} has values that are NaN or infinite")
