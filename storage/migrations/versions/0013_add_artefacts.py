"""Add artefacts: models that were built from trials."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artefact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("verification", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("nbytes >= 0", name=op.f("ck_artefact_nbytes_positive")),
        sa.CheckConstraint("trial >= 0", name=op.f("ck_artefact_trial_counts")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_artefact_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_artefact"),
        sa.UniqueConstraint("study_id", "path", name="uq_artefact_study_id_path"),
    )


def downgrade() -> None:
    op.drop_table("artefact")
