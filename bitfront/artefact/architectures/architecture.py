"""What rebuilds a model's modules without bitfront.

A model is taken only if the source builds exactly its tensors, under the names that it gives them
and in the same shapes; whether it computes the same is verified once the artefact is written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from bitfront.artefact.runtime import clip, llava
from bitfront.errors import InvalidModel
from bitfront.vlm.models.caption_tokenizer import CaptionTokenizer

RUNTIME = Path(clip.__file__).parent


@dataclass(frozen=True, slots=True)
class Architecture:
    """What rebuilds a model without its weights.

    Attributes:
        source: The file of `RUNTIME` that travels as `architecture.py`.
        config: What its `build` takes, plain JSON content.
        requires: The packages that it needs beside torch, safetensors and Pillow.
        files: Further files of the folder, by name: a tokenizer's, a processor's.
        rename: The name of a module or tensor of the model to that in the source.
    """

    source: str
    config: Mapping[str, Any]
    requires: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    rename: Callable[[str], str] = str

    def with_tokenizer(self, tokenizer: CaptionTokenizer) -> Self:
        """The architecture of a dual encoder that makes tokens of captions itself."""
        return replace(
            self,
            config={**self.config, "words": {"cleans": tokenizer.cleans}},
            requires=(*self.requires, "tokenizers", *(["ftfy"] if tokenizer.cleans else [])),
            files={**self.files, clip.TOKENIZER: tokenizer.json.encode()},
        )

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What no plan changes, under the names of the source."""
        return {self.rename(name): tensor for name, tensor in tensors.items()}

    def placed(self, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The layers, as `packed_layers` gives them, with the modules of the source."""
        return {
            name: {**entry, "modules": [self.rename(path) for path in entry["modules"]]}
            for name, entry in entries.items()
        }


def checked(
    module: nn.Module, kind: type[clip.Clip] | type[llava.Llava], made: Architecture
) -> Architecture:
    """The architecture, if it builds the tensors of the model.

    Raises:
        InvalidModel: A name or a shape differs.
    """
    with torch.device("meta"):
        built = kind(dict(made.config))
    wanted = {made.rename(name): tuple(x.shape) for name, x in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    if wanted != found:
        differ = sorted(wanted.items() ^ found.items())
        refuse(f"its {differ[0][0]} has no counterpart there")
    return made


def refuse(reason: str) -> NoReturn:
    """Refuses a model.

    Raises:
        InvalidModel: Always.
    """
    raise InvalidModel(
        f"what is built cannot rebuild this model: {reason}; it knows CLIP's plain vision "
        "transformer and causal text transformer, SigLIP, and LLaVA of a CLIP and a Llama decoder"
    )
