"""The section `model`: which model is searched."""

from enum import StrEnum
from typing import Final, Literal

from bitfront.spec.section import Section

REFERENCE_CLIP, REFERENCE_LLAVA = "digit-clip", "digit-llava"


class ModelSource(StrEnum):
    """Which library the model comes from."""

    REFERENCE = "reference"
    OPEN_CLIP = "open_clip"
    TRANSFORMERS = "transformers"


LOCAL_FOLDER: Final = "local-dir:"
"""How open_clip marks the name of a folder."""


class ModelSpec(Section):
    """The model: `name` is an open_clip model name, or a hub name or folder of transformers.

    open_clip also takes `local-dir:FOLDER` and `hf-hub:OWNER/NAME`, which have their own weights.

    A bundled model has the name `digit-clip` or `digit-llava`. `weights` is a checkpoint file
    or an open_clip pretrained tag. `dtype` is what LLaVA's weights are loaded in: by default
    bfloat16 on a GPU and float32 elsewhere; dual encoders are always in float32.
    """

    source: ModelSource
    name: str = REFERENCE_CLIP
    weights: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def asks(self) -> bool | None:
        """Whether it writes answers; None where that shows only when it is loaded."""
        if self.source is ModelSource.REFERENCE:
            return {REFERENCE_CLIP: False, REFERENCE_LLAVA: True}.get(self.name)
        return False if self.source is ModelSource.OPEN_CLIP else None
