"""`w2sr kuberay CONFIG`: the manifest that runs a configuration on Kubernetes with KubeRay. Prints; touches no cluster."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.placement import Demand
    from w2sr.config import PipelineConfig

# KubeRay makes names of up to 53 letters out of a job's.
LONGEST_NAME = 47
FIRST_RAY_WITH_TOKENS = (2, 52)
CONFIG_DIR = "/etc/w2sr"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# The entrypoint passes through two shells.
_PLAIN_PATH = re.compile(r"/[\w./-]*")


@dataclass(frozen=True)
class PodPlan:
    """What the configuration does not say. Secrets are names of Secrets, never their content.

    `claim` is a volume that all pods can write (ReadWriteMany), seen at `mount`. Each worker pod has `gpus`, `cpus` and `memory`; None for
    `gpus`: 8 where anything needs a GPU, otherwise 0. `token_secret` None: KubeRay makes a token of its own for the cluster.
    """

    name: str
    image: str
    claim: str
    ray_version: str
    mount: str = "/w2sr"
    gpus: int | None = None
    cpus: int = 16
    memory: str = "64Gi"
    token_secret: str | None = None
    env_secret: str | None = None


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], debug: argparse.ArgumentParser) -> None:
    """Register the command."""
    text = "print the KubeRay RayJob that runs a configuration on Kubernetes"
    command = commands.add_parser("kuberay", parents=[debug], help=text, description=text[0].upper() + text[1:] + " (docs/kuberay.md).")
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override a value, for example teachers.0.pool.replicas=4")
    command.add_argument("--image", required=True, metavar="IMAGE", help="image in which w2sr is installed")
    command.add_argument("--claim", required=True, metavar="PVC", help="PersistentVolumeClaim that all pods share (ReadWriteMany)")
    command.add_argument("--mount", default=PodPlan.mount, metavar="DIR", help=f"where the pods see it (default: {PodPlan.mount})")
    command.add_argument("--name", metavar="NAME", help="of the RayJob (default: that of the run folder)")
    command.add_argument("--gpus-per-node", type=int, metavar="N", help="of a worker pod (default: 8, or 0 when nothing needs one)")
    command.add_argument("--cpus-per-node", type=int, default=PodPlan.cpus, metavar="N", help=f"of a worker pod (default: {PodPlan.cpus})")
    command.add_argument("--memory", default=PodPlan.memory, metavar="SIZE", help=f"of each pod (default: {PodPlan.memory})")
    command.add_argument("--token-secret", metavar="SECRET", help="Secret with Ray's token under auth_token (default: KubeRay makes one)")
    command.add_argument("--env-secret", metavar="SECRET", help="Secret whose keys become environment variables, for endpoints' keys")
    command.add_argument("--ray-version", metavar="VERSION", help="Ray in the image (default: the one installed here)")
    command.set_defaults(command=_kuberay)


def _kuberay(arguments: argparse.Namespace) -> int:
    from importlib.metadata import version

    from w2sr.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    plan = PodPlan(
        name=arguments.name or re.sub(r"[^a-z0-9]+", "-", Path(config.run_dir).name.lower()).strip("-"),
        image=arguments.image,
        claim=arguments.claim,
        ray_version=arguments.ray_version or version("ray"),
        mount=arguments.mount,
        gpus=arguments.gpus_per_node,
        cpus=arguments.cpus_per_node,
        memory=arguments.memory,
        token_secret=arguments.token_secret,
        env_secret=arguments.env_secret,
    )
    print(manifest(config, plan), end="")
    return 0


def manifest(config: PipelineConfig, plan: PodPlan) -> str:
    """Return YAML of two documents, a ConfigMap with the resolved configuration and the RayJob that runs it.

    Worker pods are as many as the planner needs for all replicas that are welcome; with `minReplicas` of them everything needed has its
    place. Raises UserError for a plan that Kubernetes or the configuration cannot have.
    """
    _check(plan)
    resolved = _in_the_pods(config, plan)
    gpus = plan.gpus if plan.gpus is not None else 8 * any(demand.gpus for demand in _demands(config))
    least, most = _workers(config, gpus, plan.cpus)
    documents = [_config_map(resolved, plan), _ray_job(plan, gpus, least, most)]
    return _yaml(documents)


def _yaml(documents: list[dict[str, Any]]) -> str:
    """Return the documents as text, the configuration in it as people write it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def _check(plan: PodPlan) -> None:
    from w2sr.errors import UserError

    if not _NAME.fullmatch(plan.name) or len(plan.name) > LONGEST_NAME:
        raise UserError(f"--name {plan.name!r}: give at most {LONGEST_NAME} of a-z, 0-9 and -, beginning with a letter")
    for option, secret in (("--claim", plan.claim), ("--token-secret", plan.token_secret), ("--env-secret", plan.env_secret)):
        if secret is not None and not re.fullmatch(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", secret):
            raise UserError(f"{option} takes the name of a Kubernetes object: lower case letters, digits, - and ., not its content")
    if not _PLAIN_PATH.fullmatch(plan.mount):
        raise UserError(f"--mount {plan.mount!r} is not an absolute path of letters, digits, _, . and -; give for example {PodPlan.mount}")
    if Path(CONFIG_DIR).is_relative_to(plan.mount) or Path(plan.mount).is_relative_to(CONFIG_DIR):
        raise UserError(f"--mount {plan.mount} would hide {CONFIG_DIR}, where the configuration is; give for example {PodPlan.mount}")
    if (plan.gpus or 0) < 0 or plan.cpus < 1:
        raise UserError(f"--gpus-per-node {plan.gpus}, --cpus-per-node {plan.cpus}: give 0 or more GPUs and 1 or more CPUs")
    if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?", plan.memory):
        raise UserError(f"--memory {plan.memory!r} is not a size above 0 as Kubernetes writes it, for example 64Gi")
    found = re.match(r"(\d+)\.(\d+)", plan.ray_version)
    if found is None or (int(found[1]), int(found[2])) < FIRST_RAY_WITH_TOKENS:
        raise UserError(f"--ray-version {plan.ray_version!r}: token authentication needs 2.52 or later; put a newer Ray into the image")


def _in_the_pods(config: PipelineConfig, plan: PodPlan) -> PipelineConfig:
    """Return the configuration with its run folder on the shared volume, and the cluster around it."""
    from w2sr.errors import UserError

    run_dir = Path(plan.mount) / config.run_dir
    if Path(plan.mount) not in run_dir.parents or ".." in run_dir.parts or not _PLAIN_PATH.fullmatch(str(run_dir)):
        raise UserError(
            f"run_dir={config.run_dir} is not on the volume at {plan.mount}: give a relative run_dir of letters, digits, _, . and -, or "
            f"one below {plan.mount}"
        )
    cluster = config.cluster.model_copy(update={"address": "auto", "num_cpus": None, "num_gpus": None})
    return config.model_copy(update={"run_dir": str(run_dir), "cluster": cluster})


def _demands(config: PipelineConfig) -> list[Demand]:
    from w2sr.placement import phases_of

    return [demand for phase in phases_of(config) for demand in phase.demands]


def _workers(config: PipelineConfig, gpus: int, cpus: int) -> tuple[int, int]:
    """Return how many pods hold what is needed, and how many hold everything that is welcome too. Raises UserError when no number does."""
    import dataclasses

    from cluster.placement import place
    from cluster.topology import Node, Topology
    from w2sr.errors import UserError
    from w2sr.placement import phases_of

    large = next((demand for demand in _demands(config) if demand.gpus > gpus or demand.cpus > cpus), None)
    if large is not None:
        raise UserError(
            f"{large.name}: one {large.unit} needs {large.gpus:g} GPUs and {large.cpus:g} CPUs on one node; a worker pod has {gpus} and "
            f"{cpus}: give --gpus-per-node and --cpus-per-node"
        )

    def pods(demands: list[Demand]) -> int:
        needed_gpus, needed_cpus = (sum(getattr(each, kind) * each.minimum for each in demands) for kind in ("gpus", "cpus"))
        number: int = max(1, math.ceil(needed_gpus / max(gpus, 1)), math.ceil(needed_cpus / cpus))
        while place(Topology(tuple(Node(f"n{each}", cpus, gpus) for each in range(number))), demands).missing:
            number += 1
        return number

    phases = [list(phase.demands) for phase in phases_of(config)]
    full = [[dataclasses.replace(demand, minimum=demand.maximum) for demand in demands] for demands in phases]
    return max(pods(demands) for demands in phases), max(pods(demands) for demands in full)


def _config_map(config: PipelineConfig, plan: PodPlan) -> dict[str, Any]:
    from w2sr.config import dump_config

    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{plan.name}-config"},
        "data": {"config.yaml": dump_config(config)},
    }


