"""Make the first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"


def finite(table: str, column: str, least: str = f"-{GREATEST}") -> sa.CheckConstraint:
    return sa.CheckConstraint(
        f"{column} BETWEEN {least} AND {GREATEST}", name=op.f(f"ck_{table}_{column}_finite")
    )


def one_of(table: str, column: str, *names: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{name}'" for name in names)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=op.f(f"ck_{table}_{column}_known"))


def upgrade() -> None:
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("identity", name="uq_model_identity"),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("fixed_nbytes", sa.BigInteger(), nullable=True),
        sa.Column("reference", sa.JSON(), nullable=True),
        sa.Column("correlation", sa.Double(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_s", sa.Double(), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        one_of("study", "request", "stop", "pause", "cancel"),
        one_of(
            "study", "state", "profiling", "running", "complete", "stopped", "cancelled", "failed"
        ),
        sa.CheckConstraint(
            "correlation BETWEEN -1 AND 1", name=op.f("ck_study_correlation_finite")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_study_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.UniqueConstraint("name", name="uq_study_name"),
    )
    op.create_index("ix_study_model_id", "study", ["model_id"], unique=False)

    op.create_table(
        "block",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tower", sa.Text(), nullable=False),
        one_of("block", "tower", "vision", "text", "projector", "language"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_block_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_block"),
        sa.UniqueConstraint("study_id", "name", name="uq_block_study_id_name"),
        sa.UniqueConstraint("study_id", "position", name="uq_block_study_id_position"),
    )
    op.create_table(
        "cell",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("quantizer", sa.Text(), nullable=False),
        sa.Column("option_digest", sa.Text(), nullable=False),
        sa.Column("block", sa.Text(), nullable=False),
        sa.Column("precisions", sa.Text(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("bit_operations", sa.Double(), nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        finite("cell", "bit_operations", least="0"),
        finite("cell", "error", least="0"),
        sa.CheckConstraint("nbytes >= 0", name=op.f("ck_cell_nbytes_positive")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_cell_study_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_cell"),
        sa.UniqueConstraint("digest", name="uq_cell_digest"),
    )
    op.create_index(
        "ix_cell_model_data_quantizer", "cell", ["model", "data", "quantizer"], unique=False
    )
    op.create_index("ix_cell_study_id", "cell", ["study_id"], unique=False)

    op.create_table(
        "evaluation",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_evaluation_study_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_evaluation"),
    )
    op.create_index("ix_evaluation_study_id", "evaluation", ["study_id"], unique=False)

    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=True),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_event_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
    )
    op.create_index("ix_event_study_id_id", "event", ["study_id", "id"], unique=False)

    op.create_table(
        "hypervolume",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hypervolume", sa.Double(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        finite("hypervolume", "hypervolume", least="0"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_hypervolume_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "completed", name="pk_hypervolume"),
    )
    op.create_table(
        "provenance",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_provenance_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "name", name="pk_provenance"),
    )
    op.create_table(
        "trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("configuration_digest", sa.Text(), nullable=False),
        sa.Column("error", sa.Double(), nullable=True),
        sa.Column("nbytes", sa.Double(), nullable=True),
        sa.Column("bits_per_weight", sa.Double(), nullable=True),
        sa.Column("bit_operations", sa.Double(), nullable=True),
        sa.Column("latency_s", sa.Double(), nullable=True),
        sa.Column("test_error", sa.Double(), nullable=True),
        sa.Column("test_nbytes", sa.Double(), nullable=True),
        sa.Column("test_bit_operations", sa.Double(), nullable=True),
        sa.Column("test_latency_s", sa.Double(), nullable=True),
        sa.Column("feasible", sa.Boolean(), nullable=False),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("constraints", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "(state = 'complete') = (error IS NOT NULL)", name=op.f("ck_trial_complete_has_error")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (finished_at IS NULL)", name=op.f("ck_trial_finished_has_time")
        ),
        one_of(
            "trial",
            "cause",
            "user_error",
            "out_of_memory",
            "invalid_metric",
            "node_lost",
            "driver_restart",
            "cancelled",
        ),
        one_of("trial", "origin", "baseline", "program", "sampler"),
        one_of("trial", "state", "running", "complete", "failed", "cancelled"),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_trial_attempt_counts")),
        finite("trial", "bit_operations"),
        finite("trial", "bits_per_weight"),
        finite("trial", "error"),
        finite("trial", "latency_s"),
        finite("trial", "nbytes"),
        sa.CheckConstraint("number >= 0", name=op.f("ck_trial_number_counts")),
        finite("trial", "test_bit_operations"),
        finite("trial", "test_error"),
        finite("trial", "test_latency_s"),
        finite("trial", "test_nbytes"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_trial_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_trial"),
        sa.UniqueConstraint(
            "study_id", "configuration_digest", name="uq_trial_study_id_configuration_digest"
        ),
        sa.UniqueConstraint("study_id", "number", name="uq_trial_study_id_number"),
    )
    op.create_index(
        "ix_trial_fewest_nbytes",
        "trial",
        ["study_id", "state", "feasible", "nbytes", "error", "number"],
        unique=False,
    )
    op.create_index(
        "ix_trial_lowest_error",
        "trial",
        ["study_id", "state", "feasible", "error", "nbytes", "number"],
        unique=False,
    )

    op.create_table(
        "attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        one_of(
            "attempt",
            "cause",
            "user_error",
            "out_of_memory",
            "invalid_metric",
            "node_lost",
            "driver_restart",
            "cancelled",
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempt_number_counts")),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trial.id"], name="fk_attempt_trial_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_attempt"),
        sa.UniqueConstraint("trial_id", "number", name="uq_attempt_trial_id_number"),
    )
    op.create_table(
        "front",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_front_study_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trial.id"], name="fk_front_trial_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", name="pk_front"),
    )
    op.create_index("ix_front_study_id", "front", ["study_id"], unique=False)

    op.create_table(
        "layer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("block_id", sa.Integer(), nullable=True),
        sa.Column("block_position", sa.Integer(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tower", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("positions", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("entropy", sa.Double(), nullable=True),
        sa.Column("dependency", sa.Double(), nullable=True),
        one_of("layer", "kind", "linear", "convolution", "embedding"),
        one_of("layer", "tower", "vision", "text", "projector", "language"),
        finite("layer", "dependency"),
        finite("layer", "entropy"),
        sa.ForeignKeyConstraint(
            ["block_id"], ["block.id"], name="fk_layer_block_id", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_layer_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_layer"),
        sa.UniqueConstraint("study_id", "name", name="uq_layer_study_id_name"),
        sa.UniqueConstraint("study_id", "position", name="uq_layer_study_id_position"),
    )
    op.create_index("ix_layer_block_id", "layer", ["block_id"], unique=False)

    op.create_table(
        "option",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("block_id", sa.Integer(), nullable=False),
        sa.Column("precisions", sa.Text(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("bit_operations", sa.Double(), nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("survives", sa.Boolean(), nullable=False),
        sa.Column("certificate", sa.JSON(), nullable=False),
        finite("option", "bit_operations", least="0"),
        finite("option", "error", least="0"),
        sa.ForeignKeyConstraint(
            ["block_id"], ["block.id"], name="fk_option_block_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_option"),
        sa.UniqueConstraint("block_id", "precisions", name="uq_option_block_id_precisions"),
    )


def downgrade() -> None:
    op.drop_table("option")
    op.drop_table("layer")
    op.drop_table("front")
    op.drop_table("attempt")
    op.drop_table("trial")
    op.drop_table("provenance")
    op.drop_table("hypervolume")
    op.drop_table("event")
    op.drop_table("evaluation")
    op.drop_table("cell")
    op.drop_table("block")
    op.drop_table("study")
    op.drop_table("model")
