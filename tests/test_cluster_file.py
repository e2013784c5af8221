"""The cluster file is one that Ray accepts, and pins what was tested."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


def test_rays_own_schema_accepts_the_cluster_file() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())

    validate_config(prepare_config(config))


def test_the_head_takes_no_trials_and_spot_workers_may_all_leave() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]

    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    spot = types["gpu_spot"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert spot["min_workers"] == 0 < spot["max_workers"]


def test_machines_install_the_pinned_versions() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())

    assert any("--constraint" in c and "requirements.lock" in c for c in config["setup_commands"])
    assert (ROOT / "requirements.lock").is_file()
