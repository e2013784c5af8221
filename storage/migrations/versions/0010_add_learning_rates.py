"""Give stored jobs the learning rates of a recovery, at their default."""

from storage.migrations.specifications import change_section

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MULTIPLIERS = {"learning_rate_multiplier": [1.0]}


def upgrade() -> None:
    change_section("space", with_multipliers)


def downgrade() -> None:
    change_section("space", without_multipliers)


def with_multipliers(space: dict[str, object]) -> dict[str, object]:
    recovery = space.get("recovery")
    if not isinstance(recovery, dict):
        return space
    return {**space, "recovery": {**recovery, **MULTIPLIERS}}


def without_multipliers(space: dict[str, object]) -> dict[str, object]:
    recovery = space.get("recovery")
    if not isinstance(recovery, dict):
        return space
    kept = {name: value for name, value in recovery.items() if name not in MULTIPLIERS}
    return {**space, "recovery": kept}
