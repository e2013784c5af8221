"""Give stored jobs the splits that they had: all of one path."""

from storage.migrations.specifications import change_section

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

SPLITS = dict.fromkeys(("calibration", "tuning", "selection", "test"))


def upgrade() -> None:
    change_section("data", lambda data: {"splits": SPLITS, **data})


def downgrade() -> None:
    change_section("data", lambda data: {name: data[name] for name in data if name != "splits"})
