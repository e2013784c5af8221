"""Give stored jobs the column of captions that tables have where none is named."""

from storage.migrations.specifications import change_section

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

COLUMN = "caption_column"


def upgrade() -> None:
    change_section("data", lambda data: {COLUMN: "caption", **data})


def downgrade() -> None:
    change_section("data", lambda data: {name: data[name] for name in data if name != COLUMN})
