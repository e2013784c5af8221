"""Vision-language models behind one adapter, and plans put onto them and taken off again."""

from bitfront.vlm.loaders.load import load_model
from bitfront.vlm.models.dual_encoder import DualEncoder
from bitfront.vlm.models.generative import GenerativeModel, QuestionBatch
from bitfront.vlm.models.layered import LayeredModel
from bitfront.vlm.plan_switch import PlanSwitch

__all__ = [
    "DualEncoder",
    "GenerativeModel",
    "LayeredModel",
    "PlanSwitch",
    "QuestionBatch",
    "load_model",
]
