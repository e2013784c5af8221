"""A dual encoder with its layers: the one form in which every library's model is used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import LayerKind, Tower
from bitfront.vlm.captions import CaptionLayout, Tokenize
from bitfront.vlm.layered import LayeredModel


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


class DualEncoder(LayeredModel):
    """An image and a text encoder.

    Attributes:
        feature_width: Width of a feature.
        text_width: Width of an embedded token, and so of a prompt vector.
        context_length: Tokens in a row.
    """

    def __init__(self, model: nn.Module, interface: Interface) -> None:
        """Takes the model over.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        self._interface = interface
        self._layout: CaptionLayout | None = None
        device = next(model.parameters()).device
        pixels = torch.zeros(1, *interface.image_shape, device=device)
        tokens = torch.zeros(1, interface.context_length, dtype=torch.long, device=device)

        def run_vision() -> None:
            self.feature_width = int(interface.encode_images(pixels).shape[-1])

        def run_text() -> None:
            interface.encode_texts(tokens)

        runs = {Tower.VISION: run_vision, Tower.TEXT: run_text}
        super().__init__(model, interface.token_embedding, runs)

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
