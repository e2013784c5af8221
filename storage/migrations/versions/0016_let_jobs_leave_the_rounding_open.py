"""Let jobs leave the rounding method open; stored jobs keep the one that they name."""

from storage.migrations.specifications import change_section

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes nothing: every stored job names its method, and a version without `auto` is told."""


def downgrade() -> None:
    change_section(
        "quantizer",
        lambda quantizer: {
            **quantizer,
            "rounding": "descent" if quantizer["rounding"] == "auto" else quantizer["rounding"],
        },
    )
