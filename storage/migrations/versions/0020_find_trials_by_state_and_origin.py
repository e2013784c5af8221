"""Find the few failed, running or baseline trials of many without reading all."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_INDEXES = {"ix_trial_in_state": "state", "ix_trial_of_origin": "origin"}


def upgrade() -> None:
    for name, column in _INDEXES.items():
        op.create_index(name, "trial", ["study_id", column, "number"])


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "trial")
