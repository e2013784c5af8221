"""A tokenizer for llama.cpp: pieces of SentencePiece, which Llama 1 and 2 and LLaVA-1.5 have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gguf import GGUFWriter, TokenType

_BYTE: Final = "<0x{:02X}>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens in order.

    Attributes:
        tokens: Their texts.
        scores: The higher, the earlier two pieces are joined to it.
        types: What each stands for.
        special: The settings that name a token, such as `bos`, with its place.
        prefixes_space: Whether a text is read as if a space stood before it.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    special: Mapping[str, int]
    prefixes_space: bool

    def write(self, writer: GGUFWriter) -> None:
        """Adds it to a file's settings."""
        writer.add_tokenizer_model("llama")
        writer.add_token_list(self.tokens)
        writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        writer.add_add_space_prefix(self.prefixes_space)
        writer.add_add_bos_token("bos" in self.special)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)


def read_vocabulary(tokenizer: bytes, size: int, end: int) -> Vocabulary | None:
    """The vocabulary of a `tokenizer.json`; None for one that llama.cpp has no such pieces for.

    Args:
        tokenizer: The file.
        size: Rows of the model's embedding; what no token has is filled up.
        end: The token that ends an answer.
    """
    content: dict[str, Any] = json.loads(tokenizer)
    model = content.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return None
    known: dict[str, int] = dict(model["vocab"])
    added = {token["content"]: token for token in content.get("added_tokens", [])}
    known |= {text: token["id"] for text, token in added.items()}
    texts = {place: text for text, place in known.items() if place < size}
    ranks = {_joined(merge): rank for rank, merge in enumerate(model["merges"])}
    tokens = [texts.get(place, f"[PAD{place}]") for place in range(size)]
    special = {"eos": end}
    if model.get("unk_token") in known:
        special["unk"] = known[model["unk_token"]]
    if (first := _first(content)) in known:
        special["bos"] = known[first]
    return Vocabulary(
        tokens,
        [-float(ranks.get(text, len(ranks) + place)) for place, text in enumerate(tokens)],
        [
            _type(text, place, texts, added, model.get("unk_token"))
            for place, text in enumerate(tokens)
        ],
        special,
        "Prepend" in json.dumps(content.get("normalizer")),
    )


def _joined(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def _first(content: Mapping[str, Any]) -> str:
    """What stands before every text; empty for nothing."""
    single = (content.get("post_processor") or {}).get("single") or [{}]
    text: str = single[0].get("SpecialToken", {}).get("id", "")
    return text


def _type(
    text: str,
    place: int,
    texts: Mapping[int, str],
    added: Mapping[str, Mapping[str, Any]],
    unknown: str | None,
) -> TokenType:
    if place not in texts:
        return TokenType.UNUSED
    if text == unknown:
        return TokenType.UNKNOWN
    if text in added:
        return TokenType.CONTROL if added[text]["special"] else TokenType.USER_DEFINED
    is_byte = text.startswith("<0x") and text in {_BYTE.format(byte) for byte in range(256)}
    return TokenType.BYTE if is_byte else TokenType.NORMAL
