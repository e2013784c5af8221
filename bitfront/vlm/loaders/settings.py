"""The settings of transformers' and open_clip's tokenizers and image processors."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

from open_clip.transform import PreprocessCfg
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from bitfront.plan import canonical_json, digest

# Where a tokenizer was found and what it has done so far say nothing about its token ids.
# Length and padding are given with every call, and no chat template is used.
_UNRELATED = frozenset(
    {
        *("name_or_path", "files_loaded", "deprecation_warnings", "verbose", "init_inputs"),
        *("init_kwargs", "model_max_length", "model_input_names", "chat_template", "cache"),
        *("response_template", "chat_control_tokens", "vocab_file", "sp_model", "backend"),
        *("clean_up_tokenization_spaces", "special_tokens_pattern"),
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    }
)
# Where a model came from, and what it is loaded in, which the weights' identity has.
_ORIGIN = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
)


def tokenizer_digest(tokenizer: object) -> str:
    """The hash of what a tokenizer of transformers or open_clip makes token ids with.

    It is the same before and after texts were tokenized, and wherever the files lie.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return digest(_describe(tokenizer))
    return digest({"class": type(tokenizer).__name__, **_attributes(tokenizer)})


def processor_settings(
    processor: BaseImageProcessor, further: Mapping[str, object] | None = None
) -> str:
    """The settings of an image processor of transformers, and further ones, as canonical JSON."""
    content = {**processor.to_dict(), **(further or {})}
    content.pop("processor_class", None)
    return _as_json({**content, "image_processor_type": type(processor).__name__})


def config_settings(config: PreTrainedConfig) -> str:
    """The settings of a model of transformers that change its outputs, as canonical JSON."""
    return _as_json(_without_origin(config.to_dict()))


def preprocess_settings(config: PreprocessCfg) -> str:
    """The settings of open_clip's preprocessing, as canonical JSON."""
    return _as_json(asdict(config))


def _without_origin(content: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _without_origin(value) if isinstance(value, Mapping) else value
        for name, value in content.items()
        if name not in _ORIGIN
    }


def _as_json(content: Mapping[str, object]) -> str:
    return canonical_json({name: _describe(value) for name, value in content.items()})


def _describe(value: object) -> object:
    """A value as JSON content: settings as they are, anything else by what identifies it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return digest(value.hex())
        case tuple() | list():
            return [_describe(entry) for entry in value]
        case set() | frozenset():
            return sorted(map(str, value))
        case Mapping():
            return _describe_mapping(value)
        case PreTrainedTokenizerBase():
            return _describe_pretrained(value)
        case _:
            return str(getattr(value, "pattern", getattr(value, "__qualname__", type(value))))


def _describe_mapping(value: Mapping[object, object]) -> object:
    if all(isinstance(key, str) for key in value):
        return {str(key): _describe(entry) for key, entry in value.items()}
    return sorted(([str(key), _describe(entry)] for key, entry in value.items()), key=str)


def _describe_pretrained(tokenizer: PreTrainedTokenizerBase) -> object:
    content: dict[str, object] = {
        "class": type(tokenizer).__name__,
        "special tokens": {name: str(t) for name, t in tokenizer.special_tokens_map.items()},
        **_attributes(tokenizer),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        content["backend"] = {
            name: part for name, part in parts.items() if name not in ("padding", "truncation")
        }
        return content
    content["vocabulary"] = tokenizer.get_vocab()
    pieces = getattr(tokenizer, "sp_model", None)
    if pieces is not None:
        content["pieces"] = _describe(pieces.serialized_model_proto())
    return content


def _attributes(value: object) -> dict[str, object]:
    attributes = getattr(value, "__dict__", {})
    return {
        name: _describe(entry)
        for name, entry in attributes.items()
        if not name.startswith("_") and name not in _UNRELATED
    }
