"""Give stored jobs the group of inputs that they had: 32 columns."""

from storage.migrations.specifications import change_section

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("quantizer", lambda section: {**section, "activation_group": 32})


def downgrade() -> None:
    change_section("quantizer", without_group)


def without_group(section: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in section.items() if name != "activation_group"}
