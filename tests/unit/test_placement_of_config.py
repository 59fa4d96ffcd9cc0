"""What a configuration asks of the machines, and the command that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterSpec
from cluster.session import _live_topology, topology_of
from cluster.topology import Topology, parse_nodes
from launcher.cli import main
from tests.unit.report_fake import config_of
from w2sr.config import dump_config
from w2sr.errors import UserError
from w2sr.overlap import beside_pool
from w2sr.placement import check_placement, describe, phases_of, render, why_not_streamed
from w2sr.streaming import shared_out
from w2sr.teachers.config import PoolConfig, TeacherConfig
from w2sr.teachers.engine import GeneratorSpec
from w2sr.teachers.services import service_of


def teacher(name: str, tensor_parallel: int = 0, replicas: int = 1, least: int = 1, cpus: float = 1) -> dict[str, Any]:
    engine = {"kind": "vllm", "tensor_parallel_size": tensor_parallel} if tensor_parallel else {"kind": "hf"}
    pool = {"replicas": replicas, "min_replicas": least, "gpus_per_replica": tensor_parallel, "cpus_per_replica": cpus}
    return {"name": name, "model": "lab:teacher", "engine": engine, "sampling": {"max_new_tokens": 64}, "pool": pool}


ENDPOINT = {
    "name": "far",
    "model": "m",
    "engine": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
    "sampling": {"max_new_tokens": 64},
}
BIG = {
    "teachers": [teacher("qwen-32b", 8, 4, 2, 8), teacher("qwen-7b", 2, 16, 1, 4), ENDPOINT],
    "train": {"max_steps": 4, "num_ranks": 16, "use_gpu": True, "global_batch_size": 128, "micro_batch_size": 8},
    "evaluate": {"sampling": {"max_new_tokens": 64}, "pool": {"replicas": 32, "gpus_per_replica": 1}},
}


def test_each_stage_asks_for_its_own(tmp_path: Path) -> None:
    phases = phases_of(config_of(tmp_path, **BIG))
    assert [(phase.name, [demand.name for demand in phase.demands]) for phase in phases] == [
        ("generate", ["teacher qwen-32b", "teacher qwen-7b"]),
        ("train", ["student"]),
        ("evaluate", ["models under evaluation"]),
    ]
    assert phases_of(config_of(tmp_path, teachers=[ENDPOINT]), ["generate"]) == []


def test_what_is_needed_at_least_has_to_fit(tmp_path: Path) -> None:
    config = config_of(tmp_path, **BIG)
    check_placement(config, parse_nodes("3x8x96"))
    check_placement(config, parse_nodes("2x4x96"), ["prompts", "report"])
    with pytest.raises(UserError) as error:
        check_placement(config, parse_nodes("4x4x96"))
    assert str(error.value).startswith(
        "generate: teacher qwen-32b: 0 of 2 replicas placed; 2 need 8 GPUs and 8 CPUs each, on one node; the largest free block is 4 GPUs "
        "on node n2. There is: n1 to n4 (4 nodes): 4 GPUs, 96 CPUs each. Ask for less"
    )
    with pytest.raises(UserError, match="train: student: 0 of 16 ranks placed"):
        check_placement(config, parse_nodes("1x8x96"), ["train"])


def test_an_elastic_student_needs_the_fewest_ranks_it_may_have(tmp_path: Path) -> None:
    elastic = {**BIG["train"], "min_ranks": 3}
    check_placement(config_of(tmp_path, **BIG | {"train": elastic}), parse_nodes("1x4x96"), ["train"])
    with pytest.raises(UserError, match="train: student: 0 of 4 ranks placed"):
        check_placement(config_of(tmp_path, **BIG | {"train": elastic}), parse_nodes("1x3x96"), ["train"])


def test_stages_in_sequence_share_what_overlapping_ones_do_not(tmp_path: Path) -> None:
    where = parse_nodes("2x8x96")
    in_sequence, overlapping = config_of(tmp_path, **BIG), config_of(tmp_path, **BIG, overlap=True)
    assert [phase.name for phase in phases_of(overlapping)] == ["generate + evaluate", "train + evaluate", "evaluate"]
    assert phases_of(overlapping, ["generate", "train"]) == phases_of(in_sequence, ["generate", "train"])
    assert render(where, phases_of(in_sequence)[1:])[1]
    with_two_nodes, complete = render(where, phases_of(overlapping)[1:])
    assert not complete
    assert "MISSING models under evaluation: 0 of 1 replica placed" in with_two_nodes
    assert render(parse_nodes("4x8x96"), phases_of(overlapping))[1]


STREAMED = BIG | {"overlap": True, "curate": {"waves": 4}}


def test_a_student_beside_its_teachers_has_its_ranks_and_they_what_is_left(tmp_path: Path) -> None:
    config = config_of(tmp_path, **STREAMED)
    assert [phase.name for phase in phases_of(config)] == ["generate + train + evaluate", "train + evaluate", "evaluate"]
    assert [phase.name for phase in phases_of(config, ["generate", "train"])] == ["generate + train", "train"]
    assert [phase.name for phase in phases_of(config, ["generate"])] == ["generate"]

    def replicas(nodes: str, stages: tuple[str, ...]) -> dict[str, int]:
        shared, sizes = shared_out(config, parse_nodes(nodes), stages)
        assert sizes == (16,)
        return {teacher.name: teacher.pool.replicas for teacher in shared.teachers}

    assert replicas("6x8x96", ("generate", "train")) == {"qwen-32b": 3, "qwen-7b": 4, "far": 2}
    beside = replicas("6x8x96", ("generate", "train", "evaluate"))
    pool = beside_pool(config, parse_nodes("6x8x96"), ["generate", "train", "evaluate"])
    assert pool is not None
    assert 8 * beside["qwen-32b"] + 2 * beside["qwen-7b"] + 16 + pool.replicas <= 48
    roomy, _ = shared_out(config, parse_nodes("20x8x96"), ["generate", "train"])
    assert [teacher.pool for teacher in roomy.teachers] == [teacher.pool for teacher in config.teachers]
    with pytest.raises(UserError, match=r"generate \+ train \+ evaluate: .* set overlap to false"):
        check_placement(config, parse_nodes("4x8x96"))
    check_placement(config_of(tmp_path, **BIG), parse_nodes("4x8x96"))


def test_an_elastic_student_takes_what_its_teachers_leave(tmp_path: Path) -> None:
    config = config_of(tmp_path, **STREAMED | {"train": {**BIG["train"], "min_ranks": 2}})
    assert shared_out(config, parse_nodes("3x8x96"), ["generate", "train"])[1] == (2, 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"curate": {"waves": 1}}, "curate.waves of 2 or more"),
        ({"train": {**BIG["train"], "max_steps": None, "epochs": 1}}, "set train.max_steps"),
        ({"curate": {"waves": 4, "human": "people.jsonl"}}, "curate.human"),
        ({"teachers": [teacher("a", 1) | {"until_correct": True, "samples_per_prompt": 2}]}, "teacher a will write"),
    ],
)
def test_why_students_wait_for_all_traces(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, **STREAMED | changes)
    assert reason in (why_not_streamed(config) or "")
    assert [phase.name for phase in phases_of(config, ["generate", "train"])] == ["generate", "train"]
    assert why_not_streamed(config_of(tmp_path, **STREAMED)) is None


def test_the_table_says_who_gets_which_gpu(tmp_path: Path) -> None:
    text, complete = render(parse_nodes("4x8x96"), phases_of(config_of(tmp_path, **BIG)))
    assert complete
    assert text == "\n".join(
        [
            "n1 to n4 (4 nodes): 8 GPUs, 96 CPUs each",
            "",
            "generate: 32 of 32 GPUs",
            "  teacher qwen-32b: 3 replicas (2 to 4 asked), 8 GPUs, 8 CPUs each",
            "    n1 to n2 (2 nodes, each): 1 replica, GPUs 0-7",
            "    n4: 1 replica, GPUs 0-7",
            "  teacher qwen-7b: 4 replicas (1 to 16 asked), 2 GPUs, 4 CPUs each",
            "    n3: 4 replicas, GPUs 0-1 | 2-3 | 4-5 | 6-7",
            "",
            "train: 16 of 32 GPUs",
            "  student: 16 ranks (16 asked), 1 GPU, 1 CPU each",
            "    n1 to n2 (2 nodes, each): 8 ranks, GPUs 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7",
            "",
            "evaluate: 32 of 32 GPUs",
            "  models under evaluation: 32 replicas (1 to 32 asked), 1 GPU, 1 CPU each",
            "    n1 to n4 (4 nodes, each): 8 replicas, GPUs 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7",
        ]
    )


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config_of(tmp_path / "run", **BIG)))
    assert main(["placement", str(path), "--nodes", "4x8x96"]) == 0
    assert "teacher qwen-32b: 3 replicas (2 to 4 asked), 8 GPUs" in capsys.readouterr().out
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes: [{name: only, gpus: 8, cpus: 96}]")
    assert main(["placement", str(path), "--topology", str(nodes)]) == 2
    assert "MISSING teacher qwen-32b: 1 of 2 replicas placed" in capsys.readouterr().out
    assert main(["placement", str(path), "--nodes", "many"]) == 2
    assert "NODESxGPUS" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_this_machine_is_the_default_topology(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config_of(tmp_path / "run", train={"max_steps": 4, "num_ranks": 1})))
    assert main(["placement", str(path), "cluster.num_cpus=1"]) == 0
    assert "this machine: " in capsys.readouterr().out


def test_a_cluster_at_an_address_is_not_known_before_its_session() -> None:
    assert topology_of(ClusterSpec(address="10.0.0.1:6379")) is None
    found = topology_of(ClusterSpec(num_cpus=1, num_gpus=0))
    assert found is not None
    assert [(node.name, node.cpus, node.gpus) for node in found.nodes] == [("this machine", 1, 0)]


def test_live_nodes_are_those_that_are_alive() -> None:
    def row(name: str, node_id: str, alive: bool = True, **resources: Any) -> dict[str, Any]:
        return {"NodeName": name, "NodeID": node_id, "Alive": alive, "Resources": resources, "Labels": {"ray.io/node-id": "x", "rack": "7"}}

    found = _live_topology(
        [
            row("b", "2" * 8, CPU=4.0, GPU=2.0, **{"accelerator_type:H100": 1.0}, memory=1e9),
            row("a", "1" * 8, CPU=4.0),
            row("a", "3" * 8, CPU=4.0),
            row("c", "4" * 8, alive=False, CPU=4.0),
        ]
    )
    assert [node.name for node in found.nodes] == ["a-111111", "a-333333", "b"]
    assert found.nodes[2].describe() == "2 GPUs (H100), 4 CPUs, 1 GB, rack=7"


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"gpus_per_replica": 1.5}, "1.5 is neither whole nor a share of one GPU"),
        ({"gpus_per_replica": 0.00001}, "1e-05 is neither whole nor a share of one GPU; give 0, 0.0001 to 1, or a whole number"),
        ({"cpus_per_replica": 0.00001}, "greater than or equal to 0.0001"),
        ({"cpus_per_replica": float("inf")}, "finite"),
    ],
)
def test_a_replica_cannot_have_less_than_ray_counts(pool: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolConfig.model_validate(pool)


def test_the_time_of_a_task_is_not_bounded_at_an_endpoint() -> None:
    with pytest.raises(ValueError, match=r"engine\.timeout_s bounds an answer of an endpoint"):
        TeacherConfig.model_validate({**ENDPOINT, "pool": {"task_timeout_s": 60}})
    limits = []
    for each in map(TeacherConfig.model_validate, (ENDPOINT, teacher("near"))):
        assert each.sampling is not None
        spec = GeneratorSpec(each.name, "m", "digest", each.style, each.sampling, each.engine)
        limits.append(service_of(spec, PoolConfig(task_timeout_s=60)).task_timeout_s)
    assert limits == [None, 60], "of models that share a pool those of ours are bounded"


def test_no_node_is_described_as_such() -> None:
    assert describe(Topology(())) == "no node"
