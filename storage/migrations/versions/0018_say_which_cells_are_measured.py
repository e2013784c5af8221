"""Give stored jobs the cells that they measured: all."""

from storage.migrations.specifications import change_section

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_ADDED = {"cells": "all", "score": "gauss_newton", "max_passes": None}


def upgrade() -> None:
    change_section("profile", lambda profile: {**profile, **_ADDED})


def downgrade() -> None:
    change_section(
        "profile", lambda profile: {name: profile[name] for name in profile if name not in _ADDED}
    )
