"""The sbatch script: golden files, and what cannot be told to Slurm."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster_file import SlurmCluster
from launcher.slurm_script import Places, array_script, hold_script, job_script, limit_s
from w2sr.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
PLACES = Places(Path("/shared/me/.w2sr"), Path("/shared/me/w2sr"))
FOLDER = Path("/shared/runs/study/jobs/study-1122-061500-ab12")


def cluster(**values: Any) -> SlurmCluster:
    return SlurmCluster(kind="slurm", **{"name": "campus", "python": "/shared/me/venv/bin/python", **values})


EVERYTHING = cluster(
    nodes=4,
    cpus_per_node=96,
    gpus_per_node=8,
    mem="900G",
    time_limit="1-12:00:00",
    partition="gpu,long",
    account="nlp",
    qos="high",
    gres="gpu:h100:8",
    constraint="ib&nvlink",
    reservation="maintenance day",
    sbatch=["--exclusive", "--mail-type=END"],
    setup=["source /etc/profile.d/modules.sh", "module load cuda/12.8"],
    requeue=False,
    grace_s=300,
    env={"HF_HOME": "/shared/it's here/hf"},
    network={"interface": "ib0", "infiniband": "mlx5_0,mlx5_1", "nccl": {"DEBUG": "WARN"}},
)
SCRIPTS = {
    "job": lambda: job_script(cluster(), "w2sr-study-1122-061500-ab12", FOLDER, PLACES),
    "job-everything": lambda: job_script(EVERYTHING, "w2sr-study-1122-061500-ab12", Path("/shared/100% mine/a b"), PLACES),
    "array": lambda: array_script(cluster(nodes=2, gpus_per_node=8), "w2sr-campus", Path("/shared/me/.w2sr/arrays/0a1b2c3d"), 3, PLACES),
    "hold": lambda: hold_script(cluster(nodes=2, time_limit="4:00:00"), Path("/shared/me/.w2sr/clusters/campus"), PLACES),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.sbatch"
    text = SCRIPTS[name]()
    if os.environ.get("W2SR_ACCEPT"):
        path.write_text(text)
    assert text == path.read_text(), "to accept the change: W2SR_ACCEPT=1 python -m pytest tests/unit/test_slurm_script.py -k golden"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_that_bash_understands(name: str) -> None:
    assert subprocess.run(["bash", "-n"], input=SCRIPTS[name](), text=True, capture_output=True, check=True).stderr == ""


def as_slurm_reads(script: str) -> dict[str, str]:
    """Return the options of a script, read as sbatch does: double quotes, and within them backslashes."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH --") and "=" in line:
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            quoted = re.fullmatch(r'"(.*)"', value)
            found[key] = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
    return found


@given(st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1))
def test_any_printable_value_reaches_slurm_as_it_was_given(value: str) -> None:
    script = job_script(cluster(account=value, env={"WHERE": value}), "name", FOLDER, PLACES)
    assert as_slurm_reads(script)["account"] == value
    exports = [line for line in script.splitlines() if line.startswith("export WHERE=")]
    assert shlex.split(exports[0]) == ["export", f"WHERE={value}"]


@pytest.mark.parametrize("value", ["", "a\nb", "a\x00b", "\x1b[2J"])
def test_a_value_that_would_end_its_line_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"account=.* cannot be told to Slurm; give a value without line breaks"):
        job_script(cluster(account=value), "name", FOLDER, PLACES)


@pytest.mark.parametrize("option", ["exclusive", "--exclusive\nrm -rf /", ""])
def test_a_further_option_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"is not an option of sbatch; give for example --exclusive"):
        job_script(cluster(sbatch=[option]), "name", FOLDER, PLACES)


@pytest.mark.parametrize("key", ["A B", "A;rm", "1A", "Ä"])
def test_a_variable_that_no_shell_has_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"env: .* is not the name of a variable"):
        job_script(cluster(env={key: "1"}), "name", FOLDER, PLACES)


def test_a_folder_whose_log_slurm_could_not_open_is_refused() -> None:
    with pytest.raises(UserError, match=r"has a backslash in its name"):
        job_script(cluster(), "name", Path("/shared/a\\b"), PLACES)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:30", 7230), ("1-0", 86400), ("1-2:03", 93780), ("1-2:03:04", 93784), ("UNLIMITED", None)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: float | None) -> None:
    assert limit_s(text) == seconds


@pytest.mark.parametrize("text", ["", "8h", "1:2:3:4", "-5", "1-"])
def test_another_time_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a time of Slurm; give minutes, H:M:S or D-H:M:S, for example 8:00:00"):
        limit_s(text)


def test_a_time_limit_that_leaves_no_time_to_work_is_refused() -> None:
    with pytest.raises(UserError, match=r"time_limit=5 \(300 s\) leaves no time to work, as work stops 180 s before it .* at least 360 s"):
        job_script(cluster(time_limit="5"), "name", FOLDER, PLACES)
    job_script(cluster(time_limit="9"), "name", FOLDER, PLACES)
    with pytest.raises(UserError, match=r"as work stops 420 s before it \(grace_s=180\); give at least 600 s"):
        hold_script(cluster(time_limit="9"), FOLDER, PLACES)
