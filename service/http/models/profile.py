"""The sensitivities of a study's model, as measured and as drawn."""

from typing import Self

from bitfront.layers import LayerKind, Tower
from service.http.models.content import Content
from storage.records import (
    OptionRecord,
    ProfileRecord,
)


class LayerRow(Content):
    """A layer, in order of execution; `block` is absent where it is in none."""

    name: str
    tower: Tower
    kind: LayerKind
    rows: int
    columns: int
    block: str | None
    entropy: float | None
    dependency: float | None


class CellRow(Content):
    """An option of a block: precisions joined by `+`, its size, its cost, its effect in error.

    `error` is in nats for an output KL, and an estimate where it was not `measured`; `latency_s` is
    in seconds a sample, `token_s` in seconds a token; `kv_nbytes` is of the KV cache. `survives`
    says whether the search may take it.
    """

    block: str
    option: str
    nbytes: int
    bit_operations: float
    latency_s: float | None
    token_s: float | None
    kv_nbytes: int | None
    error: float
    measured: bool
    survives: bool

    @classmethod
    def of(cls, record: OptionRecord) -> Self:
        """The row of an option."""
        cell = record.cell
        return cls(
            block=cell.block,
            option=str(cell.option),
            nbytes=cell.nbytes,
            bit_operations=cell.bit_operations,
            latency_s=cell.latency_s,
            token_s=cell.token_s,
            kv_nbytes=cell.kv_nbytes,
            error=cell.error,
            measured=not cell.is_estimate,
            survives=record.survives,
        )


class Profile(Content):
    """The sensitivities of a study's model: layers, and the measured cells of its blocks."""

    fixed_nbytes: int
    layers: tuple[LayerRow, ...]
    cells: tuple[CellRow, ...]

    @classmethod
    def of(cls, profile: ProfileRecord, options: list[OptionRecord]) -> Self:
        """The profile of a study."""
        entropies = {entropy.layer: entropy for entropy in profile.entropies}
        blocks = {layer: block.name for block in profile.blocks for layer in block.layers}
        layers = []
        for layer in profile.layers:
            known = entropies.get(layer.name)
            layers.append(
                LayerRow(
                    name=layer.name,
                    tower=layer.tower,
                    kind=layer.kind,
                    rows=layer.rows,
                    columns=layer.columns,
                    block=blocks.get(layer.name),
                    entropy=None if known is None else known.entropy,
                    dependency=None if known is None else known.dependency,
                )
            )
        return cls(
            fixed_nbytes=profile.fixed_nbytes,
            layers=tuple(layers),
            cells=tuple(map(CellRow.of, options)),
        )


class LayerErrors(Content):
    """A layer, and the error of the model's output by the layer's weight bits."""

    layer: str
    tower: str
    block: str
    errors: dict[int, float]


class ProxyPoint(Content):
    """A trial without recovery: the summed error of its cells, and its measured error."""

    trial: int
    proxy: float
    error: float


class Sensitivity(Content):
    """How much each layer suffers from few bits, and how well that foretells a trial's error.

    `correlation` is Spearman's, as the study's driver recorded it.
    """

    measure: str
    layers: tuple[LayerErrors, ...]
    pairs: tuple[ProxyPoint, ...]
    correlation: float | None
