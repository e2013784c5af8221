"""Give stored jobs the task that model and data mean, and its usual measure."""

from storage.migrations.specifications import change_section

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

SETTINGS = {"task": None, "measure": None}


def upgrade() -> None:
    change_section("data", lambda data: {**SETTINGS, **data})


def downgrade() -> None:
    change_section("data", lambda data: {name: data[name] for name in data if name not in SETTINGS})
