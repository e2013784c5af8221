"""The files of a deployment are ones that Ray accepts, hold no secret and pin what was tested."""

import copy
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray
import yaml
from ray._private import ray_constants
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_command

from service.cli import main as bitfront_command

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
LAUNCHED = (ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-local.yaml")
KUBERAY = ROOT / "deploy" / "kuberay.yaml"
KUBERAY_JOB = ROOT / "deploy" / "kuberay-job.yaml"
GUIDE = ROOT / "docs" / "deploy.md"
SHIPPED = (
    ROOT / "cluster.yaml",
    ROOT / "Containerfile",
    ROOT / ".containerignore",
    GUIDE,
    ROOT / "docs" / "security.md",
    *sorted((ROOT / "deploy").iterdir()),
)
SECRETS = (
    r"AKIA[0-9A-Z]{16}",
    r"-----BEGIN",
    r"\w+://[^\s:/@]+:[^\s/@]+@",
    r"\b[0-9a-fA-F]{32,}\b",
    r"\b(hf|ghp|github_pat|sk)_\w{20,}",
    r"(?i)(password|token|secret)['\"]?[=:]\s*['\"]?\w[\w+/-]{5,}",
)
MARKETS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


def read(path: Path) -> Document:
    content: Document = yaml.safe_load(path.read_text())
    return content


def check_launched(content: Document) -> None:
    validate_config(prepare_config(copy.deepcopy(content)))


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell line, without what stands before their program."""
    words = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "||", "|", "&", "(", ")"):
            while command and command[0] in ("nohup", "sudo", "exec"):
                command.pop(0)
            if command:
                yield command
            command = []
        else:
            command.append(word)


def without_redirections(command: list[str]) -> list[str]:
    ends = [i for i, word in enumerate(command) if word in (">", "<", ">>", ">&")]
    kept = command[: ends[0]] if ends else command
    return kept[:-1] if ends and kept[-1].isdigit() else kept


def parse(group: click.Command, arguments: list[str]) -> Mapping[str, object]:
    """The options that a click command reads from these arguments; nothing is run."""
    assert isinstance(group, click.Group)
    name, *rest = arguments
    found = group.commands[name]
    if isinstance(found, click.Group):
        return parse(found, rest)
    return found.make_context(name, rest).params


def started(content: Document) -> list[Mapping[str, object]]:
    """The options of each `ray start` of a cluster launcher's file, the head's first."""
    lines = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    found = [without_redirections(c) for line in lines for c in commands(line)]
    return [parse(ray_command, c[1:]) for c in found if c[:2] == ["ray", "start"]]


def environment(line: str) -> dict[str, str]:
    exported = [c[1:] for c in commands(line) if c[0] == "export"]
    return dict(word.split("=", 1) for words in exported for word in words)


def groups(content: Document) -> list[Document]:
    """The head's group and the workers' groups of a RayCluster."""
    return [content["spec"]["headGroupSpec"], *content["spec"]["workerGroupSpecs"]]


def container(group: Document) -> Document:
    first: Document = group["template"]["spec"]["containers"][0]
    return first


def variables(group: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in container(group)["env"]}


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_rays_own_schema_accepts_the_launchers_files(path: Path) -> None:
    check_launched(read(path))


def test_the_schema_refuses_a_key_that_ray_does_not_know() -> None:
    content = read(ROOT / "cluster.yaml")
    content["available_node_types"]["gpu_spot"]["use_spot"] = True

    with pytest.raises(jsonschema.ValidationError, match="use_spot"):
        check_launched(content)


def test_more_workers_than_allowed_are_refused() -> None:
    content = read(ROOT / "cluster.yaml")
    content["available_node_types"]["gpu_spot"]["min_workers"] = content["max_workers"] + 1

    with pytest.raises(ValueError, match="max_workers"):
        check_launched(content)


def test_the_head_is_on_demand_and_takes_no_trials_and_spot_workers_may_all_leave() -> None:
    content = read(ROOT / "cluster.yaml")
    types = content["available_node_types"]
    head = types.pop(content["head_node_type"])

    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert types
    for workers in types.values():
        assert workers["resources"]["GPU"] > 0
        assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert workers["min_workers"] == 0 < workers["max_workers"]
    assert content["max_workers"] == sum(workers["max_workers"] for workers in types.values())
    assert content["idle_timeout_minutes"] > 0


def test_all_machines_that_one_owns_join() -> None:
    content = read(ROOT / "deploy" / "cluster-local.yaml")

    count = len(content["provider"]["worker_ips"])
    assert content["min_workers"] == content["max_workers"] == count


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_machines_install_the_pinned_versions_and_nothing_else(path: Path) -> None:
    content = read(path)

    lines = [*content["setup_commands"], *content.get("head_setup_commands", [])]
    pinned = (ROOT / "requirements.lock").read_text().splitlines()
    installs = [c for line in lines for c in commands(line) if "install" in c and "uv" in c[0]]
    assert installs
    for install in installs:
        assert install[install.index("--constraint") + 1] == "~/bitfront/requirements.lock"
        wanted = install[install.index("--constraint") + 2 :]
        assert set(wanted) <= {*pinned, "$HOME/bitfront[datasets,s3]"}
    assert any("uv venv --python 3.11 ~/venv" in line for line in lines)


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_ray_start_has_options_that_ray_knows(path: Path) -> None:
    head, worker = started(read(path))

    assert head["head"]
    assert (head["num_cpus"], head["num_gpus"]) == (0, 0)
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert head["metrics_export_port"] == worker["metrics_export_port"] == 8080


def test_a_misspelt_option_of_ray_start_is_found() -> None:
    content = read(ROOT / "cluster.yaml")
    line = content["head_start_ray_commands"][1]
    content["head_start_ray_commands"][1] = line.replace("--dashboard-host", "--dashboard-hosts")

    with pytest.raises(click.NoSuchOption):
        started(content)


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_only_the_head_knows_the_database_and_every_node_has_the_token(path: Path) -> None:
    content = read(path)
    head = environment(content["head_start_ray_commands"][1])
    worker = environment(content["worker_start_ray_commands"][1])

    for node in (head, worker):
        assert node["RAY_AUTH_MODE"] == "token"
        assert node["RAY_AUTH_TOKEN_PATH"] == "$HOME/.ray/auth_token"
    assert "~/.ray/auth_token" in content["file_mounts"]
    assert "sslmode=verify-full" in head["BITFRONT_DB"]
    assert not {"BITFRONT_DB", "PGPASSFILE", "PGPASSWORD"} & worker.keys()
    assert head["BITFRONT_SPOOL"] == worker["BITFRONT_SPOOL"]
    assert head["BITFRONT_ROOTS"] == worker["BITFRONT_ROOTS"]
    assert int(head["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


def test_no_comment_ends_up_in_a_command() -> None:
    contents = [read(path) for path in LAUNCHED]

    lines = [line for c in contents for key in c if key.endswith("commands") for line in c[key]]
    assert lines
    assert not [line for line in lines if re.search(r"(^|\s)#", line)]


@pytest.mark.parametrize("path", [KUBERAY, KUBERAY_JOB], ids=lambda path: path.name)
def test_rays_autoscaler_takes_the_clusters_of_kuberay(path: Path) -> None:
    content = read(path)
    spec = content["spec"].get("rayClusterSpec", content["spec"])
    metadata = {"name": "bitfront", "namespace": content["metadata"]["namespace"]}

    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec})

    head = config["available_node_types"].pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"]["GPU"]) == (0, 0)
    for workers in config["available_node_types"].values():
        assert workers["resources"]["GPU"] > 0
        assert workers["min_workers"] == 0 < workers["max_workers"]
        assert workers["idle_timeout_s"] > 0


def test_the_autoscaler_refuses_a_group_without_cpus() -> None:
    content = read(KUBERAY)
    del container(groups(content)[1])["resources"]

    with pytest.raises(ValueError, match="gpu-spot"):
        _derive_autoscaling_config_from_ray_cr(content)


def test_kuberays_start_parameters_are_options_of_ray_start() -> None:
    for group in groups(read(KUBERAY)):
        options = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]

        parse(ray_command, ["start", *options])

        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_job_brings_the_very_cluster_and_goes_on_after_a_retry() -> None:
    job = read(KUBERAY_JOB)["spec"]

    program, *arguments = shlex.split(job["entrypoint"])
    options = parse(bitfront_command, arguments)
    head = groups(read(KUBERAY))[0]
    mounted = [Path(mount["mountPath"]) for mount in container(head)["volumeMounts"]]
    assert job["rayClusterSpec"] == read(KUBERAY)["spec"]
    assert program == "bitfront"
    assert "--resume" in arguments
    assert options["address"] == "auto"
    assert Path(str(options["job"])).parent in mounted
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]


def test_on_kubernetes_only_the_head_knows_the_database() -> None:
    head, *workers = (variables(group) for group in groups(read(KUBERAY)))

    assert head["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "bitfront-database"
    assert "sslmode=verify-full" in head["BITFRONT_DB"]["value"]
    for worker in workers:
        assert not {"BITFRONT_DB", "PGPASSWORD", "PGPASSFILE"} & worker.keys()
        for shared in ("BITFRONT_SPOOL", "BITFRONT_ROOTS", "HF_HOME"):
            assert worker[shared] == head[shared]
    assert read(KUBERAY)["spec"]["authOptions"]["mode"] == "token"


def test_the_head_stays_off_spot_nodes_and_the_workers_keep_to_them() -> None:
    def terms(group: Document) -> list[Document]:
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        return list(required["nodeSelectorTerms"])

    head, *workers = groups(read(KUBERAY))

    (only,) = terms(head)
    avoided = {e["key"]: e["values"] for e in only["matchExpressions"] if e["operator"] == "NotIn"}
    assert avoided == {key: [value] for key, value in MARKETS.items()}
    for group in workers:
        sought = [expression for term in terms(group) for expression in term["matchExpressions"]]
        assert {e["key"]: e["values"] for e in sought if e["operator"] == "In"} == avoided
        assert container(group)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_pods_have_time_to_end_and_no_privileges() -> None:
    for group in groups(read(KUBERAY)):
        pod, known = group["template"]["spec"], variables(group)

        names = ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_JOB_STOP_WAIT_TIME_S")
        times = [int(known[name]["value"]) for name in names if name in known]
        assert times
        assert pod["terminationGracePeriodSeconds"] > max(times)
        assert pod["securityContext"]["runAsNonRoot"]
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False
        assert container(group)["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_ray_reads_the_variables_that_the_files_set() -> None:
    package = Path(str(ray.__file__)).parent
    supervisor = (package / "dashboard" / "modules" / "job" / "job_supervisor.py").read_text()

    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in supervisor
    library = (package / "_raylet.so").read_bytes()
    assert b"RAY_AUTH_MODE" in library
    assert b"RAY_AUTH_TOKEN_PATH" in library


def test_versions_are_pinned_and_agree() -> None:
    locked = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().split()
        if "==" in line
    )
    recipe = (ROOT / "Containerfile").read_text()

    images = {container(group)["image"] for group in groups(read(KUBERAY))}
    assert len(images) == 1
    assert re.search(r":\d+\.\d+\.\d+$", images.pop())
    assert read(KUBERAY)["spec"]["rayVersion"] == locked["ray"] == ray.__version__
    assert re.search(r"^FROM \S+/python:3\.11\.\d+-slim-\w+$", recipe, re.MULTILINE)
    assert "pip install --constraint requirements.lock" in recipe
    assert re.findall(r"^USER (.*)$", recipe, re.MULTILINE) == ["1000:1000"]


def test_the_image_is_built_from_packages_and_the_lock_alone() -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = re.search(r"^COPY (.+) \./$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^include = \[(.*)\]$", project, re.MULTILINE)

    assert "*" in lines
    assert copied is not None
    assert found is not None
    packages = {name.rstrip("*") for name in re.findall(r'"(.*?)"', found[1])}
    assert allowed == packages | set(copied[1].split())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()

    assert [found[0] for pattern in SECRETS for found in re.finditer(pattern, text)] == []
    if path.suffix == ".yaml":
        assert not [part for part in yaml.safe_load_all(text) if part.get("kind") == "Secret"]


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN RSA PRIVATE KEY-----",
        "postgresql://bitfront:hunter22@db/bitfront",
        "RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef",
        "PGPASSWORD=hunter22",
        "password: hunter22",
        "auth_token: 'hunter22'",
    ],
)
def test_a_secret_would_be_seen(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in SECRETS)


def test_every_command_of_the_guide_has_options_that_exist() -> None:
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    programs = {"ray": ray_command, "bitfront": bitfront_command}

    parsed = 0
    for line in lines:
        for name, group in programs.items():
            if line.startswith(f"{name} "):
                (command,) = commands(line.partition("   #")[0])
                parse(group, without_redirections(command)[1:])
                parsed += 1
    assert parsed > 20


def test_the_guide_tells_every_variable_and_none_that_is_not_read() -> None:
    packages = ("bitfront", "objectives", "search", "service", "storage", "workers")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    read_here = {
        name for path in sources for name in re.findall(r"\bBITFRONT_[A-Z_]+", path.read_text())
    }
    rows = re.findall(r"^\| (`.*?) \|", GUIDE.read_text(), re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"\bBITFRONT_[A-Z_]+", row)}

    assert told == read_here - {"BITFRONT_FAILPOINT", "BITFRONT_WITNESS"}


class _Metadata(BaseHTTPRequestHandler):
    """AWS's metadata of a machine, which announces an interruption once it was asked thrice."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200)

    def do_GET(self) -> None:
        type(self).asked += 1
        is_known = self.headers["X-aws-ec2-metadata-token"] == "token"
        is_announced = self.path.endswith("/spot/instance-action") and type(self).asked > 2
        self._answer(200 if is_known and is_announced else 404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"token")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_notice_of_a_spot_machine_reaches_ray_as_sigterm() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    known = {**os.environ, "METADATA_URL": url, "EVERY_S": "0.05", "NO_PROXY": "127.0.0.1"}
    script = ROOT / "deploy" / "spot-notice.sh"

    with subprocess.Popen(["sleep", "60"]) as ray_start:
        watch = [str(script), str(ray_start.pid)]
        subprocess.run(watch, env=known, timeout=50, check=True)
        status = ray_start.wait(timeout=50)
    server.shutdown()
    server.server_close()

    assert status == -signal.SIGTERM
    assert _Metadata.asked == 3
