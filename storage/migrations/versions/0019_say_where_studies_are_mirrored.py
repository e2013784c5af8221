"""Give stored jobs a place for where they are mirrored: nowhere."""

from storage.migrations.specifications import change_specification

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_specification(lambda spec: {**spec, "tracking": {"mlflow": None}})


def downgrade() -> None:
    change_specification(lambda spec: {name: spec[name] for name in spec if name != "tracking"})
