"""Give stored jobs the zero points that they had: between two codes where that is best."""

from storage.migrations.specifications import change_section

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("quantizer", lambda section: {**section, "zero_points": "fractional"})


def downgrade() -> None:
    change_section("quantizer", without_zero_points)


def without_zero_points(section: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in section.items() if name != "zero_points"}
