"""What every part of an answer is made of."""

from pydantic import BaseModel, ConfigDict

from bitfront.trial import TrialState

Values = dict[str, float]
"""Figures by name, such as `error` and `nbytes`; those that were not measured are absent."""

Counts = dict[TrialState, int]


class Content(BaseModel):
    """A part of an answer; it does not change."""

    model_config = ConfigDict(frozen=True)
