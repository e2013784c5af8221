"""How an artefact rebuilds a model's modules: the source file that travels, and its settings."""

from bitfront.artefact.architectures.architecture import RUNTIME, Architecture
from bitfront.artefact.architectures.describe import describe

__all__ = ["RUNTIME", "Architecture", "describe"]
