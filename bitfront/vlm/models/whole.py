"""A generative model that is run as its library runs it, pictures and text in one call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.vlm.models.generative import GenerativeInterface, GenerativeModel, QuestionBatch

NO_PARTS: Final = (
    "works on what a projector gives, and only of LLaVA 1.5 and LLaVA-NeXT it is known where that "
    "is: leave it out"
)


# Any other class that AutoModelForImageTextToText gives has the same signatures.
Generating = LlavaForConditionalGeneration


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeInterface:
    """How one library's model is called as a whole.

    Attributes:
        words: What makes prompts and answers, and is asked for no part of the model.
        token_types: Inputs of the model that have a value for each token, with that of an answer's.
        parts: The modules that hold its towers; the rest is its projector.
        sample: One question with a picture, on which the layers are traced.
    """

    words: GenerativeInterface
    token_types: Mapping[str, int]
    parts: Mapping[nn.Module, Tower]
    sample: QuestionBatch


class WholeModel(GenerativeModel):
    """A vision-language model of any architecture that transformers can run.

    What stands between its vision tower and its decoder is not known: masks, positions and places
    of image features are the library's. So there is no recovery that works on image features.
    """

    has_features = False

    def __init__(self, model: Generating, interface: WholeInterface) -> None:
        """Takes the model over.

        Raises:
            InvalidModel: A weight is not finite, or the model cannot be rewritten.
        """
        self._whole = interface
        self._model = model
        sample = interface.sample

        def run() -> Tensor:
            return self.answer_logits(sample)

        self._interface = interface.words
        self.device = model.device
        super(GenerativeModel, self).__init__(
            model,
            interface.words.token_embedding,
            {Tower.PROJECTOR: run},
            interface.words.settings,
            parts=interface.parts,
            results=(run,),
        )

    def image_features(self, batch: QuestionBatch) -> NoReturn:
        """Refuses: see the class.

        Raises:
            SpecError: Always.
        """
        del batch
        raise SpecError(f"a recovery {NO_PARTS}")

    def answer_logits(
        self,
        batch: QuestionBatch,
        *,
        features: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Float[Tensor, "n answer vocabulary"]:
        """What the model expects at each token of the given answers (teacher forcing).

        Raises:
            SpecError: Features or a context are given.
        """
        _refuse_parts(features, context)
        given = batch.answers[:, :-1]
        tokens = torch.cat([batch.prompts, given], dim=1)
        inputs = self._inputs(batch, tokens)
        logits: Tensor = self._model(**inputs, use_cache=False).logits
        return logits[:, -batch.answers.shape[1] :]

    @torch.no_grad()
    def generate(
        self,
        batch: QuestionBatch,
        limit: int,
        *,
        features: Tensor | None = None,
        context: Tensor | None = None,
    ) -> list[list[int]]:
        """Greedy answers, as `GenerativeModel.generate` gives them.

        Raises:
            SpecError: Features or a context are given.
        """
        _refuse_parts(features, context)
        ends = self._interface.ends
        generate = cast("Callable[..., Tensor]", getattr(self._model, "generate"))  # noqa: B009  # untyped
        written = generate(
            **self._inputs(batch, batch.prompts),
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )
        answers = written[:, batch.prompts.shape[1] :].tolist()
        return [_up_to_end(answer, ends) for answer in answers]

    def _inputs(self, batch: QuestionBatch, tokens: Int[Tensor, "n length"]) -> dict[str, Tensor]:
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if batch.pixels is not None:
            inputs["pixel_values"] = batch.pixels.flatten(0, 1).to(self._model.dtype)
        for name, value in batch.further.items():
            inputs[name] = value.flatten(0, 1)
            if name in self._whole.token_types:
                further = tokens.shape[1] - inputs[name].shape[1]
                last = (0, further)
                answer = self._whole.token_types[name]
                inputs[name] = nn.functional.pad(inputs[name], last, value=answer)
        return {name: value.to(self.device) for name, value in inputs.items()}


def _refuse_parts(features: Tensor | None, context: Tensor | None) -> None:
    if features is not None or context is not None:
        raise SpecError(f"a recovery {NO_PARTS}")


def _up_to_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
