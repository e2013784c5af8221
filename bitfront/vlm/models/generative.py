"""A generative vision-language model with its layers: it answers questions about pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.vlm.models.layered import LayeredModel
from bitfront.vlm.models.settings import ModelSettings
from bitfront.vlm.models.stored_weights import StoredWeights

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A question as the model reads it.

    Attributes:
        tokens: `(length,)` int64, with a place for each token of the image.
        pixels: The image, `(c, h, w)` or, in several patches, `(p, c, h, w)`; None without one.
        size: Height and width of the picture, where the model wants to know them.
        further: What else a model wants to know of the prompt, by its library's name.
    """

    tokens: Tensor
    pixels: Tensor | None = None
    size: tuple[int, int] | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class QuestionBatch:
    """Questions with one answer each; prompts have one length, and so have answers.

    Nothing is filled up: padding would get into ranges and entropies.

    Attributes:
        prompts: `(n, prompt)` int64.
        answers: `(n, answer)` int64, each with its end.
        pixels: `(n, ...)`; None where the questions have no image.
        sizes: `(n, 2)` int64, height and width of the pictures; None where they do not matter.
        further: What else a model wants to know of the prompts, `(n, ...)` each.
    """

    prompts: Int[Tensor, "n prompt"]
    answers: Int[Tensor, "n answer"]
    pixels: Tensor | None
    sizes: Int[Tensor, "n 2"] | None
    further: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        answers: Int[Tensor, "n answer"],
        *,
        with_pixels: bool = True,
    ) -> "QuestionBatch":
        """The batch of prompts of one shape; without their pixels where none will look."""
        pixels = [p.pixels for p in prompts if with_pixels and p.pixels is not None]
        sizes = [prompt.size for prompt in prompts if prompt.size is not None]
        return cls(
            torch.stack([prompt.tokens for prompt in prompts]),
            answers,
            torch.stack(pixels) if pixels else None,
            torch.tensor(sizes) if sizes else None,
            {name: torch.stack([p.further[name] for p in prompts]) for name in prompts[0].further},
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def pick(self, rows: slice | Tensor) -> "QuestionBatch":
        """Some of the questions."""
        return QuestionBatch(
            self.prompts[rows],
            self.answers[rows],
            None if self.pixels is None else self.pixels[rows],
            None if self.sizes is None else self.sizes[rows],
            {name: value[rows] for name, value in self.further.items()},
        )

    def without_pixels(self) -> "QuestionBatch":
        """The same with other images, for runs that do not look at them."""
        # Not zeros: some models take an image of zeros for none.
        pixels = None if self.pixels is None else torch.ones_like(self.pixels)
        return replace(self, pixels=pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerativeInterface:
    """How one library's model is called.

    Attributes:
        runs: For each tower, what runs it on one empty sample.
        token_embedding: The embedding that the decoder looks the tokens up in.
        image_features: Pixels and sizes to what the projector gives, `(tiles, tokens, width)`.
        image_vectors: Those features and the sizes to what the decoder reads at the places of
            the image tokens, `(places, text_width)`, row after row. It raises SpecError where
            the tiles are not those of the sizes.
        logits: Embedded rows `(n, length, text_width)` to the logits `(n, kept, vocabulary)`
            of the last `kept` positions.
        continue_from: Like `logits` for the last position; it also returns a state, from which
            the next call continues with one more position a row.
        prepare: A question's text and its picture to a prompt; the text holds `image_token`
            where there is a picture.
        encode_answer: An answer's tokens with the end after them.
        decode: Tokens to text, without the end.
        ends: The tokens that end an answer.
        image_code: The token at whose places the decoder reads an image.
        tile_shape: Tokens and width of the features of one tile.
        max_length: Positions that the decoder was made for.
        image_token: What stands for the picture in a question's text.
        settings: What `prepare` and `encode_answer` depend on; None where that is fixed.
        tokenizer_json: The tokenizer as the package tokenizers writes it; None without one.
    """

    runs: Mapping[Tower, Callable[[], object]]
    token_embedding: nn.Embedding
    image_features: Callable[[Tensor, Tensor | None], Tensor]
    image_vectors: Callable[[Tensor, Tensor | None], Tensor]
    logits: Callable[[Tensor, int], Tensor]
    continue_from: Callable[[Tensor, object], tuple[Tensor, object]]
    prepare: Callable[[str, Image | None], Prompt]
    encode_answer: Callable[[str], Tensor]
    decode: Callable[[Sequence[int]], str]
    ends: frozenset[int]
    image_code: int
    tile_shape: tuple[int, int]
    max_length: int
    image_token: str = IMAGE_TOKEN
    settings: ModelSettings | None = None
    tokenizer_json: str | None = None


class GenerativeModel(LayeredModel):
    """A vision tower, a projector and a decoder that writes an answer.

    The decoder reads a prompt's tokens, with the images' features in the places of the image
    tokens. A context, if there is one, stands after a row's first token: image and question keep
    their distance, which decoders care about. To the decoder its vectors are tokens like others.

    Attributes:
        has_features: Whether it can be run with given image features and a context.
    """

    has_features = True

    def __init__(
        self,
        model: nn.Module,
        interface: GenerativeInterface,
        stored: StoredWeights | None = None,
    ) -> None:
        """Takes the model over; `stored` as for `LayeredModel`.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        self._interface = interface
        super().__init__(
            model, interface.token_embedding, interface.runs, interface.settings, stored=stored
        )

    @property
    def image_token(self) -> str:
        """What stands for the picture in a question's text."""
        return self._interface.image_token

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as the package tokenizers writes it; None where it is of another kind."""
        return self._interface.tokenizer_json

    @property
    def tile_tokens(self) -> int:
        """Tokens that the projector makes of a tile: of an image, or of a part of a large one."""
        return self._interface.tile_shape[0]

    @property
    def feature_width(self) -> int:
        """Width of the projector's output."""
        return self._interface.tile_shape[1]

    @property
    def adapter_rows(self) -> int:
        """The tokens of one tile."""
        return self.tile_tokens

    @property
    def prompted_towers(self) -> frozenset[Tower]:
        """The decoder: the context's vectors are positions of every row."""
        return frozenset({Tower.LANGUAGE})

    @property
    def text_width(self) -> int:
        """Width of an embedded token, and so of a context's vector."""
        return self._interface.token_embedding.embedding_dim

    def prepare(self, text: str, image: Image | None) -> Prompt:
        """A question's text and its picture as the model reads them."""
        return self._interface.prepare(text, image)

    def encode_answer(self, answer: str) -> Int[Tensor, " length"]:
        """The answer's tokens with the end after them."""
        return self._interface.encode_answer(answer)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, up to the end."""
        ended = next((n for n, token in enumerate(tokens) if token in self._interface.ends), None)
        return self._interface.decode(tokens[:ended])

    def has_ended(self, tokens: Sequence[int]) -> bool:
        """Whether the end is among the tokens."""
        return not self._interface.ends.isdisjoint(tokens)

    def image_features(self, batch: QuestionBatch) -> Float[Tensor, "tiles tokens width"] | None:
        """What the projector gives for the images; None without them. The decoder does not run.

        Tiles come in the order of the rows, and all rows of a batch have equally many: one, or
        several in a model that cuts large images up. Gradients flow where they are enabled.
        """
        if batch.pixels is None:
            return None
        dtype = next(self.module.parameters()).dtype
        return self._interface.image_features(batch.pixels.to(self.device, dtype), batch.sizes)

    def answer_logits(
        self,
        batch: QuestionBatch,
        *,
        features: Float[Tensor, "*features"] | None = None,
        context: Float[Tensor, "*context"] | None = None,
    ) -> Float[Tensor, "n answer vocabulary"]:
        """What the model expects at each token of the given answers (teacher forcing).

        Row `t` is the prediction of the answer's token `t`, after the prompt and the
        answer's earlier tokens. Gradients flow where they are enabled.

        Args:
            batch: The questions with their answers.
            features: `(tiles, tokens, width)`, taken for what `image_features` gives: vision
                tower and projector do not run, and the batch's pixels are not looked at.
            context: `(m, text_width)`, vectors that every row gets, as the class says.

        Raises:
            SpecError: The features or the context have another shape than the model's, or a
                row with the context is longer than what the decoder was made for.
        """
        tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
        embedded = self._embedded(batch, tokens, features, context)
        return self._interface.logits(embedded, batch.answers.shape[1])

    @torch.no_grad()
    def generate(
        self,
        batch: QuestionBatch,
        limit: int,
        *,
        features: Float[Tensor, "*features"] | None = None,
        context: Float[Tensor, "*context"] | None = None,
    ) -> list[list[int]]:
        """Greedy answers: at each step the token with the highest logit.

        Args:
            batch: The questions; its answers are not looked at.
            limit: Tokens at most, the end included.
            features: As for `answer_logits`.
            context: As for `answer_logits`; what is written may pass the decoder's length.

        Returns:
            Each row's tokens up to its end; without an end, `limit` of them.

        Raises:
            SpecError: As for `answer_logits`.
        """
        embedded = self._embedded(batch, batch.prompts, features, context)
        state: object = None
        written: list[list[int]] = [[] for _ in range(len(batch))]
        open_rows = set(range(len(batch)))
        for _ in range(limit):
            logits, state = self._interface.continue_from(embedded, state)
            chosen = logits.argmax(dim=-1)
            for row in sorted(open_rows):
                written[row].append(int(chosen[row]))
                if written[row][-1] in self._interface.ends:
                    open_rows.remove(row)
            if not open_rows:
                break
            embedded = self._interface.token_embedding(chosen[:, None])
        return written

    def _embedded(
        self,
        batch: QuestionBatch,
        tokens: Int[Tensor, "n length"],
        features: Tensor | None,
        context: Tensor | None,
    ) -> Float[Tensor, "n positions text_width"]:
        """What the decoder reads: tokens, images and context."""
        if features is not None:
            self._refuse_other_features(features)
        if context is not None:
            self._refuse_other_context(context, tokens.shape[1])
        tokens = tokens.to(self.device)
        embedded: Tensor = self._interface.token_embedding(tokens)
        is_image = tokens == self._interface.image_code
        features = self.image_features(batch) if features is None else features
        if features is not None:
            vectors = self._interface.image_vectors(features.to(embedded), batch.sizes)
            _refuse_other_places(len(vectors), int(is_image.sum()))
            embedded = embedded.masked_scatter(is_image[:, :, None], vectors)
        if context is None or len(context) == 0:
            return embedded
        vectors = context.to(embedded).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], vectors, embedded[:, 1:]], dim=1)

    def _refuse_other_features(self, features: Tensor) -> None:
        tokens, width = self._interface.tile_shape
        if features.ndim != 3 or features.shape[1:] != (tokens, width):
            raise SpecError(
                f"image features must be (tiles, {tokens}, {width}), got {tuple(features.shape)}"
            )

    def _refuse_other_context(self, context: Tensor, length: int) -> None:
        if context.ndim != 2 or context.shape[1] != self.text_width:
            raise SpecError(
                f"prompt vectors must be (count, {self.text_width}), got {tuple(context.shape)}"
            )
        most = self._interface.max_length
        if len(context) and length + len(context) > most:
            raise SpecError(
                f"{len(context)} prompt vectors do not fit: without them a row takes {length} of "
                f"the decoder's {most} positions; use a smaller context_length or shorter questions"
            )


def _refuse_other_places(filled: int, places: int) -> None:
    if filled != places:
        raise SpecError(
            f"the image features fill {filled} places, but the prompts have {places}: "
            "they must be of the same questions, and the processor must be the model's own"
        )
