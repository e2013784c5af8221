"""What the libraries of models raise, as one sentence for a person: the one table of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from bitfront.errors import BitfrontError, InvalidModel, MissingModel


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of an error.

    Attributes:
        kind: The name of its class, or of one that it derives from.
        pattern: Is found in its message.
        error: What it becomes.
        text: What is wrong and what to do; `{0}` is the pattern's first group.
    """

    kind: str
    pattern: str
    error: type[BitfrontError]
    text: str


_OFFLINE = (
    "it is neither a folder nor in the hub's cache, and the hub cannot be reached: check the name, "
    "or fetch it on a machine with network and name its folder"
)
_SHAPE = r"size mismatch for (\S+): copying a param with shape \S+?\(\[([\d, ]*)\]\) from.*?"
_TABLE: Final = (
    _Row(
        "ImportError",
        r"requires the SentencePiece library",
        MissingModel,
        "its tokenizer needs the package sentencepiece: 'pip install bitfront[sentencepiece]' "
        "installs it",
    ),
    _Row(
        "ImportError",
        r"requires the (\S+) library",
        MissingModel,
        "it needs the package {0}: install it",
    ),
    _Row(
        "ModuleNotFoundError",
        r"No module named '([\w.]+)'",
        MissingModel,
        "it needs the package {0}: install it",
    ),
    _Row(
        "Exception",
        r"invalid load key|stack underflow|data was truncated|Ran out of input|central directory",
        InvalidModel,
        "the file is damaged, or is not a checkpoint: fetch it again",
    ),
    _Row(
        "UnpicklingError",
        r"",
        InvalidModel,
        "the file holds more than tensors and cannot be read without running code from it: give "
        "a safetensors file",
    ),
    _Row(
        "SafetensorError",
        r"",
        InvalidModel,
        "the weights cannot be read, since the file is damaged or cut off: fetch it again",
    ),
    _Row(
        "Exception",
        r"backend tokenizer from one of",
        MissingModel,
        "it has no tokenizer.json, and no other files to make a tokenizer from: copy them from "
        "where the weights came from",
    ),
    _Row(
        "Exception",
        r"Unrecognized configuration class.*AutoTokenizer",
        MissingModel,
        "its files do not say which tokenizer it has: copy tokenizer.json and "
        "tokenizer_config.json from where the weights came from",
    ),
    _Row(
        "Exception",
        r"[Cc]an't load image processor|Unrecognized (?:image )?processor",
        MissingModel,
        "it has no preprocessor_config.json, or one without a known image_processor_type: copy it "
        "from where the weights came from",
    ),
    _Row(
        "Exception",
        r"model type `([^`]+)` but Transformers does not recognize",
        InvalidModel,
        "config.json names the model type {0}, which the installed transformers does not know",
    ),
    _Row(
        "Exception",
        r"trust_remote_code",
        InvalidModel,
        "it needs code of its own, which is never run: use a model that transformers knows",
    ),
    _Row(
        "Exception",
        r"Unrecognized model in",
        MissingModel,
        "it has no config.json with a model_type: copy it from where the weights came from",
    ),
    _Row(
        "Exception",
        r"no file named model\.safetensors",
        MissingModel,
        "it has no model.safetensors, and weights in other forms are not read: convert them with "
        "safetensors.torch.save_file",
    ),
    _Row(
        "Exception",
        _SHAPE + r"current model is \S+?\(\[([\d, ]*)\]\)",
        InvalidModel,
        "the weights do not fit its configuration: {0} is ({1}), but must be ({2})",
    ),
    _Row(
        "Exception",
        r'Missing key\(s\) in state_dict: "([^"]+)"',
        InvalidModel,
        "the weights do not fit its configuration: they lack {0}",
    ),
    _Row(
        "Exception",
        r'Unexpected key\(s\) in state_dict: "([^"]+)"',
        InvalidModel,
        "the weights do not fit its configuration: it has no place for {0}",
    ),
    _Row("LocalEntryNotFoundError", r"", MissingModel, _OFFLINE),
    _Row("OfflineModeIsEnabled", r"", MissingModel, _OFFLINE),
    _Row("ConnectionError", r"", MissingModel, _OFFLINE),
    _Row("HFValidationError", r"", MissingModel, "no folder and no hub has a name like that"),
    _Row(
        "RepositoryNotFoundError",
        r"",
        MissingModel,
        "the hub has no such model, or it is private: check the name, and log in with "
        "'hf auth login' where it is gated",
    ),
    _Row(
        "Exception",
        r"(?i)[Uu]nk token `([^`]*)` not found in the vocabulary",
        InvalidModel,
        "its tokenizer's vocabulary lacks its own unknown token {0}: tokenizer.json and "
        "tokenizer_config.json are of different models",
    ),
)


@contextmanager
def explained(library: str, doing: str) -> Iterator[None]:
    """Turns what a library raises into one sentence, "LIBRARY could not DOING: ...".

    What is not in the table keeps its own cause. Memory that runs out is not touched: whoever
    runs an attempt knows what to do about it.

    Raises:
        MissingModel: A file, a package or the network is missing.
        InvalidModel: Anything else that the library refused.
    """
    try:
        yield
    except (BitfrontError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise explain(error, f"{library} could not {doing}") from error


def explain(error: Exception, beginning: str) -> BitfrontError:
    """The sentence for an error, after its beginning."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    message = str(error)
    for row in _TABLE:
        found = re.search(row.pattern, message, re.DOTALL) if row.kind in kinds else None
        if found is not None:
            return row.error(f"{beginning}: {row.text.format(*found.groups())}")
    cause = " ".join(message.split())
    kind = MissingModel if isinstance(error, OSError) else InvalidModel
    return kind(f"{beginning}: {_short(cause) or type(error).__name__}")


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
