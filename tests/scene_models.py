"""The reference's architecture with its initial weights, and a small task for it."""

from bitfront.reference.digit_clip import build_clip, tokenize
from bitfront.spec import JobSpec
from bitfront.vlm import DualEncoder
from bitfront.vlm.open_clip_models import open_clip_encoder
from bitfront.vlm.reference_model import preprocess_picture
from objectives.data import Task, load_task


def untrained_encoder(seed: int = 0) -> DualEncoder:
    """A dual encoder that needs no checkpoint."""
    return open_clip_encoder(build_clip(seed), preprocess=preprocess_picture, tokenize=tokenize)


def scene_spec(**changes: object) -> JobSpec:
    """A job on few scenes, with one template and in small batches."""
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
    }
    return JobSpec.model_validate({**content, **changes})


def scene_task(spec: JobSpec, model: DualEncoder) -> Task:
    """The job's scenes."""
    return load_task(spec.data, model)
