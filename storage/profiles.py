"""Profiles: layers, blocks and options of a study, and cells that all studies share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from bitfront.errors import InvalidMetric
from bitfront.identity.identities import CellKey
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option
from bitfront.profile import Cell, LayerEntropy, StageArtefactKind
from storage import tables
from storage.access import find_id, guard
from storage.events import add_event, insert_new
from storage.records import EventKind, Lease, OptionRecord, ProfileRecord

_MOST_KEYS = 500  # bound parameters of one statement


def save(connection: Connection, lease: Lease, profile: ProfileRecord) -> None:
    """Records the study's layers and blocks; another profile replaces the one before."""
    guard(connection, lease)
    if load(connection, lease.name) == profile:
        return
    study_id = lease.study_id
    connection.execute(delete(tables.Layer).where(tables.Layer.study_id == study_id))
    connection.execute(delete(tables.Block).where(tables.Block.study_id == study_id))
    connection.execute(
        update(tables.Study)
        .where(tables.Study.id == study_id)
        .values(fixed_nbytes=profile.fixed_nbytes)
    )
    blocks = [
        {"study_id": study_id, "position": position, "name": block.name, "tower": block.tower}
        for position, block in enumerate(profile.blocks)
    ]
    if blocks:
        connection.execute(insert(tables.Block), blocks)
    rows = _layer_rows(study_id, profile, _block_ids(connection, study_id))
    if rows:
        connection.execute(insert(tables.Layer), rows)
    content = {"layers": len(profile.layers), "blocks": len(profile.blocks)}
    add_event(connection, study_id, EventKind.PROFILED, content)


def _layer_rows(
    study_id: int, profile: ProfileRecord, block_ids: Mapping[str, int]
) -> list[dict[str, object]]:
    places = {
        layer: (block_ids[block.name], position)
        for block in profile.blocks
        for position, layer in enumerate(block.layers)
    }
    entropies = {entropy.layer: entropy for entropy in profile.entropies}
    rows: list[dict[str, object]] = []
    for position, layer in enumerate(profile.layers):
        block_id, block_position = places.get(layer.name, (None, None))
        entropy = entropies.get(layer.name)
        rows.append(
            {
                "study_id": study_id,
                "block_id": block_id,
                "block_position": block_position,
                "position": position,
                "name": layer.name,
                "tower": layer.tower,
                "kind": layer.kind,
                "rows": layer.rows,
                "columns": layer.columns,
                "positions": layer.positions,
                "source": layer.source,
                "scope": layer.scope,
                "entropy": None if entropy is None else entropy.entropy,
                "dependency": None if entropy is None else entropy.dependency,
            }
        )
    return rows


def load(connection: Connection, name: str) -> ProfileRecord | None:
    """The study's layers and blocks; None until they are recorded.

    The entropies come in the order of the layers.
    """
    study_id = find_id(connection, name)
    table = tables.Layer
    query = select(*table.__table__.c).where(table.study_id == study_id).order_by(table.position)
    rows = connection.execute(query).all()
    fixed_nbytes = connection.scalar(
        select(tables.Study.fixed_nbytes).where(tables.Study.id == study_id)
    )
    if fixed_nbytes is None:
        return None
    members: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        if row.block_id is not None:
            members.setdefault(row.block_id, []).append((row.block_position, row.name))
    blocks = select(tables.Block.id, tables.Block.name, tables.Block.tower).where(
        tables.Block.study_id == study_id
    )
    return ProfileRecord(
        layers=tuple(
            Layer(
                name=row.name,
                tower=Tower(row.tower),
                kind=LayerKind(row.kind),
                rows=row.rows,
                columns=row.columns,
                positions=row.positions,
                source=row.source,
                scope=row.scope,
            )
            for row in rows
        ),
        blocks=tuple(
            Block(
                row.name,
                Tower(row.tower),
                tuple(layer for _, layer in sorted(members.get(row.id, [(0, row.name)]))),
            )
            for row in connection.execute(blocks.order_by(tables.Block.position))
        ),
        entropies=tuple(
            LayerEntropy(row.name, row.entropy, row.dependency)
            for row in rows
            if row.entropy is not None
        ),
        fixed_nbytes=fixed_nbytes,
    )


def cells(connection: Connection, keys: Sequence[CellKey]) -> dict[str, Cell]:
    """The cells that any study has measured under these keys, by the key's digest."""
    table = tables.Cell
    columns = (
        *(table.block, table.precisions, table.nbytes, table.bit_operations),
        *(table.error, table.latency_s, table.token_s),
    )
    digests = [key.digest for key in keys]
    found: dict[str, Cell] = {}
    for start in range(0, len(digests), _MOST_KEYS):
        chunk = digests[start : start + _MOST_KEYS]
        for row in connection.execute(
            select(table.digest, *columns).where(table.digest.in_(chunk))
        ):
            found[row.digest] = _cell(row)
    return found


