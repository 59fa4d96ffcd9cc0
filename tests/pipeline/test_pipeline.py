"""The whole pipeline on the real engines: artifacts, skipping, refusals, and kills at every stage."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import Command, small_run, wait_for
from tests.tiny import make_tiny_model
from w2sr.records import Example, Prompt, Trace, Verification
from w2sr.status import run_status
from w2sr.tables import num_rows, read_table


def digests(folder: Path) -> dict[str, str]:
    """The digest of every finished stage except the report, which tells times."""
    found = {str(path.parent.relative_to(folder)): json.loads(path.read_text())["digest"] for path in folder.rglob("manifest.json")}
    found.pop("report", None)
    return found


def test_a_run_leaves_every_artifact(calm_run: Path) -> None:
    assert all(stage.state == "done" for stage in run_status(calm_run))
    for name in ("config.yaml", "report.md", "report.html", "report.json", "curate/funnel.json", "curate/rejects.parquet"):
        assert (calm_run / name).stat().st_size > 0, name
    for student in ("all-seed0", "gold-seed0"):
        assert (calm_run / "train" / student / "model" / "model.safetensors").exists()
        assert list((calm_run / "train" / student).glob("events.out.tfevents*"))
    assert list((calm_run / "generate" / "weak").glob("events.out.tfevents*"))
    assert (calm_run / "logs" / "latest" / "w2sr.log").exists()


def test_splits_are_disjoint_and_counts_conserve(calm_run: Path) -> None:
    splits = [read_table(calm_run / "prompts" / f"{name}.parquet", Prompt) for name in ("train", "selection", "test")]
    assert [len(split) for split in splits] == [32, 4, 12]
    assert len({prompt.question for split in splits for prompt in split}) == 48
    traces = read_table(calm_run / "generate" / "weak", Trace)
    verdicts = read_table(calm_run / "verify" / "weak", Verification)
    assert len(traces) == 32 * 2
    assert [trace.trace_id for trace in traces] == [verdict.trace_id for verdict in verdicts]
    arms = [read_table(calm_run / "curate" / f"{arm}.parquet", Example) for arm in ("all", "gold")]
    assert len(arms[0]) == len(arms[1])


def test_every_model_answered_every_set(calm_run: Path) -> None:
    labels = {"base", "base-cot", "teacher-weak", "all-seed0", "gold-seed0"}
    for name, problems in (("test", 12), ("longer", 9)):
        assert {path.name for path in (calm_run / "evaluate" / name).iterdir()} == labels
        for label in labels:
            assert len(read_table(calm_run / "evaluate" / name / label, Trace)) == problems * 2
    assert json.loads((calm_run / "curate" / "contamination.json").read_text())["sets"]["longer"]["questions"] == 9


def test_no_secret_is_in_the_run_folder(calm_run: Path) -> None:
    for path in calm_run.rglob("*"):
        if path.is_file():
            assert b"RAY_AUTH_TOKEN" not in path.read_bytes(), path


def test_running_again_skips_everything(calm_run: Path) -> None:
    before = digests(calm_run)
    began = time.monotonic()
    code, output = small_run(calm_run).run()
    assert code == 0, output
    assert digests(calm_run) == before
    assert time.monotonic() - began < 60, "nothing was left to do"


def test_a_changed_config_is_refused_and_the_old_one_kept(calm_run: Path) -> None:
    resolved = (calm_run / "config.yaml").read_text()
    code, output = small_run(calm_run, "train.learning_rate=0.5").run()
    assert code == 2
    assert "learning_rate: 0.0003 -> 0.5" in output
    assert "Traceback" not in output
    assert (calm_run / "config.yaml").read_text() == resolved


def committed(folder: Path) -> int:
    """Return how many rows are safe in a folder that may be written at this moment."""
    rows = 0
    for path in [*folder.glob("shard-*.parquet"), *folder.glob("part-*.parquet")]:
        with contextlib.suppress(FileNotFoundError):
            rows += num_rows(path)
    return rows


def test_killed_at_any_stage_and_run_again_gives_the_same_artifacts(calm_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments = [
        (lambda: committed(folder / "generate" / "weak") >= 8, signal.SIGKILL, -9),
        (lambda: committed(folder / "generate" / "weak") >= 40, signal.SIGTERM, 143),
        (lambda: any(folder.glob("train/all-seed0/checkpoints/*/complete.json")), signal.SIGKILL, -9),
        (lambda: (folder / "train" / "gold-seed0" / "stage.json").exists(), signal.SIGTERM, 143),
        (lambda: committed(folder / "evaluate" / "longer" / "base-cot") > 0, signal.SIGINT, 130),
    ]
    for has_come, kind, expected in moments:
        command = small_run(folder)
        process = command.start()
        wait_for(has_come, process)
        process.send_signal(kind)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == expected, output
        if kind == signal.SIGKILL:
            command.end_orphans()
        else:
            assert "run the same command again to go on" in output
            assert "Traceback" not in output
        command.wait_until_gone()
    code, output = small_run(folder).run()
    assert code == 0, output
    assert digests(folder) == digests(calm_run)


def test_evaluation_beside_other_stages_gives_the_same_artifacts(calm_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    halves = ["overlap=true", "train.cpus_per_rank=0.5", "teachers.0.pool.cpus_per_replica=0.5", "evaluate.pool.cpus_per_replica=0.5"]
    command = small_run(folder, *halves)
    process = command.start()
    wait_for(lambda: committed(folder / "evaluate" / "test" / "base") > 0, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    command.wait_until_gone()
    code, output = small_run(folder, *halves).run()
    assert code == 0, output
    assert "overlap: evaluating beside" in output
    assert digests(folder) == digests(calm_run)
    evaluated, trained = (folder / path / "manifest.json" for path in ("evaluate/test/base", "train/gold-seed0"))
    assert evaluated.stat().st_mtime < trained.stat().st_mtime


def test_a_rescue_asks_until_a_trace_is_right_and_mixes_with_recorded_traces(tmp_path: Path, calm_run: Path) -> None:
    traces = calm_run / "generate" / "weak"
    old = f"{{name: old, engine: {{kind: recorded, path: {traces}, match: prompt_id, fields: {{prompt_id: prompt_id}}}}, "
    rescue = "{name: weak, model: lab:teacher, style: {system: Think step by step.}, until_correct: true, samples_per_prompt: 4, "
    teachers = f"teachers=[{rescue} engine: {{batch_size: 8}}, sampling: {{max_new_tokens: 64}}}}, {old} samples_per_prompt: 2}}]"
    config = tmp_path / "mixed.yaml"
    config.write_text((calm_run / "config.yaml").read_text())
    for command in ("prompts", "generate", "verify"):
        code, output = Command([command, str(config), f"run_dir={tmp_path / 'run'}", teachers]).run()
        assert code == 0, output
    verdicts: dict[str, list[str]] = {}
    for row in read_table(tmp_path / "run" / "verify" / "weak", Verification):
        verdicts.setdefault(row.prompt_id, []).append(row.verdict)
    assert len(verdicts) == 32
    for of_prompt in verdicts.values():
        assert "correct" not in of_prompt[:-1], "nothing was asked after the right one"
        assert of_prompt[-1] == "correct" or len(of_prompt) == 4
    assert {len(of_prompt) for of_prompt in verdicts.values()} > {1}
    recorded = {(trace.prompt_id, trace.text) for trace in read_table(tmp_path / "run" / "generate" / "old", Trace)}
    assert recorded == {(trace.prompt_id, trace.text) for trace in read_table(calm_run / "generate" / "weak", Trace)}


def test_a_second_command_on_the_same_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = small_run(folder, command="generate")
    code, output = small_run(folder, command="prompts").run()
    assert code == 0, output
    process = first.start()
    wait_for(lambda: (folder / "generate" / "weak" / "stage.json").exists(), process)
    code, output = small_run(folder, command="generate").run()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    first.wait_until_gone()
    assert code == 2
    assert f"another w2sr command (process {process.pid} on {socket.gethostname()}) is working in {folder}" in output


def test_prompts_from_a_file_take_the_same_way(tmp_path: Path, calm_run: Path) -> None:
    prompts = read_table(calm_run / "prompts" / "train.parquet", Prompt)
    rows = [{"problem": p.question, "solution": p.reference_trace, "uid": str(i)} for i, p in enumerate(prompts)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = "{question: problem, answer: solution, reference_trace: solution, id: uid}"
    source = f"{{kind: file, path: {tmp_path / 'sums.jsonl'}, fields: {fields}}}"
    few = [f"prompts.source={source}", "prompts.num_train=20", "prompts.num_test=8", "verify.grader=math"]
    for command in ("prompts", "generate", "verify", "curate"):
        code, output = small_run(tmp_path / "run", *few, command=command).run()
        assert code == 0, output
    gold = read_table(tmp_path / "run" / "curate" / "gold.parquet", Example)
    assert all(example.text.startswith("So ") for example in gold)


def test_the_gsm8k_config_runs_on_other_models_zero_3_and_packed(tmp_path: Path) -> None:
    rows = [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a in range(4, 9) for b in range(2, 8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = make_tiny_model(tmp_path / "model")
    source = f"{{kind: file, path: {tmp_path / 'sums.jsonl'}, fields: {{reference_trace: answer}}}}"
    small = ["prompts.num_train=16", "prompts.num_selection=4", "prompts.num_test=6", f"prompts.source={source}"]
    here = ["teachers.0.pool.gpus_per_replica=0", "evaluate.pool.gpus_per_replica=0", "train.use_gpu=false", "train.precision=fp32"]
    models = [f"teachers.0.model={model}", f"student.model={model}", "student.few_shot.shots=1", "teachers.0.sampling.max_new_tokens=16"]
    train = ["train.max_length=128", "train.global_batch_tokens=256", "train.micro_batch_tokens=128", "curate.arms=[gold]"]
    hard = {"problem": "What is $2^3$?", "answer": "8", "unique_id": "a/1", "subject": "Algebra", "level": 1}
    (tmp_path / "hard.jsonl").write_text(json.dumps(hard) + "\n")
    evaluate = ["evaluate.sampling.max_new_tokens=16", "evaluate.samples_per_prompt=2", "evaluate.pass_k=[1]"]
    evaluate += [f"evaluate.benchmarks=[{{name: math500, path: {tmp_path / 'hard.jsonl'}, samples_per_prompt: 2, pass_k: [1]}}]"]
    untrained = ["generate.gate.min_format_valid=0", "generate.gate.max_loops=1"]
    command = Command(["run", "configs/gsm8k.yaml", f"run_dir={tmp_path / 'run'}", *small, *here, *models, *train, *evaluate, *untrained])
    code, output = command.run()
    assert code == 0, output
    losses = [json.loads(line) for line in (tmp_path / "run" / "train" / "gold-seed0" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in losses if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 3, "three epochs, of more than a step each"
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "evaluate" / "math500" / "few-shot" / "verdicts.parquet").exists()


@pytest.mark.parametrize("stage", ["generate", "verify", "curate", "train", "evaluate", "analyse", "report"])
def test_a_stage_without_the_one_before_names_it(tmp_path: Path, stage: str) -> None:
    code, output = Command([stage, "configs/quickstart.yaml", f"run_dir={tmp_path / 'run'}"]).run()
    assert code == 2, output
    assert "is not finished" in output or "not trained" in output
    assert "Traceback" not in output
