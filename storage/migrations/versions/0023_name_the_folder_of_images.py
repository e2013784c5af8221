"""Give stored jobs the folder of images that they had: that of their file."""

from storage.migrations.specifications import change_section

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("data", lambda data: {"images": None, **data})


def downgrade() -> None:
    change_section("data", lambda data: {name: data[name] for name in data if name != "images"})
