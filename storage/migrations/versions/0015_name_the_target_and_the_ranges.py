"""Give stored jobs the target of rounding and the kind of input ranges that they had."""

from storage.migrations.specifications import change_section

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_ADDED = ("target", "ranges")


def _named(quantizer: dict[str, object]) -> dict[str, object]:
    """Without a rounding method the defaults say what there was; with one, they say more."""
    if quantizer["rounding"] == "nearest":
        return {"target": "auto", "ranges": "auto", **quantizer}
    return {"target": "own", "ranges": "measured", **quantizer}


def upgrade() -> None:
    change_section("quantizer", _named)


def downgrade() -> None:
    change_section(
        "quantizer",
        lambda quantizer: {name: quantizer[name] for name in quantizer if name not in _ADDED},
    )
