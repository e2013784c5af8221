"""Drivers are submitted to a cluster whose agents may not be there yet."""

import pytest

from bitfront.errors import UnreachableCluster
from workers.cluster import jobs
from workers.cluster.jobs import ClusterJob

NO_AGENT = "Request failed with status code 500: No available agent to submit job."
REFUSED = "Request failed with status code 400: runtime_env is not valid."


class Cluster:
    """Answers submissions in turn: a text is a refusal; `taken` says that only its answer is lost.

    Attributes:
        asked: How many submissions there were.
    """

    def __init__(self, answers: list[str], *, taken: bool = False) -> None:
        self._answers = answers
        self._taken = taken
        self.asked = 0

    def __call__(self, address: str) -> "Cluster":
        assert address == "http://head:8265"
        return self

    def submit_job(self, **job: object) -> None:
        """Takes a job, or refuses it."""
        assert str(job["submission_id"]).startswith("bitfront-pets-")
        self.asked += 1
        if self._answers:
            raise RuntimeError(self._answers.pop(0))

    def get_job_status(self, submission_id: str) -> str:
        """The job's state, where it is known."""
        assert submission_id.startswith("bitfront-pets-")
        if not self._taken:
            raise RuntimeError("Request failed with status code 404: no such job.")
        return "PENDING"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_S", 0.0)


def submit(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> ClusterJob:
    monkeypatch.setattr(jobs, "JobSubmissionClient", cluster)
    return ClusterJob.submit("http://head:8265", "pets", ["submit", "job.yaml"], {})


@pytest.mark.usefixtures("no_pauses")
def test_a_cluster_without_an_agent_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([NO_AGENT, NO_AGENT])

    submit(cluster, monkeypatch)

    assert cluster.asked == 3


@pytest.mark.usefixtures("no_pauses")
def test_a_submission_whose_answer_was_lost_is_not_made_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster([NO_AGENT], taken=True)

    submit(cluster, monkeypatch)

    assert cluster.asked == 1


@pytest.mark.usefixtures("no_pauses")
def test_what_a_cluster_refuses_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([REFUSED])

    with pytest.raises(UnreachableCluster, match="runtime_env is not valid"):
        submit(cluster, monkeypatch)

    assert cluster.asked == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_cluster_that_stays_without_an_agent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE_S", 0.0)
    cluster = Cluster([NO_AGENT] * 100)

    with pytest.raises(UnreachableCluster, match="No available agent"):
        submit(cluster, monkeypatch)

    assert cluster.asked < 100
