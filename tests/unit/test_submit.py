"""What `w2sr submit` hands in and what it refuses. The backend is a fake; all files are real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.home import known_jobs, load_job
from launcher.jobs import jobs_of
from tests.job_fakes import FakeBackend, lab
from w2sr.config import load_config


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return lab(tmp_path, monkeypatch)


@pytest.mark.usefixtures("fake")
def test_submit_writes_the_job_and_says_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An override may stand behind an option.
    assert main(["submit", str(tmp_path / "config.yaml"), "seed=1", "--cluster", "lab", "train.max_steps=9"]) == 0
    (job,) = known_jobs()
    assert (job.cluster, job.backend, job.backend_id, job.stages) == ("lab", "ray", "number-1", ())
    assert job.cwd == str(Path.cwd())
    assert (load_config(job.folder / "config.yaml").seed, load_config(job.folder / "config.yaml").train.max_steps) == (1, 9)
    printed = capsys.readouterr()
    assert printed.out.strip() == f"job {job.id} on cluster lab, in {tmp_path / 'run'}"
    assert all(f"w2sr {verb} {job.id}" in printed.err for verb in ("logs", "cancel", "resume"))


@pytest.mark.usefixtures("fake")
def test_a_relative_run_folder_is_made_absolute_and_the_clusters_address_is_left_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "config.yaml", "run_dir=here", "cluster.address=10.0.0.1:1", "--cluster", "lab", "--stage", "train"]) == 0
    (job,) = jobs_of(tmp_path / "here")
    config = load_config(job.folder / "config.yaml")
    assert config.run_dir == str(tmp_path / "here")
    assert config.cluster.address is None
    assert job.stages == ("train",)


def test_what_the_backend_refuses_leaves_no_job(fake: FakeBackend, tmp_path: Path) -> None:
    fake.refuses = True
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab"]) == 2
    assert jobs_of(tmp_path / "run") == []
    assert known_jobs() == []
    assert list((tmp_path / "home" / "jobs").iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_what_the_backend_took_before_it_refused_stays_and_is_named(
    fake: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.room = 1
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab", "--array", "seed=0,1,2"]) == 2
    (job,) = known_jobs()
    assert (job.backend_id, load_job(job.folder)) == ("number-1", job)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["seed=0"]
    assert f"1 of 3 jobs were handed in and go on: {job.id}; see `w2sr jobs`" in capsys.readouterr().err


def test_a_cluster_that_is_down_takes_no_job(fake: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"kind": "local"}))
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", str(tmp_path / "other.yaml")]) == 2
    assert "bring it up with `w2sr cluster up other`" in capsys.readouterr().err
    assert fake.states == {}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "trian"], "did you mean 'train'"),
        (["--array", "seed"], "not of the form key=a,b,c"),
        (["--array", "seed=1,,2"], "not of the form key=a,b,c"),
        (["--array", "seed=0,1,0"], "names '0' more than once"),
        (["--array", "seed=1,2", "--follow"], "--follow follows one job"),
        (["train.max_stepz=3"], "max_stepz"),
        (["student.model=/nowhere"], "there is no such folder"),
        (["run_dir=/proc/none"], "cannot write there"),
    ],
)
def test_mistakes_are_refused_before_anything_is_submitted(
    fake: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert fake.states == {}


@pytest.mark.usefixtures("fake")
def test_where_the_models_are_elsewhere_the_message_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "far.yaml").write_text(yaml.safe_dump({"kind": "ray", "address": "10.0.0.1:6379"}))
    submit_it = ["submit", str(tmp_path / "config.yaml"), "student.model=/nowhere", "--cluster", str(tmp_path / "far.yaml")]
    assert main(submit_it) == 2
    assert "--no-preflight if only the nodes have it" in capsys.readouterr().err
    assert main([*submit_it, "--no-preflight", "--dry-run"]) == 0


@pytest.mark.usefixtures("fake")
def test_an_array_gives_each_value_a_job_and_a_folder(tmp_path: Path) -> None:
    array = ["--array", "seed=0,1", "--array", "train.max_steps=3,4"]
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab", *array]) == 0
    jobs = known_jobs()
    assert sorted(Path(job.run_dir).name for job in jobs) == [f"seed={seed},train.max_steps={steps}" for seed in (0, 1) for steps in (3, 4)]
    configs = [load_config(job.folder / "config.yaml") for job in jobs]
    assert {(config.seed, config.train.max_steps) for config in configs} == {(0, 3), (0, 4), (1, 3), (1, 4)}


@pytest.mark.parametrize(("drain_s", "said"), [(60, False), (61, True)])
def test_a_grace_that_is_too_short_for_the_driver_is_told(
    fake: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drain_s: int, said: bool
) -> None:
    monkeypatch.setitem(sys.modules, "launcher.backends.slurm", fake)  # type: ignore[arg-type]
    (tmp_path / "campus.yaml").write_text(yaml.safe_dump({"kind": "slurm", "grace_s": 120}))
    arguments = ["submit", str(tmp_path / "config.yaml"), f"generate.drain_timeout_s={drain_s}", "--cluster", str(tmp_path / "campus.yaml")]
    assert main([*arguments, "--no-preflight"]) == 0
    assert ("grace_s=120 is short" in (err := capsys.readouterr().err)) is said
    assert ("Give grace_s: 161 in the CLUSTER.yaml" in err) is said


@pytest.mark.usefixtures("fake")
def test_a_dry_run_submits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab", "--dry-run"]) == 0
    assert "would run it" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("fake")
def test_a_run_folder_in_which_a_command_works_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab"]) == 2
    assert "a w2sr command (process unknown) is working in" in capsys.readouterr().err
