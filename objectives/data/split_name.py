"""The four splits of a person's samples by name."""

from enum import StrEnum


class SplitName(StrEnum):
    """What a split's samples are for."""

    CALIBRATION = "calibration"
    TUNING = "tuning"
    SELECTION = "selection"
    TEST = "test"