def put_cells(
    connection: Connection, lease: Lease, measured: Sequence[tuple[CellKey, Cell, float]]
) -> None:
    """Records measured cells; a key that is there already keeps its cell."""
    guard(connection, lease)
    rows = [
        {
            "digest": key.digest,
            "model": key.model,
            "data": key.data,
            "quantizer": key.quantizer,
            "seconds": seconds,
            "study_id": lease.study_id,
            **_cell_columns(cell),
            "block": cell.block,
        }
        for key, cell, seconds in measured
    ]
    # In one order, so that two studies that measure the same cells cannot block each other.
    insert_new(connection, tables.Cell, sorted(rows, key=lambda row: str(row["digest"])))


def stage_artefacts(connection: Connection, keys: Sequence[str]) -> dict[str, dict[str, object]]:
    """What any study has found out under these keys."""
    table = tables.StageArtefact
    found: dict[str, dict[str, object]] = {}
    for start in range(0, len(keys), _MOST_KEYS):
        chunk = keys[start : start + _MOST_KEYS]
        query = select(table.key, table.content).where(table.key.in_(chunk))
        found |= {row.key: row.content for row in connection.execute(query)}
    return found


def put_stage_artefact(
    connection: Connection,
    lease: Lease,
    key: str,
    kind: StageArtefactKind,
    content: Mapping[str, object],
    seconds: float,
) -> None:
    """Records a stage's artefact; a key that is there already keeps its content."""
    guard(connection, lease)
    row = {
        "key": key,
        "kind": kind,
        "content": dict(content),
        "seconds": seconds,
        "study_id": lease.study_id,
    }
    insert_new(connection, tables.StageArtefact, [row])


def save_options(connection: Connection, lease: Lease, records: Iterable[OptionRecord]) -> None:
    """Records which options the blocks may still take; what was recorded before goes."""
    guard(connection, lease)
    block_ids = _block_ids(connection, lease.study_id)
    table = tables.Option
    connection.execute(delete(table).where(table.block_id.in_(list(block_ids.values()))))
    rows = [
        {
            "block_id": block_ids[record.cell.block],
            "survives": record.survives,
            "certificate": dict(record.certificate),
            "kv_nbytes": record.cell.kv_nbytes,
            **_cell_columns(record.cell),
        }
        for record in records
    ]
    if rows:
        connection.execute(insert(table), rows)
    survivors = sum(bool(row["survives"]) for row in rows)
    content = {"survivors": survivors, "removed": len(rows) - survivors}
    add_event(connection, lease.study_id, EventKind.PRUNED, content)


def options(connection: Connection, name: str) -> list[OptionRecord]:
    """Every option of the study's blocks, in the order they were saved within each block."""
    study_id = find_id(connection, name)
    table = tables.Option
    query = (
        select(*table.__table__.c, tables.Block.name.label("block"))
        .join(tables.Block, tables.Block.id == table.block_id)
        .where(tables.Block.study_id == study_id)
        .order_by(tables.Block.position, table.id)
    )
    return [
        OptionRecord(
            replace(
                _cell(row),
                kv_nbytes=row.kv_nbytes,
                is_estimate="estimated_by" in row.certificate,
            ),
            row.survives,
            row.certificate,
        )
        for row in connection.execute(query)
    ]


def _block_ids(connection: Connection, study_id: int) -> dict[str, int]:
    query = select(tables.Block.name, tables.Block.id).where(tables.Block.study_id == study_id)
    return {row.name: row.id for row in connection.execute(query)}


def _cell(row: Row[*tuple[Any, ...]]) -> Cell:
    return Cell(
        row.block,
        Option.parse(row.precisions),
        row.nbytes,
        row.bit_operations,
        row.error,
        latency_s=row.latency_s,
        token_s=row.token_s,
    )


def _cell_columns(cell: Cell) -> dict[str, object]:
    for name in ("error", "bit_operations", "latency_s", "token_s"):
        value = getattr(cell, name)
        if value is not None and not math.isfinite(value):
            raise InvalidMetric(f"{name} of {cell.block} {cell.option}", str(value))
    return {
        "precisions": str(cell.option),
        "nbytes": cell.nbytes,
        "bit_operations": cell.bit_operations,
        "latency_s": cell.latency_s,
        "token_s": cell.token_s,
        "error": cell.error,
    }
