"""What a model's outputs depend on beside its weights: what it sees of a text and a picture."""

from dataclasses import dataclass

from bitfront.plan import digest


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The settings that come with a model's weights.

    Attributes:
        tokenizer: Hash of all that the token ids of a text depend on.
        preprocessing: All that the pixels of a picture depend on, as canonical JSON.
        config: The architecture's own settings, as canonical JSON; empty where the weights'
            identity has them all.
    """

    tokenizer: str
    preprocessing: str
    config: str = ""

    @property
    def digest(self) -> str:
        """The hash of all settings."""
        return digest(self.to_provenance())

    def to_provenance(self) -> dict[str, str]:
        """The rows of a study's provenance, by name."""
        rows = {
            "tokenizer": self.tokenizer,
            "preprocessing": self.preprocessing,
            "config": self.config,
        }
        return {name: value for name, value in rows.items() if value}
