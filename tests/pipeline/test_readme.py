"""The README's commands are the product's: each parses, names files that exist, and the quick ones are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.cli import build_parser
from launcher.cluster_file import load_cluster_file
from tests.pipeline.conftest import ROOT, Command
from w2sr.config import load_config

README = (ROOT / "README.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]
W2SR = [command[1:] for command in COMMANDS if command[0] == "w2sr"]


@pytest.mark.parametrize("arguments", W2SR, ids=lambda arguments: " ".join(arguments)[:60])
def test_every_w2sr_command_parses_and_its_config_is_valid(arguments: list[str]) -> None:
    parsed = build_parser().parse_args(arguments)
    if getattr(parsed, "config", None) and parsed.config.suffix == ".yaml":  # `report` takes runs, too
        gpus = getattr(parsed, "gpus", None)
        load_config(ROOT / parsed.config, [*parsed.overrides, *([f"train.num_ranks={gpus}", "train.use_gpu=true"] if gpus else [])])


@pytest.mark.parametrize("arguments", [a for a in W2SR if a[0] == "config"], ids=lambda arguments: " ".join(arguments)[:60])
def test_commands_that_only_look_are_run(arguments: list[str]) -> None:
    code, output = Command(arguments).run()
    assert code == 0, output
    assert output


def test_make_targets_of_the_readme_exist() -> None:
    targets = {command[1] for command in COMMANDS if command[0] == "make"}
    assert {"quickstart", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:tests|configs|docs|benchmarks)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_the_sections_of_own_prompts_clusters_and_training_are_valid(tmp_path: Path) -> None:
    own, measured, cluster, training = re.findall(r"```yaml\n(.*?)```", README, re.S)
    values = yaml.safe_load((ROOT / "configs" / "gsm8k.yaml").read_text())
    given = yaml.safe_load(own)
    sizes = {"num_train": 1, "num_test": 1}
    values |= {"prompts": given["prompts"] | sizes, "teachers": given["teachers"], "student": given["student"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    load_config(path)
    for key, section in yaml.safe_load(measured).items():
        values[key] = values.get(key, {}) | section
    path.write_text(yaml.safe_dump(values))
    load_config(path)
    values["train"] = {"epochs": 3, "use_gpu": True} | yaml.safe_load(training)["train"]
    path.write_text(yaml.safe_dump(values))
    assert load_config(path).student_arms[-1] == "blend"
    path.write_text(cluster)
    assert load_cluster_file(path).kind == "ssh"


def test_the_traces_load_as_a_dataset_as_the_readme_says(calm_run: Path) -> None:
    (call,) = re.findall(r"`(load_dataset\(.*?\))`", README)
    code = f"from datasets import load_dataset\nprint({call.replace('runs/quickstart', str(calm_run))}['train'].num_rows)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "64"


def test_status_shows_a_run_as_the_readme_says(calm_run: Path) -> None:
    code, output = Command(["status", str(calm_run)]).run()
    assert code == 0
    assert f"complete: {calm_run / 'report.html'}" in output


def test_the_readme_is_under_200_lines() -> None:
    assert README.count("\n") < 200
