"""Checks on what each node says of itself: versions, GPUs, limits, files, clocks. Pure: facts in, findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.doctor.facts import FoundPath, Gpu, Gpus, NodeFacts
from cluster.doctor.findings import Finding, Status, judged

GIB = 2**30
FEWEST_FILES, MANY_FILES = 1024, 16_384
FEW_PROCESSES = 4096
# Docker gives 64 MiB, on which Ray's object store and NCCL fail in mid-run.
LEAST_SHM_BYTES, GOOD_SHM_BYTES = 65 * 2**20, GIB
WARN_SKEW_S, FAIL_SKEW_S = 0.1, 1.0
BUSY_SHARE = 0.1


@dataclass(frozen=True)
class Skew:
    """A node's clock minus the driver's, known to within `error_s`."""

    skew_s: float
    error_s: float


def check_versions(nodes: Mapping[str, NodeFacts]) -> list[Finding]:
    """Every library in one version everywhere, and torch importable."""
    findings = []
    advice = (
        "install the same everywhere: one environment on a shared folder, or copied by `w2sr cluster up`; then bring the cluster up again"
    )
    for name in sorted({name for facts in nodes.values() for name in facts.machine.versions}):
        has = {node: facts.machine.versions.get(name, "(none)") for node, facts in nodes.items()}
        usual = _usual(has)
        others = {node: version for node, version in has.items() if version != usual}
        findings += [Finding("versions", name, node, "fail", f"{version}, elsewhere {usual}", advice) for node, version in others.items()]
        if usual.startswith("(does not import"):
            findings.append(Finding("versions", name, "", "fail", usual, "mend the environment until `python -c 'import torch'` works"))
        elif not others:
            findings.append(Finding("versions", name, "", "ok", usual))
    return findings


def check_gpus(nodes: Mapping[str, NodeFacts], told_to_ray: Mapping[str, int]) -> list[Finding]:
    """GPUs are there, equal, healthy, not slowed down, and free."""
    findings: list[Finding] = []
    if not any(facts.gpus.gpus or told_to_ray[node] for node, facts in nodes.items()):
        reasons = ", ".join(sorted({facts.gpus.absent for facts in nodes.values() if facts.gpus.absent})) or "the driver knows none"
        return [Finding("gpu", "present", "", "ok", f"none, and none asked of Ray ({reasons})")]
    for node, facts in nodes.items():
        findings += _gpu_count(node, facts.gpus, told_to_ray[node])
        for gpu in facts.gpus.gpus:
            findings += _gpu_health(node, gpu)
        findings += _xid(node, facts.gpus)
    looked = {node: facts.gpus for node, facts in nodes.items() if facts.gpus.gpus}
    for check, has in (
        ("model", {node: _models(gpus) for node, gpus in looked.items()}),
        ("driver", {node: gpus.driver for node, gpus in looked.items()}),
        ("links", {node: _links(gpus) for node, gpus in looked.items()}),
    ):
        findings += _equal(
            "gpu", check, has, "use equal nodes side by side in a training (`w2sr placement` with labels), or mend the odd one"
        )
    bad = {(finding.check, finding.node) for finding in findings if finding.status != "ok"}
    for check in ("errors", "slowed", "in use"):
        if looked and not any(each == check for each, _ in bad):
            findings.append(Finding("gpu", check, "", "ok", "none"))
    return findings


def _gpu_count(node: str, gpus: Gpus, told: int) -> list[Finding]:
    if gpus.absent and told:
        advice = "pip install 'w2sr[gpu]' on the node, and look at `nvidia-smi` there; without a driver start Ray with --num-gpus 0"
        return [Finding("gpu", "present", node, "warn", f"Ray was told {told}; {gpus.absent}", advice)]
    if len(gpus.gpus) < told:
        advice = "a GPU is lost: look at `nvidia-smi` and `dmesg` there, reboot the node; or start Ray with the number that works"
        return [Finding("gpu", "present", node, "fail", f"Ray was told {told}, the driver sees {len(gpus.gpus)}", advice)]
    return [Finding("gpu", "present", node, "ok", f"{told} of {len(gpus.gpus)} given to Ray")] if gpus.gpus else []


def _gpu_health(node: str, gpu: Gpu) -> list[Finding]:
    name = f"GPU {gpu.index}"
    findings = []
    if gpu.ecc_uncorrected:
        advice = f"stop what runs there and reset it (`nvidia-smi --gpu-reset -i {gpu.index}`); should they come back, have it exchanged"
        findings.append(Finding("gpu", "errors", node, "fail", f"{name}: {gpu.ecc_uncorrected} uncorrected ECC errors", advice))
    if gpu.rows_failed:
        findings.append(Finding("gpu", "errors", node, "fail", f"{name}: a memory row could not be remapped", "have the GPU exchanged"))
    if gpu.rows_pending:
        advice = f"reset it when the node is idle: `nvidia-smi --gpu-reset -i {gpu.index}`, or reboot"
        findings.append(Finding("gpu", "errors", node, "warn", f"{name}: a memory row waits for its remapping", advice))
    if gpu.slowed_by:
        text = f"{name}: clocks held down by {', '.join(gpu.slowed_by)}" + (f" at {gpu.temperature_c} C" if gpu.temperature_c else "")
        findings.append(Finding("gpu", "slowed", node, "warn", text, "look after cooling and power of the node; it slows down its group"))
    if gpu.pcie and gpu.pcie_most and gpu.pcie.split()[-1] != gpu.pcie_most.split()[-1]:
        advice = "reseat the card or its riser: the width does not follow the load, as the generation does"
        findings.append(Finding("gpu", "slowed", node, "warn", f"{name}: PCIe {gpu.pcie}, it could {gpu.pcie_most}", advice))
    if gpu.used_bytes > BUSY_SHARE * gpu.memory_bytes:
        text = f"{name}: {gpu.used_bytes / GIB:.0f} of {gpu.memory_bytes / GIB:.0f} GiB in use"
        findings.append(
            Finding("gpu", "in use", node, "warn", text, "see whose process it is with `nvidia-smi`, unless it is your own job")
        )
    return findings


def _xid(node: str, gpus: Gpus) -> list[Finding]:
    if gpus.xid:
        advice = "look the number after Xid up in NVIDIA's catalogue; 48, 63, 64, 79, 94, 95 mean hardware: drain the node"
        return [Finding("gpu", "errors", node, "warn", f"kernel log: {gpus.xid[-1]}", advice)]
    return []


def _models(gpus: Gpus) -> str:
    kinds = Counter(f"{gpu.name} {gpu.memory_bytes / GIB:.0f} GiB" for gpu in gpus.gpus)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


def _links(gpus: Gpus) -> str:
    return ", ".join(f"{count} pairs by {way}" for way, count in sorted(gpus.links.items())) or "one GPU"


def check_limits(nodes: Mapping[str, NodeFacts]) -> list[Finding]:
    """Open files, processes, locked memory, shared memory and ports of every node."""
    findings: list[Finding] = []
    for node, facts in nodes.items():
        machine = facts.machine
        files, processes, locked = (machine.limits[name].soft for name in ("nofile", "nproc", "memlock"))
        files_at = _grade(files, FEWEST_FILES, MANY_FILES)
        raise_it = "raise it in /etc/security/limits.conf (or LimitNOFILE= of slurmd, sshd), log in again and bring the cluster up again"
        findings.append(judged("limits", "open files", node, files_at, _limit(files), f"{raise_it}: nofile {4 * MANY_FILES}"))
        findings.append(
            judged("limits", "processes", node, _grade(processes, 0, FEW_PROCESSES), _limit(processes), f"{raise_it}: nproc unlimited")
        )
        rdma: Status = "warn" if machine.hcas and locked != -1 else "ok"
        advice = "RDMA pins memory: set memlock unlimited in /etc/security/limits.conf (LimitMEMLOCK=infinity of slurmd), log in again"
        shown = f"{locked / 2**20:.0f} MiB" if locked != -1 else "unlimited"
        findings.append(judged("limits", "locked memory", node, rdma, shown, advice))
        shm = _grade(machine.shm_free_bytes, LEAST_SHM_BYTES, GOOD_SHM_BYTES)
        text = f"{machine.shm_free_bytes / GIB:,.1f} GiB free of {machine.shm_bytes / GIB:,.1f}"
        advice = "mount -o remount,size=50% /dev/shm (docker run --shm-size=16g; an emptyDir of medium Memory in Kubernetes), or empty it"
        findings.append(judged("limits", "/dev/shm", node, shm, text, advice))
        ports: Status = "ok" if len(machine.free_ports) == machine.ports_tried else "fail"
        advice = "end programs that hold many connections, or widen the range in /proc/sys/net/ipv4/ip_local_port_range"
        text = f"{len(machine.free_ports)} of {machine.ports_tried} tried are free"
        findings.append(judged("limits", "ports", node, ports, text, advice))
    return findings


def check_clocks(skews: Mapping[str, Skew]) -> list[Finding]:
    """Clocks agree with the driver's. What the measurement cannot tell apart from agreement is agreement."""
    advice = "start chronyd or ntpd there (`chronyc tracking`, `timedatectl`): logs of several nodes are ordered by time"
    findings = []
    for node, skew in skews.items():
        least = max(0.0, abs(skew.skew_s) - skew.error_s)
        status: Status = "fail" if least > FAIL_SKEW_S else "warn" if least > WARN_SKEW_S else "ok"
        findings.append(judged("clock", "skew", node, status, f"{skew.skew_s:+.3f} s (+-{skew.error_s:.3f})", advice))
    return findings


