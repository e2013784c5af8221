"""A job is submitted to a cluster, runs the shipped copy, is cancelled, and resumes there."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import make_url

from bitfront.trial import StudyState
from storage.store import open_store
from tests.support.clusters import Head, head
from tests.support.databases import Databases
from tests.support.studies import JOB

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(900)]

SECRET = "sup3r-s3cret"
ROOT = Path(__file__).parents[2]
PACKAGES = ("bitfront", "objectives", "search", "service", "storage", "workers")


def run(arguments: list[str], url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command of a person whose bitfront lies in `folder`, away from the cluster."""
    environment = {**os.environ, "BITFRONT_DB": url, "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def wait_for_trials(url: str, study: str, count: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with open_store(url, create=False) as store:
            if store.status(study).finished >= count:
                return
        time.sleep(0.2)
    raise AssertionError(f"{study} has no {count} trials")


def jobs(cluster: Head) -> str:
    """All that Ray tells everybody of its jobs."""
    with urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=30) as answer:
        text: str = answer.read().decode()
    logs = ""
    for job in json.loads(text):
        if job["submission_id"]:
            place = f"{cluster.dashboard}/api/jobs/{job['submission_id']}/logs"
            with urllib.request.urlopen(place, timeout=30) as answer:
                logs += answer.read().decode()
    return text + logs


def test_a_job_runs_on_a_cluster_without_the_machine_that_submitted_it(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    plain = make_url(postgres_databases.ready())
    url = plain.set(password=SECRET).render_as_string(hide_password=False)
    copy = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    job = tmp_path / "job.yaml"
    job.write_text(f"study: far\nstop: {{trials: 400}}{JOB}")
    witness = tmp_path / "witness"
    environment = {
        "BITFRONT_DB": url,
        "BITFRONT_SPOOL": f"file://{tmp_path}/spool",
        "BITFRONT_WITNESS": str(witness),
    }
    with head(environment) as cluster:
        submitted = run(["submit", str(job), "--address", cluster.dashboard], url, copy)
        assert submitted.returncode == 0, submitted.stderr
        assert "study far is Ray job bitfront-far-" in submitted.stderr
        wait_for_trials(url, "far", 2)

        again = run(["submit", str(job), "--address", cluster.dashboard], url, copy)
        assert again.returncode == 2
        assert "a study named 'far' exists already" in again.stderr

        asked = run(["cancel", "far"], url, copy)
        assert asked.returncode == 0, asked.stderr
        asked_s = time.monotonic()
        with open_store(url, create=False) as store:
            while store.study("far").state is not StudyState.CANCELLED:
                assert time.monotonic() - asked_s < 60
                time.sleep(0.1)
            done = store.status("far").finished
            assert store.study("far").owner is None
            assert store.front("far")

        options = ["--trials", str(done + 2), "--address", cluster.dashboard]
        resumed = run(["resume", "far", *options], url, copy)
        assert resumed.returncode == 0, resumed.stderr
        watched = run(["watch", "far"], url, copy)
        assert watched.returncode == 0, watched.stderr
        told = jobs(cluster)

    assert SECRET not in told
    assert SECRET not in submitted.stderr + again.stderr + asked.stderr + watched.stderr
    started = [json.loads(line) for line in witness.read_text().splitlines()]
    code = {line["code"] for line in started if line["event"] == "attempt started"}
    assert code
    assert all(not path.startswith((str(ROOT), str(copy))) for path in code)
    with open_store(url, create=False) as store:
        assert store.study("far").state is StudyState.COMPLETE
        assert {str(trial.state) for trial in store.trials("far")} == {"complete"}


def test_a_driver_that_cannot_even_begin_is_told_with_what_it_printed(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"study: far\nstop: {{trials: 4}}{JOB}")
    foreign = tmp_path / "bin" / "python"
    foreign.parent.mkdir()
    foreign.write_text("#!/bin/sh\necho this python has no bitfront\nexit 1\n")
    foreign.chmod(0o755)

    with head({"PATH": f"{foreign.parent}{os.pathsep}{os.environ['PATH']}"}) as cluster:
        address = cluster.dashboard
        refused = run(["submit", str(job), "--address", address], f"{tmp_path}/a.db", ROOT)

    assert refused.returncode == 2
    assert "ended before it held its study" in refused.stderr
    assert "it printed last 'this python has no bitfront'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"study: far\nstop: {{trials: 4}}{JOB}")

    refused = run(["submit", str(job), "--address", "http://127.0.0.1:9"], "unused.db", ROOT)

    assert refused.returncode == 2
    assert "the cluster at http://127.0.0.1:9 cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr
