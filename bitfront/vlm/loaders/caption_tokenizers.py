"""Tokenizers of open_clip and transformers as files that the package tokenizers reads."""

from typing import Final

from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from bitfront.vlm.models.caption_tokenizer import CaptionTokenizer

_PIECES: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PADDING: Final = 0


def of_transformers(tokenizer: PreTrainedTokenizerBase, length: int) -> CaptionTokenizer | None:
    """A tokenizer of transformers as it fills rows of a length; None if it is of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    made = Tokenizer.from_str(backend.to_str())
    made.enable_truncation(length, direction=tokenizer.truncation_side)
    made.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        length=length,
    )
    return CaptionTokenizer(made.to_str(), cleans=False)


def of_open_clip(tokenizer: object) -> CaptionTokenizer | None:
    """open_clip's own tokenizer of byte pairs; None if it is another, or cuts rows in another way.

    Captions are to be cleaned before, as `CaptionTokenizer` says.
    """
    if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return None
    if tokenizer.clean_fn is not get_clean_fn("lower") or tokenizer.context_length is None:
        return None
    made = Tokenizer(BPE(tokenizer.encoder, list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"))
    made.pre_tokenizer = Sequence(
        [
            Split(Regex(_PIECES), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    names = [tokenizer.decoder[code] for code in tokenizer.all_special_ids]
    made.add_special_tokens(names)
    first, last = names[:2]
    made.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(name, tokenizer.encoder[name]) for name in (first, last)],
    )
    made.enable_truncation(tokenizer.context_length)
    made.enable_padding(
        pad_id=_PADDING, pad_token=tokenizer.decoder[_PADDING], length=tokenizer.context_length
    )
    return CaptionTokenizer(made.to_str(), cleans=True)
