"""Let studies pause, and trials start from what another study found."""

from alembic import op

from storage.migrations.checks import change_check

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATES = "state IN ('profiling', 'running', 'complete', 'stopped', 'cancelled', 'failed')"
PAUSABLE = (
    "state IN ('profiling', 'running', 'paused', 'complete', 'stopped', 'cancelled', 'failed')"
)
ORIGINS = "origin IN ('baseline', 'program', 'sampler')"
WARM = "origin IN ('baseline', 'program', 'warm_start', 'sampler')"


def upgrade() -> None:
    change_check("study", "ck_study_state_known", STATES, PAUSABLE)
    change_check("trial", "ck_trial_origin_known", ORIGINS, WARM)


def downgrade() -> None:
    op.execute("UPDATE study SET state = 'stopped' WHERE state = 'paused'")
    op.execute("UPDATE trial SET origin = 'program' WHERE origin = 'warm_start'")
    change_check("trial", "ck_trial_origin_known", WARM, ORIGINS)
    change_check("study", "ck_study_state_known", PAUSABLE, STATES)
