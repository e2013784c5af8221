"""Runs a checkpoint of transformers that answers questions about pictures.

This file travels with the checkpoint, and `exported_model.py` with it. They need transformers,
compressed-tensors, torch and Pillow; a model with a tokenizer of its own needs tokenizers.

    model = load("model/")
    model.answer(picture, question)
"""

import json
from pathlib import Path
from typing import Any

import exported_model  # type: ignore[import-not-found]  # it lies beside this file
import torch
from torch import Tensor


def load(folder: str | Path) -> "TransformersAnswerer":
    """The model in a folder.

    Raises:
        exported_model.DamagedArtefact: A file is missing, or its digest is not the one on the card.
    """
    folder = Path(folder)
    card: dict[str, Any] = json.loads((folder / exported_model.CARD).read_text(encoding="utf-8"))
    exported_model.check_files(folder, card)
    return TransformersAnswerer(folder, card)


class TransformersAnswerer:
    """A LLaVA of transformers.

    Attributes:
        card: What `card.json` says.
        model: transformers' model.
        ends: The tokens that end an answer.
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        from transformers import LlavaForConditionalGeneration

        self.card = card
        self.ends: frozenset[int] = frozenset(card["ends"])
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self._words = exported_model.Words(folder, card)

    def answer(self, picture: Any, question: str) -> str:  # noqa: ANN401  # Pillow's
        """The greedy answer to a question about a Pillow picture; None asks without a picture."""
        template, token = self.card["prompt"], self.card["image_token"]
        if picture is None:
            template = template.replace(f"{token}\n", "").replace(token, "").strip()
        tokens = torch.tensor([self._words.tokens(template.replace("{}", question))])
        pixels = None
        if picture is not None:
            pixels = torch.from_numpy(
                exported_model.preprocess(picture, self.card["preprocessing"])
            )[None]
        (written,) = self.generate(tokens, pixels, self.card["answer_tokens"])
        end = next((n for n, token in enumerate(written) if token in self.ends), None)
        text: str = self._words.text(written[:end])
        return text

    @torch.no_grad()
    def logits(self, tokens: Tensor, pixels: Tensor | None, kept: int) -> Tensor:
        """The logits `(n, kept, vocabulary)` after the last `kept` of the tokens `(n, length)`."""
        found = self.model(
            input_ids=tokens, pixel_values=pixels, logits_to_keep=kept, use_cache=False
        )
        logits: Tensor = found.logits
        return logits

    @torch.no_grad()
    def generate(self, tokens: Tensor, pixels: Tensor | None, limit: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end, at most `limit`, after prompts of one length."""
        written: list[list[int]] = [[] for _ in range(len(tokens))]
        ended = [False] * len(tokens)
        given: dict[str, Any] = {"input_ids": tokens, "pixel_values": pixels}
        for _ in range(limit):
            found = self.model(**given, logits_to_keep=1, use_cache=True)
            chosen = found.logits[:, -1].argmax(dim=-1)
            for row, token in enumerate(chosen.tolist()):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in self.ends
            if all(ended):
                break
            given = {"input_ids": chosen[:, None], "past_key_values": found.past_key_values}
        return written
