"""Give stored jobs the usual list of options, which none of them has."""

from storage.migrations.specifications import change_section

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("data", lambda data: {"option_format": "\n{letter}. {option}", **data})


def downgrade() -> None:
    change_section(
        "data", lambda data: {name: data[name] for name in data if name != "option_format"}
    )
