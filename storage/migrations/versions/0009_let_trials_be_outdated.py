"""Let trials be outdated: they ended before a change of what they depend on was accepted."""

from alembic import op

from storage.migrations.checks import change_check

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATE_CHECK = "ck_trial_state_known"
OLD_STATES = "state IN ('running', 'complete', 'failed', 'cancelled', 'pruned')"
NEW_STATES = "state IN ('running', 'complete', 'failed', 'cancelled', 'pruned', 'outdated')"

ERROR_CHECK = "ck_trial_complete_has_error"
OLD_ERROR = "(state = 'complete') = (error IS NOT NULL)"
NEW_ERROR = "state = 'outdated' OR (state = 'complete') = (error IS NOT NULL)"


def upgrade() -> None:
    change_check("trial", STATE_CHECK, OLD_STATES, NEW_STATES)
    change_check("trial", ERROR_CHECK, OLD_ERROR, NEW_ERROR)


def downgrade() -> None:
    # The older schema knows no trial whose values do not count.
    op.execute(
        "UPDATE trial SET state = 'failed', cause = 'user_error', error = NULL "
        "WHERE state = 'outdated'"
    )
    change_check("trial", ERROR_CHECK, NEW_ERROR, OLD_ERROR)
    change_check("trial", STATE_CHECK, NEW_STATES, OLD_STATES)
