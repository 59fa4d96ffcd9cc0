"""What the doctor says of single machines: every complaint, with the node and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.doctor.check_machines import Skew, check_clocks, check_gpus, check_limits, check_paths, check_versions
from cluster.doctor.facts import FoundPath, Gpus, Hca, Limit, NodeFacts
from cluster.doctor.findings import EXIT_CODES, Finding, exit_code
from tests.unit.doctor_facts import GIB, a_gpu, a_node, some_gpus


def bad(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    assert all(finding.advice for finding in findings if finding.status != "ok")
    return [(finding.check, finding.node, finding.status, finding.found) for finding in findings if finding.status != "ok"]


def nodes(**changes: object) -> dict[str, NodeFacts]:
    return {"n1": a_node(1), "n2": a_node(2, **changes), "n3": a_node(3)}


def test_healthy_nodes_have_nothing_but_good_findings() -> None:
    findings = [*check_versions(nodes()), *check_gpus(nodes(), dict.fromkeys(nodes(), 0)), *check_limits(nodes())]
    assert bad(findings) == []
    assert {finding.area for finding in findings} == {"versions", "gpu", "limits"}
    assert exit_code(findings) == 0


def test_the_node_with_another_version_is_named_with_what_the_others_have() -> None:
    found = check_versions(nodes(versions={"python": "3.11.7", "torch": "2.12.0"}))
    assert bad(found) == [("torch", "n2", "fail", "2.12.0, elsewhere 2.13.0")]
    assert [finding.found for finding in found if finding.check == "python"] == ["3.11.7"]


def test_a_library_that_one_node_lacks_is_said_of_that_node() -> None:
    assert bad(check_versions(nodes(versions={"python": "3.11.7"}))) == [("torch", "n2", "fail", "(none), elsewhere 2.13.0")]


def test_a_torch_that_imports_nowhere_is_a_failure_although_equal() -> None:
    broken = {"python": "3.11.7", "torch": "(does not import: libcudart.so.12)"}
    everywhere = {name: a_node(1, versions=broken) for name in ("n1", "n2")}
    assert bad(check_versions(everywhere)) == [("torch", "", "fail", "(does not import: libcudart.so.12)")]


def gpu_nodes(gpus: Gpus) -> dict[str, NodeFacts]:
    return {"n1": a_node(1, some_gpus()), "n2": a_node(2, gpus), "n3": a_node(3, some_gpus())}


TWO = dict.fromkeys(("n1", "n2", "n3"), 2)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (some_gpus(a_gpu(0), a_gpu(1, ecc_uncorrected=3)), ("errors", "n2", "fail", "GPU 1: 3 uncorrected ECC errors")),
        (some_gpus(a_gpu(0), a_gpu(1, pcie_most="", ecc_uncorrected=1)), ("errors", "n2", "fail", "GPU 1: 1 uncorrected ECC errors")),
        (some_gpus(a_gpu(0), a_gpu(1, rows_failed=True)), ("errors", "n2", "fail", "GPU 1: a memory row could not be remapped")),
        (some_gpus(a_gpu(0), a_gpu(1, rows_pending=True)), ("errors", "n2", "warn", "GPU 1: a memory row waits for its remapping")),
        (
            some_gpus(a_gpu(0), a_gpu(1, slowed_by=("power brake",), temperature_c=91)),
            ("slowed", "n2", "warn", "GPU 1: clocks held down by power brake at 91 C"),
        ),
        (some_gpus(a_gpu(0), a_gpu(1, pcie="gen 5 x4")), ("slowed", "n2", "warn", "GPU 1: PCIe gen 5 x4, it could gen 5 x16")),
        (some_gpus(a_gpu(0), a_gpu(1, used_bytes=40 * GIB)), ("in use", "n2", "warn", "GPU 1: 40 of 80 GiB in use")),
        (some_gpus(driver="535.2"), ("driver", "n2", "warn", "535.2, elsewhere 550.1")),
        (some_gpus(links={"host bridge": 1}), ("links", "n2", "warn", "1 pairs by host bridge, elsewhere 1 pairs by NVLink")),
        (
            some_gpus(a_gpu(0), a_gpu(1, name="A100")),
            ("model", "n2", "warn", "1 x A100 80 GiB, 1 x H100 80 GiB, elsewhere 2 x H100 80 GiB"),
        ),
        (some_gpus(xid=("NVRM: Xid (PCI:0): 79",)), ("errors", "n2", "warn", "kernel log: NVRM: Xid (PCI:0): 79")),
    ],
)
def test_a_sick_gpu_is_named(gpus: Gpus, expected: tuple[str, str, str, str]) -> None:
    assert bad(check_gpus(gpu_nodes(gpus), TWO)) == [expected]


def test_a_lower_pcie_generation_is_only_an_idle_gpu() -> None:
    assert bad(check_gpus(gpu_nodes(some_gpus(a_gpu(0, pcie="gen 1 x16"), a_gpu(1))), TWO)) == []


def test_a_lost_gpu_is_a_failure() -> None:
    found = bad(check_gpus(gpu_nodes(some_gpus(a_gpu(0))), TWO))
    assert ("present", "n2", "fail", "Ray was told 2, the driver sees 1") in found


def test_gpus_that_ray_was_told_of_and_nobody_can_look_at_are_a_warning() -> None:
    absent = Gpus(absent="nvidia-ml-py is not installed: GPUs were not looked at")
    assert bad(check_gpus({"n1": a_node(1, absent)}, {"n1": 8})) == [
        ("present", "n1", "warn", "Ray was told 8; nvidia-ml-py is not installed: GPUs were not looked at")
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nofile": 512}, ("open files", "n2", "fail", "512")),
        ({"nofile": 4096}, ("open files", "n2", "warn", "4,096")),
        ({"nproc": 1000}, ("processes", "n2", "warn", "1,000")),
    ],
)
def test_low_limits_are_named(changes: dict[str, int], expected: tuple[str, str, str, str]) -> None:
    limits = a_node().machine.limits | {name: Limit(value, value) for name, value in changes.items()}
    assert bad(check_limits(nodes(limits=limits))) == [expected]


def test_locked_memory_matters_where_there_is_an_infiniband_adapter() -> None:
    hcas = (Hca("mlx5_0/1", "ACTIVE", "400 Gb/sec"),)
    assert bad(check_limits(nodes(hcas=hcas))) == [("locked memory", "n2", "warn", "64 MiB")]
    unlimited = a_node().machine.limits | {"memlock": Limit(-1, -1)}
    assert bad(check_limits(nodes(hcas=hcas, limits=unlimited))) == []


@pytest.mark.parametrize(("free", "status"), [(64 * 2**20, "fail"), (512 * 2**20, "warn")])
def test_little_shared_memory_is_named(free: int, status: str) -> None:
    (found,) = bad(check_limits(nodes(shm_bytes=free, shm_free_bytes=free)))
    assert found[:3] == ("/dev/shm", "n2", status)


def test_missing_ports_are_a_failure() -> None:
    assert bad(check_limits(nodes(free_ports=(1,)))) == [("ports", "n2", "fail", "1 of 2 tried are free")]


@pytest.mark.parametrize(
    ("skew", "status"),
    [(Skew(0.05, 0.01), "ok"), (Skew(-0.3, 0.01), "warn"), (Skew(3.0, 0.01), "fail"), (Skew(0.5, 0.6), "ok"), (Skew(-2.0, 1.5), "warn")],
)
def test_a_clock_is_off_when_the_measurement_can_tell(skew: Skew, status: str) -> None:
    (found,) = check_clocks({"n2": skew})
    assert (found.node, found.status) == ("n2", status)


def with_path(problem: str = "", digest: str = "d") -> NodeFacts:
    return replace(a_node(), paths=(FoundPath("student", "/m", problem, digest),))


def test_a_model_that_a_node_lacks_or_has_otherwise_is_named() -> None:
    has = {"n1": with_path(), "n2": with_path("absent"), "n3": with_path(digest="e")}
    assert bad(check_paths(has, with_path().paths, frozenset())) == [
        ("student", "n2", "fail", "/m absent"),
        ("student", "n3", "fail", "/m has other files or sizes than the driver's"),
    ]


def test_what_only_the_driver_reads_need_not_be_elsewhere() -> None:
    has = {"n1": with_path(), "n2": with_path("absent")}
    assert bad(check_paths(has, with_path().paths, frozenset({"student"}))) == []
    assert bad(check_paths(has, with_path("absent").paths, frozenset({"student"}))) == [("student", "driver", "fail", "/m absent")]


def test_the_first_area_with_a_failure_decides_the_exit_code() -> None:
    def failed(area: str) -> Finding:
        return Finding(area, "x", "", "fail", "y", "z")

    assert [exit_code([failed(area)]) for area in EXIT_CODES] == list(range(10, 18))
    assert exit_code([failed("files"), failed("network"), failed("clock")]) == 13
    assert exit_code([Finding("gpu", "x", "", "warn", "y", "z")]) == 0
