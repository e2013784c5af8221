"""The hashes of what a job was found to be made of, and the key of a cell, which joins them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bitfront.errors import SpecError
from bitfront.layers import Block
from bitfront.plan import Option, digest

# The names of the rows that a study's provenance keeps them under.
_ROWS = {
    "model": "model",
    "quantizer": "cells",
    "calibration": "calibration",
    "tuning": "tuning",
    "selection": "selection",
    "test": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """The identities of a model, a quantizer and four splits.

    Attributes:
        model: Of the architecture and the weights, their dtype included.
        quantizer: What `keys.quantizer_identity` gives: a cell depends on it beside model,
            calibration samples and option.
        calibration: Of a split's samples, in order, and of how they are put to the model.
        tuning: The same of the tuning split.
        selection: The same of the selection split.
        test: The same of the test split.
    """

    model: str
    quantizer: str
    calibration: str
    tuning: str
    selection: str
    test: str

    def to_provenance(self) -> dict[str, str]:
        """The rows of a study's provenance, by name; `from_provenance` reads them back."""
        return {row: getattr(self, name) for name, row in _ROWS.items()}

    @classmethod
    def from_provenance(cls, rows: Mapping[str, str]) -> Self:
        """The identities among the rows of a study's provenance.

        Raises:
            SpecError: One is missing, since the study never loaded its model.
        """
        missing = [row for row in _ROWS.values() if row not in rows]
        if missing:
            raise SpecError(
                f"the study has not recorded its {missing[0]}, since it never loaded its model: "
                "'bitfront resume' does"
            )
        return cls(**{name: rows[row] for name, row in _ROWS.items()})


@dataclass(frozen=True, slots=True)
class CellKey:
    """What a cell's error depends on: two cells with the same key have the same error.

    Attributes:
        model: Hash of the weights and the architecture.
        data: Hash of the calibration samples.
        quantizer: Hash of the quantizer's settings and of the error measure.
        option: Hash of the block's layers and their precisions.
    """

    model: str
    data: str
    quantizer: str
    option: str

    @classmethod
    def of(cls, model: str, data: str, quantizer: str, block: Block, option: Option) -> Self:
        """The key of one option of a block."""
        chosen = option.precisions if option.form is None else (option.form,)
        names = [[layer, str(own)] for layer, own in zip(block.layers, chosen, strict=True)]
        return cls(model, data, quantizer, digest(names))

    @property
    def digest(self) -> str:
        """One hash for the whole key."""
        return digest([self.model, self.data, self.quantizer, self.option])
