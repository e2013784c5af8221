"""Give stored jobs the runtime that they were for: any."""

from storage.migrations.specifications import change_specification

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_specification(lambda spec: {**spec, "target": "any"})


def downgrade() -> None:
    change_specification(lambda spec: {name: spec[name] for name in spec if name != "target"})
