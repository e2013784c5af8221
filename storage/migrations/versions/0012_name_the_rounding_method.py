"""Give stored jobs the rounding method of weights, at its default."""

from storage.migrations.specifications import change_section

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("quantizer", lambda quantizer: {"rounding": "nearest", **quantizer})


def downgrade() -> None:
    change_section(
        "quantizer",
        lambda quantizer: {name: quantizer[name] for name in quantizer if name != "rounding"},
    )
