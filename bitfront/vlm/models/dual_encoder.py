"""A dual encoder with its layers: the one form in which every library's model is used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import LayerKind, Tower
from bitfront.plan import ClassPosition
from bitfront.vlm.models.caption_tokenizer import CaptionTokenizer
from bitfront.vlm.models.captions import CaptionLayout, ClassNames, Tokenize
from bitfront.vlm.models.layered import LayeredModel
from bitfront.vlm.models.prompted import CausalText, PromptRows, fill
from bitfront.vlm.models.settings import ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DualEncoderInterface:
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
        causal_text: How the text tower runs packed rows; None where whole rows matter.
        settings: What `preprocess` and `tokenize` depend on; None where that is fixed.
        caption_tokenizer: Gives what `tokenize` does as a file; it gives None where that is fixed,
            or where the package tokenizers cannot do the same.
    """

    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Tensor], Tensor]
    preprocess: Callable[[Image], Tensor]
    tokenize: Tokenize
    token_embedding: nn.Embedding
    logit_scale: Tensor
    image_shape: tuple[int, int, int]
    context_length: int
    causal_text: CausalText | None = None
    settings: ModelSettings | None = None
    caption_tokenizer: Callable[[], CaptionTokenizer | None] = lambda: None


class DualEncoder(LayeredModel):
    """An image and a text encoder."""

    def __init__(self, model: nn.Module, interface: DualEncoderInterface) -> None:
        """Takes the model over.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        self._interface = interface
        device = next(model.parameters()).device
        pixels = torch.zeros(1, *interface.image_shape, device=device)
        tokens = torch.zeros(1, interface.context_length, dtype=torch.long, device=device)

        def run_vision() -> Tensor:
            features = interface.encode_images(pixels)
            self._feature_width = int(features.shape[-1])
            return features

        def run_text() -> Tensor:
            return interface.encode_texts(tokens)

        super().__init__(
            model,
            interface.token_embedding,
            {Tower.VISION: run_vision, Tower.TEXT: run_text},
            interface.settings,
            results=(run_vision, run_text),
        )

    @property
    def feature_width(self) -> int:
        """Width of an image's or a text's features."""
        return self._feature_width

    @property
    def adapter_rows(self) -> int:
        """One: an image has one feature vector."""
        return 1

    @property
    def prompted_towers(self) -> frozenset[Tower]:
        """None: the classes are encoded once for a task, so their prompt costs a sample nothing."""
        return frozenset()

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

    def caption_tokenizer(self) -> CaptionTokenizer | None:
        """What `tokenize` does, as a file; None without settings, or where no file does it."""
        return self._interface.caption_tokenizer()

    def encode_images(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Image features, not normalised."""
        return self._interface.encode_images(pixels.to(self.device))

    def encode_texts(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n out"]:
        """Text features of what `tokenize` gave, not normalised."""
        return self._interface.encode_texts(tokens.to(self.device))

    def class_names(self, names: Sequence[str], tail: str = "") -> ClassNames:
        """The classes as `encode_prompts` takes them.

        Args:
            names: Their names.
            tail: What follows a name, as in a template: ".", or " in a picture".

        Raises:
            InvalidModel: The tokenizer makes nothing of a name.
        """
        return ClassNames.of(names, tail, self.tokenize)

    def encode_prompts(
        self,
        names: ClassNames,
        context: Float[Tensor, "*context"],
        position: ClassPosition = ClassPosition.END,
    ) -> Float[Tensor, "classes out"]:
        """Text features of classes under learnable vectors, not normalised.

        Where the text tower is causal, what all classes share at their beginning runs once,
        and nothing runs after a class's end of text.

        Args:
            names: What `class_names` gave.
            context: `(m, d)`, or `(classes, m, d)` where each class has its own: vectors that
                stand between the start token and what follows the names; gradients reach them.
            position: Where among them the name stands.

        Raises:
            SpecError: The vectors have another width than the tower, are of another number of
                classes, or do not fit.
        """
        self._check_context(context, len(names))
        context = context.to(self.device)
        names = names.to(self.device)
        rows = PromptRows.of(names, context, position)
        causal = self._interface.causal_text
        if causal is not None:
            return causal.encode_rows(rows, context, self._interface.token_embedding)
        return self._encode_whole(rows, context)

    def _check_context(self, context: Tensor, classes: int) -> None:
        width = self.text_width
        shared = context.ndim == 2 and context.shape[1] == width
        own = context.ndim == 3 and (len(context), context.shape[2]) == (classes, width)
        if not (shared or own):
            raise SpecError(
                f"prompt vectors must be (count, {width}), or ({classes}, count, {width}) for "
                f"{classes} classes with each its own, got {tuple(context.shape)}"
            )

    def _encode_whole(
        self, rows: PromptRows, context: Float[Tensor, "*classes m d"]
    ) -> Float[Tensor, "classes out"]:
        def put(_module: nn.Module, _args: object, embedded: Tensor) -> Tensor:
            return fill(embedded, rows.slots, context)

        hook = self._interface.token_embedding.register_forward_hook(put)
        try:
            return self._interface.encode_texts(rows.tokens)
        finally:
            hook.remove()

    def embed_words(self, text: str) -> Float[Tensor, "m d"]:
        """The full-precision embeddings of the text's own tokens, to start a prompt from."""
        layout = CaptionLayout.of(self.tokenize, [text])
        tokens = self.tokenize([text]).to(self.device)
        words = tokens[0, layout.start : int(layout.ends(tokens)[0])]
        weight = next(
            self._originals[layer.name]
            for layer in self.layers
            if layer.kind is LayerKind.EMBEDDING
        )
        return weight[words].clone()
