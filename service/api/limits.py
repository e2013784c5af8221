"""The limits and the ranking that a program asks with, as keyword arguments."""

from typing import Literal, TypedDict

By = Literal["estimate", "error"]
"""What stands for the error of a trial: an estimate from all trials, or what was measured."""


class LimitOptions(TypedDict, total=False):
    """Upper limits: sizes such as `"40MB"` or bytes, shares such as `"10%"` or 0.1, and numbers.

    They are those of the command line, one for each figure of `bitfront.objective.FIGURES`.
    """

    max_error: float | str | None
    max_nbytes: float | str | None
    max_bits: float | None
    max_bit_operations: float | None
    max_latency_s: float | None
    max_token_s: float | None
    max_activation_nbytes: float | str | None
    max_kv_nbytes: float | str | None
    max_memory_nbytes: float | str | None
    max_divergence: float | None
