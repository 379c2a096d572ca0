"""cluster.yaml is what Ray's launcher takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).resolve().parent.parent / "cluster.yaml"


def test_ray_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private import util

    config = yaml.safe_load(FILE.read_text())
    util.validate_config(util.prepare_config(config))
    with pytest.raises(Exception, match="nosuchkey"):  # the schema is really asked
        util.validate_config({**util.prepare_config(config), "nosuchkey": 1})


def test_nodes_with_gpus_and_without_are_told_apart() -> None:
    config = yaml.safe_load(FILE.read_text())
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}
    assert config["head_node_type"] in config["available_node_types"]


def test_nodes_take_jobs_and_let_in_only_who_has_the_token() -> None:
    config = yaml.safe_load(FILE.read_text())
    assert "-e '.[s3,cluster]'" in " ".join(config["setup_commands"])
    assert '\ncluster = ["ray[default]==' in (FILE.parent / "pyproject.toml").read_text()
    assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
