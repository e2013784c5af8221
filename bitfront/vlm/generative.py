"""A generative vision-language model with its layers: it answers questions about pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from bitfront.layers import Tower
from bitfront.vlm.layered import LayeredModel

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A question as the model reads it.

    Attributes:
        tokens: `(length,)` int64, with a place for each token of the image.
        pixels: The image, `(c, h, w)` or, in several patches, `(p, c, h, w)`; None without one.
        size: Height and width of the picture, where the model wants to know them.
    """

    tokens: Tensor
    pixels: Tensor | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QuestionBatch:
    """Questions with one answer each; prompts have one length, and so have answers.

    Nothing is filled up: padding would get into ranges and entropies.

    Attributes:
        prompts: `(n, prompt)` int64.
        answers: `(n, answer)` int64, each with its end.
        pixels: `(n, ...)`; None where the questions have no image.
        sizes: `(n, 2)` int64, height and width of the pictures; None where they do not matter.
    """

    prompts: Int[Tensor, "n prompt"]
    answers: Int[Tensor, "n answer"]
    pixels: Tensor | None
    sizes: Int[Tensor, "n 2"] | None

    def __len__(self) -> int:
        return len(self.prompts)

    def pick(self, rows: slice | Tensor) -> "QuestionBatch":
        """Some of the questions."""
        return QuestionBatch(
            self.prompts[rows],
            self.answers[rows],
            None if self.pixels is None else self.pixels[rows],
            None if self.sizes is None else self.sizes[rows],
        )

    def without_pixels(self) -> "QuestionBatch":
        """The same with empty images, for runs that do not look at them."""
        pixels = None if self.pixels is None else torch.zeros_like(self.pixels)
        return QuestionBatch(self.prompts, self.answers, pixels, self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """How one library's model is called.

    Attributes:
        runs: For each tower, what runs it on one empty sample.
        token_embedding: The embedding that the decoder looks the tokens up in.
        logits: Tokens `(n, length)`, pixels and sizes to the logits `(n, kept, vocabulary)` of
            the last `kept` positions.
        continue_from: Like `logits` for the last position; it also returns a state, from which
            the next call goes on with one more token a row.
        prepare: A question's text and its picture to a prompt; the text holds `image_token`
            where there is a picture.
        encode_answer: An answer's tokens with the end behind them.
        decode: Tokens to text, without the end.
        ends: The tokens that end an answer.
        image_token: What stands for the picture in a question's text.
    """

    runs: Mapping[Tower, Callable[[], object]]
    token_embedding: nn.Embedding
    logits: Callable[[Tensor, Tensor | None, Tensor | None, int], Tensor]
    continue_from: Callable[[Tensor, Tensor | None, Tensor | None, object], tuple[Tensor, object]]
    prepare: Callable[[str, Image | None], Prompt]
    encode_answer: Callable[[str], Tensor]
    decode: Callable[[Sequence[int]], str]
    ends: frozenset[int]
    image_token: str = IMAGE_TOKEN


class GenerativeModel(LayeredModel):
    """A vision tower, a projector and a decoder that writes an answer."""

    def __init__(self, model: nn.Module, speech: Speech) -> None:
        """Takes the model over.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        self._speech = speech
        super().__init__(model, speech.token_embedding, speech.runs)

    @property
    def image_token(self) -> str:
        """What stands for the picture in a question's text."""
        return self._speech.image_token

    def prepare(self, text: str, image: Image | None) -> Prompt:
        """A question's text and its picture as the model reads them."""
        return self._speech.prepare(text, image)

    def encode_answer(self, answer: str) -> Int[Tensor, " length"]:
        """The answer's tokens with the end behind them."""
        return self._speech.encode_answer(answer)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, up to the end."""
        ended = next((n for n, token in enumerate(tokens) if token in self._speech.ends), None)
        return self._speech.decode(tokens[:ended])

    def has_ended(self, tokens: Sequence[int]) -> bool:
        """Whether the end is among the tokens."""
        return not self._speech.ends.isdisjoint(tokens)

    def answer_logits(self, batch: QuestionBatch) -> Float[Tensor, "n answer vocabulary"]:
        """What the model expects at each token of the given answers (teacher forcing).

        Row `t` is the prediction of the answer's token `t`, behind the prompt and the
        answer's earlier tokens. Gradients flow where they are enabled.
        """
        tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1).to(self.device)
        pixels, sizes = self._placed(batch)
        return self._speech.logits(tokens, pixels, sizes, batch.answers.shape[1])

    @torch.no_grad()
    def generate(self, batch: QuestionBatch, limit: int) -> list[list[int]]:
        """Greedy answers: at each step the token with the highest logit.

        Args:
            batch: The questions; its answers are not looked at.
            limit: Tokens at most, the end included.

        Returns:
            Each row's tokens up to its end; without an end, `limit` of them.
        """
        pixels, sizes = self._placed(batch)
        tokens, state = batch.prompts.to(self.device), None
        written: list[list[int]] = [[] for _ in range(len(batch))]
        open_rows = set(range(len(batch)))
        for _ in range(limit):
            logits, state = self._speech.continue_from(tokens, pixels, sizes, state)
            chosen = logits.argmax(dim=-1)
            for row in sorted(open_rows):
                written[row].append(int(chosen[row]))
                if written[row][-1] in self._speech.ends:
                    open_rows.remove(row)
            if not open_rows:
                break
            tokens, pixels, sizes = chosen[:, None], None, None
        return written

    def _placed(self, batch: QuestionBatch) -> tuple[Tensor | None, Tensor | None]:
        dtype = next(self.module.parameters()).dtype
        pixels = None if batch.pixels is None else batch.pixels.to(self.device, dtype)
        return pixels, None if batch.sizes is None else batch.sizes.to(self.device)
