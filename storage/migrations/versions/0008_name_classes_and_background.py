"""Give stored jobs the settings of classes, background and unreadable images, at their defaults."""

from storage.migrations.specifications import change_section

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SETTINGS = {"classes": None, "background": "white", "skip_unreadable": False}


def upgrade() -> None:
    change_section("data", lambda data: {**SETTINGS, **data})


def downgrade() -> None:
    change_section("data", lambda data: {name: data[name] for name in data if name not in SETTINGS})
