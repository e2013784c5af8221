from bitfront.objective import FIGURES, OBJECTIVES, Objective
from bitfront.spec import ConstraintSpec, DataSpec, JobSpec, ModelSpec
from storage.tables import Trial


def test_every_objective_is_a_figure_with_a_row() -> None:
    assert [figure.name for figure in OBJECTIVES] == [objective.value for objective in Objective]


def test_no_two_figures_share_a_name_or_a_limit() -> None:
    names = [name for figure in FIGURES for name in (figure.name, figure.label, figure.limit)]

    assert len(set(names)) == len(names) - 2  # error and divergence are labelled by their names


def test_every_figure_has_a_constraint_in_the_job() -> None:
    assert set(ConstraintSpec.model_fields) == {figure.limit for figure in FIGURES}


def test_every_figure_has_its_columns() -> None:
    columns = set(Trial.__table__.c.keys())

    assert columns >= {figure.name for figure in FIGURES}
    assert columns >= {figure.test_name for figure in OBJECTIVES}


def test_a_job_needs_what_it_minimises_and_what_it_limits() -> None:
    job = JobSpec.model_validate(
        {
            "study": "digits",
            "model": ModelSpec.model_validate({"source": "reference"}),
            "data": DataSpec.model_validate({"source": "reference"}),
            "constraints": {"max_latency_s": 1},
        }
    )

    needed = {objective for objective in Objective if job.needs(objective)}
    assert needed == {Objective.ERROR, Objective.NBYTES, Objective.LATENCY_S}


def test_an_error_may_be_limited_in_per_cent() -> None:
    in_per_cent = ConstraintSpec.model_validate({"max_error": "15%"})

    assert in_per_cent == ConstraintSpec(max_error=0.15)
    assert in_per_cent.limits == {"error": 0.15}
