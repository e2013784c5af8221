"""Vision-language models behind one adapter, and plans put onto them and taken off again."""

from bitfront.vlm.encoder import DualEncoder
from bitfront.vlm.generative import GenerativeModel, QuestionBatch
from bitfront.vlm.layered import LayeredModel
from bitfront.vlm.load import load_model
from bitfront.vlm.switch import PlanSwitch

__all__ = [
    "DualEncoder",
    "GenerativeModel",
    "LayeredModel",
    "PlanSwitch",
    "QuestionBatch",
    "load_model",
]