def check_paths(nodes: Mapping[str, NodeFacts], driver: Sequence[FoundPath], needed_on_driver: frozenset[str]) -> list[Finding]:
    """Models and files of the configuration are on every node that reads them, and the same."""
    findings = []
    for found in driver:
        has = {node: next(path for path in facts.paths if path.setting == found.setting) for node, facts in nodes.items()}
        shown = found.path or "its model"
        if found.problem:
            advice = "give a path that exists, or download the model where the commands run (HF_HOME on the shared folder)"
            findings.append(Finding("files", found.setting, "driver", "fail", f"{shown} {found.problem}", advice))
            continue
        readers = {} if found.setting in needed_on_driver else has
        bad = {node: path.problem for node, path in readers.items() if path.problem}
        advice = "put it on the shared file system, or copy it to the same path there"
        findings += [Finding("files", found.setting, node, "fail", f"{shown} {problem}", advice) for node, problem in bad.items()]
        odd = [node for node, path in readers.items() if not path.problem and path.digest != found.digest]
        findings += [
            Finding("files", found.setting, node, "fail", f"{shown} has other files or sizes than the driver's", "copy it again")
            for node in odd
        ]
        if not bad and not odd:
            where = "where the commands run, which is enough" if found.setting in needed_on_driver else "everywhere"
            findings.append(Finding("files", found.setting, "", "ok", f"{shown}, {where}"))
    return findings


def _usual(has: Mapping[str, str]) -> str:
    """Return what most have; of equally frequent ones the first node's."""
    return Counter(has.values()).most_common(1)[0][0]


def _equal(area: str, check: str, has: Mapping[str, str], advice: str) -> list[Finding]:
    if not has:
        return []
    usual = _usual(has)
    odd = [Finding(area, check, node, "warn", f"{text}, elsewhere {usual}", advice) for node, text in has.items() if text != usual]
    return odd or [Finding(area, check, "", "ok", usual)]


def _grade(value: int, fewest: int, good: int) -> Status:
    """-1 is no limit."""
    return "ok" if value == -1 or value >= good else "fail" if value < fewest else "warn"


def _limit(value: int) -> str:
    return "unlimited" if value == -1 else f"{value:,}"
