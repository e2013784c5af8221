"""How much each layer suffers from few bits, and how well the sum of that foretells an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitfront.trial import Trial
from storage.records import OptionRecord, ProfileRecord


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What the bits of a layer, or of a place of the KV cache, do to the model's output.

    Attributes:
        layer: Its name.
        tower: Its tower.
        block: The block that it is searched in.
        errors: Its bits to the least error of an option of the block in which the layer has
            these bits: the others are as wide as was measured, so it is mostly the layer's own.
    """

    layer: str
    tower: str
    block: str
    errors: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class ProxyPair:
    """A trial without recovery: the sum of its cells' errors, and its measured error."""

    trial: int
    proxy: float
    error: float


def layer_sensitivities(
    profile: ProfileRecord, options: Sequence[OptionRecord]
) -> list[LayerSensitivity]:
    """Every layer of a block in order of execution, with its errors by bits."""
    by_block: dict[str, list[OptionRecord]] = {}
    for record in options:
        by_block.setdefault(record.cell.block, []).append(record)
    found = []
    for block in profile.blocks:
        for place, name in enumerate(block.layers):
            errors: dict[int, float] = {}
            for record in by_block.get(block.name, []):
                bits = record.cell.option.bits[place]
                errors[bits] = min(record.cell.error, errors.get(bits, record.cell.error))
            found.append(
                LayerSensitivity(name, str(block.tower), block.name, dict(sorted(errors.items())))
            )
    return found


def proxy_pairs(
    profile: ProfileRecord, options: Sequence[OptionRecord], trials: Sequence[Trial]
) -> list[ProxyPair]:
    """The complete trials without recovery whose cells were all measured, by number."""
    errors = {(record.cell.block, record.cell.option): record.cell.error for record in options}
    found = []
    for trial in trials:
        if trial.configuration.trained_by or "error" not in trial.values:
            continue
        plan = trial.configuration.plan
        cells = [errors.get((block.name, plan.option(block))) for block in profile.blocks]
        if all(error is not None for error in cells):
            proxy = sum(error for error in cells if error is not None)
            found.append(ProxyPair(trial.number, proxy, trial.values["error"]))
    return found
