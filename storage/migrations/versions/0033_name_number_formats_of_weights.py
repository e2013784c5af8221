"""Give stored jobs the number formats of weights that they had: integers alone."""

from storage.migrations.specifications import change_section

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("space", lambda section: {**section, "formats": []})


def downgrade() -> None:
    change_section("space", without_formats)


def without_formats(section: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in section.items() if name != "formats"}
