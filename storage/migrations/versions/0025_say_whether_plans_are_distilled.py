"""Give stored jobs with a recovery the plans that they had: none is distilled."""

from storage.migrations.specifications import change_section

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("space", with_distil)


def downgrade() -> None:
    change_section("space", without_distil)


def with_distil(space: dict[str, object]) -> dict[str, object]:
    recovery = space.get("recovery")
    if not isinstance(recovery, dict):
        return space
    return {**space, "recovery": {**recovery, "distil": None}}


def without_distil(space: dict[str, object]) -> dict[str, object]:
    recovery = space.get("recovery")
    if not isinstance(recovery, dict):
        return space
    kept = {name: value for name, value in recovery.items() if name != "distil"}
    return {**space, "recovery": kept}
