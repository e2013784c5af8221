"""Let trials be swaps of blocks around plans; stored jobs ask for none."""

from alembic import op

from storage.migrations.checks import change_check
from storage.migrations.specifications import change_section

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

ORIGINS = "origin IN ('baseline', 'program', 'warm_start', 'sampler')"
REFINED = "origin IN ('baseline', 'program', 'warm_start', 'refinement', 'sampler')"


def upgrade() -> None:
    change_check("trial", "ck_trial_origin_known", ORIGINS, REFINED)
    change_section("search", lambda search: {**search, "refine": False})


def downgrade() -> None:
    op.execute("UPDATE trial SET origin = 'program' WHERE origin = 'refinement'")
    change_check("trial", "ck_trial_origin_known", REFINED, ORIGINS)
    change_section(
        "search", lambda search: {name: search[name] for name in search if name != "refine"}
    )
