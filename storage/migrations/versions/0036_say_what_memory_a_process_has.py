"""Give stored jobs a place for the memory that a process may take: as much as it wants."""

from storage.migrations.specifications import change_specification

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_specification(lambda spec: {**spec, "resources": {"memory": None}})


def downgrade() -> None:
    change_specification(lambda spec: {name: spec[name] for name in spec if name != "resources"})
