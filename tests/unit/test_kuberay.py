"""The KubeRay manifest: valid by KubeRay's own schema, the committed text, no secret in it, as many pods as the planner needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.placement import place
from cluster.topology import parse_nodes
from launcher.kuberay import PodPlan, manifest
from tests.unit.test_doctor_docs import bash_lines
from w2sr.config import PipelineConfig, load_config
from w2sr.errors import UserError
from w2sr.placement import check_placement, phases_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "kuberay.yaml"
SCHEMA = json.loads((ROOT / "tests" / "golden" / "kuberay-rayjob.schema.json").read_text())
PLAN = PodPlan("study", "registry.example/w2sr:1", "shared", "2.60.0", token_secret="ray-token", env_secret="endpoint-keys")


def config(**changes: Any) -> PipelineConfig:
    values = yaml.safe_load((ROOT / "configs" / "study-920.yaml").read_text())
    return PipelineConfig.model_validate(values | changes)


def documents(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, ray_job = yaml.safe_load_all(text)
    return config_map, ray_job


def golden() -> str:
    return manifest(config(), PLAN).split("---\n")[1]


def test_the_manifest_is_the_committed_one() -> None:
    """To accept a change: python -m tests.unit.test_kuberay"""
    assert golden() == GOLDEN.read_text(), f"the manifest changed; to accept: python -m {__name__}"


@pytest.mark.parametrize("name", ["quickstart", "gsm8k", "study-920"])
@pytest.mark.parametrize("secret", [None, "ray-token"])
def test_kuberay_takes_what_shipped_configurations_become(name: str, secret: str | None) -> None:
    made = load_config(ROOT / "configs" / f"{name}.yaml")
    config_map, ray_job = documents(manifest(made, dataclasses.replace(PLAN, name=name, token_secret=secret, gpus=8)))
    jsonschema.Draft7Validator(SCHEMA).validate(ray_job)
    assert config_map["kind"] == "ConfigMap"
    for group in (ray_job["spec"]["rayClusterSpec"]["headGroupSpec"], *ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda job: job["spec"].__setitem__("entryPoint", "x"), "entryPoint"),
        (lambda job: job["spec"]["rayClusterSpec"].pop("headGroupSpec"), "headGroupSpec"),
        (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].__setitem__("replicas", "two"), "replicas"),
        (lambda job: job["spec"]["rayClusterSpec"]["authOptions"].__setitem__("mode", "open"), "mode"),
        (lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"), "name"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volumes"][0].__setitem__("pvc", {}),
            "pvc",
        ),
    ],
)
def test_the_schema_refuses_what_kuberay_would(change: Any, where: str) -> None:
    _, ray_job = documents(manifest(config(), PLAN))
    change(ray_job)
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.Draft7Validator(SCHEMA).validate(ray_job)
    assert where in refused.value.message or where in refused.value.absolute_path


def test_the_configuration_travels_whole_and_runs_on_the_volume_and_the_cluster_around_it(tmp_path: Path) -> None:
    config_map, ray_job = documents(manifest(config(), PLAN))
    path = tmp_path / "config.yaml"
    path.write_text(config_map["data"]["config.yaml"])
    loaded, original = load_config(path), config()
    assert loaded.run_dir == "/w2sr/runs/study-920"
    assert loaded.cluster.address == "auto"
    assert loaded.model_copy(update={"run_dir": original.run_dir, "cluster": original.cluster}) == original
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert config_map["metadata"]["name"] in [volume["configMap"]["name"] for volume in head["volumes"] if "configMap" in volume]
    assert ray_job["spec"]["entrypoint"] == "w2sr run /etc/w2sr/config.yaml"


def test_secrets_are_names_and_a_token_is_always_wanted() -> None:
    _, ray_job = documents(manifest(config(), PLAN))
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "endpoint-keys"}}]
    _, ray_job = documents(manifest(config(), dataclasses.replace(PLAN, token_secret=None)))
    assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    with pytest.raises(UserError, match=r"--token-secret takes the name of a Kubernetes object.*not its content"):
        manifest(config(), dataclasses.replace(PLAN, token_secret="hf_AbCdEfGh/"))


def teacher(name: str, gpus: int, replicas: int, least: int) -> dict[str, Any]:
    pool = {"replicas": replicas, "min_replicas": least, "gpus_per_replica": gpus}
    engine = {"kind": "vllm", "tensor_parallel_size": gpus}
    return {"name": name, "model": "owner/m", "engine": engine, "sampling": {"max_new_tokens": 8}, "pool": pool}


@pytest.mark.parametrize(("gpus", "replicas"), [(1, 5), (2, 7), (4, 3), (8, 3)])
def test_pods_are_as_many_as_the_planner_needs_and_no_more(gpus: int, replicas: int) -> None:
    made = config(teachers=[teacher("a", gpus, replicas, 1), teacher("b", 4, 3, 2)])
    _, ray_job = documents(manifest(made, PLAN))
    (workers,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    least, most = workers["minReplicas"], workers["replicas"]
    check_placement(made, parse_nodes(f"{least}x8x16"))
    if least > 1:
        with pytest.raises(UserError, match="placed"):
            check_placement(made, parse_nodes(f"{least - 1}x8x16"))

    def seats(nodes: int) -> list[int]:
        return [len(place(parse_nodes(f"{nodes}x8x16"), phase.demands).seats) for phase in phases_of(made)]

    assert seats(most) == seats(most + 10)
    assert most == least or seats(most - 1) != seats(most)


def test_a_replica_that_fits_no_pod_is_refused() -> None:
    with pytest.raises(UserError, match=r"teacher reasoner: one replica needs 4 GPUs and 1 CPUs on one node; a worker pod has 2 and 16"):
        manifest(config(), dataclasses.replace(PLAN, gpus=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Study"}, "--name 'Study': give at most 47"),
        ({"name": "s" * 48}, "give at most 47"),
        ({"mount": "w2sr"}, "--mount 'w2sr' is not an absolute path"),
        ({"mount": "/w2sr; rm"}, "is not an absolute path of letters"),
        ({"mount": "/etc/w2sr"}, "--mount /etc/w2sr would hide /etc/w2sr, where the configuration is"),
        ({"mount": "/etc/w2sr/volume"}, "would hide"),
        ({"mount": "/etc"}, "would hide"),
        ({"memory": "0"}, "--memory '0' is not a size above 0"),
        ({"memory": "0.0Gi"}, "--memory '0.0Gi'"),
        ({"gpus": -1}, "--gpus-per-node -1, --cpus-per-node 16: give 0 or more"),
        ({"cpus": 0}, "--cpus-per-node 0"),
        ({"memory": "64 GB"}, "--memory '64 GB' is not a size"),
        ({"ray_version": "2.51.0"}, "--ray-version '2.51.0': token authentication needs 2.52"),
        ({"ray_version": "latest"}, "--ray-version 'latest'"),
        ({"claim": "My Claim"}, "--claim takes the name"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifest(config(), dataclasses.replace(PLAN, **change))


@pytest.mark.parametrize("run_dir", ["/elsewhere/run", "../run", "runs/a b"])
def test_a_run_folder_that_is_not_on_the_volume_is_refused(run_dir: str) -> None:
    with pytest.raises(UserError, match="is not on the volume at /w2sr"):
        manifest(config(run_dir=run_dir), PLAN)


def test_the_commands_of_the_page_print_manifests(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.cli import main

    monkeypatch.chdir(ROOT)
    commands = [words for words in bash_lines(ROOT / "docs" / "kuberay.md") if words[0] == "w2sr"]
    assert commands
    for words in commands:
        words = words[: words.index(">")] if ">" in words else words
        assert main(words[1:]) == 0
        _, ray_job = documents(capsys.readouterr().out)
        jsonschema.Draft7Validator(SCHEMA).validate(ray_job)


if __name__ == "__main__":
    GOLDEN.write_text(golden())