def _ray_job(plan: PodPlan, gpus: int, least: int, most: int) -> dict[str, Any]:
    token = {"mode": "token", **({"secretName": plan.token_secret} if plan.token_secret else {})}
    workers = {
        "groupName": "workers",
        "replicas": most,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": {"spec": _pod(plan, "ray-worker", {"cpu": str(plan.cpus), "memory": plan.memory}, gpus)},
    }
    head = {
        # The stages run here; replicas and ranks do not.
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": {"spec": _pod(plan, "ray-head", {"cpu": "4", "memory": plan.memory}, 0)},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": plan.name},
        "spec": {
            "entrypoint": f"w2sr run {CONFIG_DIR}/config.yaml",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            # A new cluster goes on where the last one was: what is done lies on the volume.
            "backoffLimit": 3,
            "rayClusterSpec": {"rayVersion": plan.ray_version, "authOptions": token, "headGroupSpec": head, "workerGroupSpecs": [workers]},
        },
    }


def _pod(plan: PodPlan, name: str, resources: dict[str, str], gpus: int) -> dict[str, Any]:
    has = {**resources, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container: dict[str, Any] = {
        "name": name,
        "image": plan.image,
        # Relative paths of the configuration begin here.
        "workingDir": plan.mount,
        "env": [{"name": "HF_HOME", "value": f"{plan.mount}/huggingface"}],
        "resources": {"requests": dict(has), "limits": dict(has)},
        "volumeMounts": [{"name": "shared", "mountPath": plan.mount}, {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}],
    }
    if plan.env_secret:
        container["envFrom"] = [{"secretRef": {"name": plan.env_secret}}]
    return {
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": plan.claim}},
            {"name": "config", "configMap": {"name": f"{plan.name}-config"}},
        ],
    }
