"""A small model with initial weights that reads the reference's scenes, and a task for it."""

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from bitfront.reference.digit_clip import CONTEXT_LENGTH, VOCABULARY, tokenize
from bitfront.spec import JobSpec
from bitfront.vlm import DualEncoder
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from objectives.data.classification import ClassificationTask, load_classification
from objectives.data.split_name import SplitName


def untrained_clip(seed: int = 0) -> open_clip.CLIP:
    """A model that needs no checkpoint, and does not change with the reference's shape."""
    vision = CLIPVisionCfg(layers=3, width=96, head_width=24, patch_size=4, image_size=24)
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=len(VOCABULARY), width=96, heads=4, layers=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)


def untrained_encoder(seed: int = 0) -> DualEncoder:
    """The dual encoder of `untrained_clip`."""
    model = untrained_clip(seed)
    return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)


def scene_spec(**changes: object) -> JobSpec:
    """A job on few scenes, with one template, in small batches, and with the nearest codes."""
    samples = {"calibration": 20, "tuning": 24, "selection": 20, "test": 12}
    content: dict[str, object] = {
        "study": "scenes",
        "model": {"source": "reference", "device": "cpu"},
        "data": {
            "source": "reference",
            "samples": samples,
            "batch_size": 16,
            "templates": ["a picture of {}"],
        },
        "quantizer": {"rounding": "nearest"},
    }
    return JobSpec.model_validate({**content, **changes})


def scene_task(spec: JobSpec, model: DualEncoder) -> ClassificationTask:
    """The job's scenes."""
    return load_classification(spec.data, model)


def all_pixels(task: ClassificationTask, name: SplitName) -> Tensor:
    """The pixels of a whole split."""
    split = task.split(name)
    return split.read(0, len(split))
