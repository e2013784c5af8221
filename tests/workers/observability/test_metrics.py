"""Figures for Prometheus: what a driver and a worker show is what a scrape of the node reads."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from bitfront.trial import Cause, TrialState
from workers.cluster.connection import connected
from workers.observability.metrics import _MEANINGS, StudyMetrics, observe_stage, timed

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def test_without_ray_figures_go_nowhere_and_ray_is_not_imported() -> None:
    script = (
        "import sys\n"
        "from bitfront.trial import Cause, TrialState\n"
        "from workers.observability.metrics import _MEANINGS, StudyMetrics, observe_stage, timed\n"
        "with StudyMetrics('demo') as metrics, timed('demo', 'evaluate'):\n"
        "    metrics.progress({TrialState.COMPLETE: 3}, 2, 0.5, None)\n"
        "    metrics.heartbeat()\n"
        "    metrics.cache_hit()\n"
        "    metrics.cells_reused(4)\n"
        "    metrics.failure(Cause.NODE_LOST)\n"
        "    metrics.database(0.1)\n"
        "observe_stage('demo', 'load', 1.0)\n"
        "print('ray' in sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.fixture(scope="module")
def endpoint(ray_folder: str) -> Iterator[str]:
    """Ray on this machine, as a study starts it; where Prometheus would read its figures."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected(1):
            import ray

            (node,) = ray.nodes()  # type: ignore[no-untyped-call] # Ray has no annotation here
            yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


@pytest.mark.usefixtures("ray_folder")
def test_a_scrape_reads_what_driver_and_worker_showed(endpoint: str) -> None:
    import ray

    @ray.remote
    def work() -> None:
        observe_stage("demo", "evaluate", 2.0)
        observe_stage("demo", "evaluate", 20.0)
        with timed("demo", "spool"):
            pass

    last_to_come = {
        sample("stage_seconds_count", stage="spool"),
        sample("cells_reused_total"),
        sample("heartbeat_age_seconds"),
    }
    with StudyMetrics("demo") as metrics, StudyMetrics("other") as other:
        metrics.heartbeat(age_s=100.0)
        metrics.progress({TrialState.COMPLETE: 3, TrialState.RUNNING: 2}, 2, 0.25, 0.125)
        metrics.progress({TrialState.COMPLETE: 4, TrialState.RUNNING: 1}, 3, 0.75, 0.0625)
        other.progress({TrialState.FAILED: 1}, 0, 0.0, None)
        metrics.cache_hit()
        metrics.cache_hit()
        metrics.cells_reused(0)
        metrics.cells_reused(7)
        metrics.failure(Cause.OUT_OF_MEMORY)
        metrics.database(0.02)
        ray.get(work.remote())
        samples = scrape(endpoint, lambda found: last_to_come <= found.keys())
        before_s = samples[sample("heartbeat_age_seconds")]
        # Ray keeps a gauge that nobody sets for 2 s here: it would never get this old.
        later = scrape(
            endpoint, lambda found: found.get(sample("heartbeat_age_seconds"), 0.0) > before_s + 4
        )

    states = {state: read(samples, "trials", state=state.value) for state in TrialState}
    wanted = dict.fromkeys(TrialState, 0.0)
    assert states == wanted | {TrialState.COMPLETE: 4.0, TrialState.RUNNING: 1.0}
    assert read(samples, "trials", study="other", state="failed") == 1.0
    assert read(samples, "front_size") == 3.0
    assert read(samples, "hypervolume") == 0.75
    assert read(samples, "best_error") == 0.0625
    assert read(samples, "best_error", study="other") is None
    assert read(samples, "evaluation_cache_hits_total") == 2.0
    assert read(samples, "cells_reused_total") == 7.0
    assert read(samples, "attempt_failures_total", cause="out_of_memory") == 1.0
    assert read(samples, "database_seconds_bucket", le="0.01") == 0.0
    assert read(samples, "database_seconds_bucket", le="0.03") == 1.0
    assert read(samples, "stage_seconds_bucket", stage="evaluate", le="3.0") == 1.0
    assert read(samples, "stage_seconds_count", stage="evaluate") == 2.0
    assert read(samples, "stage_seconds_count", stage="spool") == 1.0
    assert before_s >= 100.0
    assert read(later, "front_size") == 3.0


def scrape(endpoint: str, is_enough: Callable[[Samples], bool]) -> Samples:
    """Bitfront's samples, as soon as they are enough."""
    samples: Samples = {}
    for _ in range(240):
        with suppress(URLError), urlopen(endpoint, timeout=5) as answer:
            samples = parse(answer.read().decode())
        if is_enough(samples):
            return samples
        time.sleep(0.25)
    raise AssertionError(f"{endpoint} shows {samples}")


def parse(text: str) -> Samples:
    """Prometheus's text format, with the labels that are ours only."""
    ours = {"study", "state", "cause", "stage", "le"}
    samples = {}
    for name, labels, value in re.findall(r"(?m)^ray_bitfront_(\w+)\{(.*)\} (\S+)$", text):
        pairs = re.findall(r'(\w+)="([^"]*)"', labels)
        samples[name, frozenset(pair for pair in pairs if pair[0] in ours)] = float(value)
    return samples


def sample(name: str, study: str = "demo", **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """What names a sample."""
    return name, frozenset({"study": study, **labels}.items())


def read(samples: Samples, name: str, study: str = "demo", **labels: str) -> float | None:
    """The value of a sample; None if there is none."""
    return samples.get(sample(name, study, **labels))


def test_the_guide_for_operators_names_every_metric_and_no_other() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "operate.md").read_text()

    tabled = set(re.findall(r"(?m)^\| `ray_bitfront_(\w+)`", guide))
    asked = set(re.findall(r"ray_bitfront_([a-z_]+)", guide))

    assert {name.removesuffix("_total") for name in tabled} == set(_MEANINGS)
    assert {name.removesuffix("_bucket") for name in asked} == tabled
