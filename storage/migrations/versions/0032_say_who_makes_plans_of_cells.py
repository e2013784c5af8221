"""Give stored jobs the allocator that they had: the exact program."""

from storage.migrations.specifications import change_section

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("search", lambda search: {**search, "allocator": "program"})


def downgrade() -> None:
    change_section(
        "search", lambda search: {name: search[name] for name in search if name != "allocator"}
    )
