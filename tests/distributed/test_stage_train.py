"""The stage around the trainings: what it prepares, follows, commits and refuses. The ranks are real; Ray is left out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.train_group import GroupError, GroupSpec
from tests.distributed.ranks import train_on_ranks
from tests.tiny import make_tiny_model
from w2sr.artifacts import Manifest, StageDir
from w2sr.config import PipelineConfig
from w2sr.errors import StoppedEarly, UserError
from w2sr.records import Example, Prompt
from w2sr.run import Run
from w2sr.stages import train as stage
from w2sr.tables import write_table
from w2sr.training.data import load_rows
from w2sr.training.prepare import RowsMaker
from w2sr.training.spec import TrainSpec

TEMPLATE_THAT_STRIPS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRACE = "<think>\n{n}+1={m}\n</think>\n{m}"


def make_run(folder: Path, chat_template: str | None = None, **train: Any) -> Run:
    """A run whose prompts and arms are there: 12 rows in `all` (one of them long), 9 in `gold`."""
    sampling = {"max_new_tokens": 8}
    extra = {} if chat_template is None else {"chat_template": chat_template}
    values = {
        "run_dir": str(folder),
        "prompts": {"source": {"kind": "file", "path": "none.jsonl"}, "num_train": 12, "num_selection": 3, "num_test": 1},
        "teachers": [{"name": "t", "model": "none", "sampling": sampling}],
        "student": {"model": str(make_tiny_model(folder / "base", **extra)), "style": {}},
        "curate": {"arms": ["all", "gold"]},
        "train": {"global_batch_size": 8, "micro_batch_size": 2, "max_length": 64, "max_steps": 3, "packing": False, **train},
        "evaluate": {"sampling": sampling},
    }
    run = Run(PipelineConfig.model_validate(values), folder, lambda: nullcontext())
    prompts = [Prompt(f"p{n}", "selection", f"{n}+1", str(n + 1), text(n), "test", "{}") for n in range(5)]
    done(run, "prompts", {"selection": prompts}, Prompt)
    arm = [Example(f"e{n}", f"p{n}", f"{n}+1", text(n), "t", None, None) for n in range(11)]
    long = Example("e11", "p11", "11+1", "x" * 80, "t", None, None)
    done(run, "curate", {"all": [*arm, long], "gold": arm[:9]}, Example)
    return run


def text(n: int) -> str:
    return TRACE.format(n=n, m=n + 1)


def done(run: Run, name: str, tables: dict[str, list[Any]], record: type[Any]) -> None:
    folder = StageDir(run.stage(name), name, {}, {})
    if not folder.is_done():
        folder.begin()
        for table, rows in tables.items():
            write_table(folder.folder / f"{table}.parquet", rows, record)
        folder.finish({}, [folder.folder / f"{table}.parquet" for table in tables])


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Ranks as forked processes in place of a Ray group; returns the names of the students of each group."""
    groups = list[list[str]]()

    def run_group(
        function: Callable[[list[str]], None],
        specs: list[str],
        group: GroupSpec,
        on_poll: Callable[[], None],
        say: Callable[[str], None],
        is_leaving: Callable[[], bool],
    ) -> None:
        assert function is stage.train_each
        assert group.sizes == (2,)
        assert callable(say)
        assert not is_leaving()
        parsed = [TrainSpec.from_json(spec, "test") for spec in specs]
        groups.append([spec.name for spec in parsed])
        on_poll()
        for code, output in train_on_ranks(tmp_path, parsed):
            assert code == 0, output
        on_poll()

    monkeypatch.setattr(stage, "run_group", run_group)
    monkeypatch.setattr(stage, "require", lambda *_: None)
    return groups


def selection_loss(run: Run) -> float:
    """Mean NLL of the selection prompts' traces under the untrained student, row by row in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = run.config.student.model
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = RowsMaker(run, Path(folder)).of_selection()
    assert path is not None
    store = load_rows(path)
    nll, count = 0.0, 0
    for row in map(store.row, range(len(store))):
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        nll -= sum(float(logits[place - 1, row.ids[place]]) for place in range(row.num_prefix, len(row.ids)))
        count += row.num_supervised
    return nll / count


def test_selection_traces_the_student_cannot_read_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path)
    prompt = Prompt("p", "selection", "?", "½", "½", "test", "{}")
    write_table(run.stage("prompts") / "selection.parquet", [prompt], Prompt)
    assert RowsMaker(run, Path(run.config.student.model)).of_selection() is None
    assert "selection/loss is not logged: 1 of 1 rows fail the gate. The first: example p" in caplog.text


def test_every_student_is_trained_committed_and_skipped_the_next_time(
    tmp_path: Path, forked: list[list[str]], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, optimizer={"sane_update_ratio": [1e-9, 1e-8]})
    stage.run(run)
    assert forked == [["all-seed0", "gold-seed0"]]
    assert caplog.text.count("train all-seed0: step 1: model.") == 1  # what a rank says of the learning rate
    manifest = Manifest.load(run.stage("train", "all-seed0"))
    assert manifest.counts["rows"] == manifest.counts["kept"] + manifest.counts["too_long"] + manifest.counts["unwritable"] == 12
    assert (manifest.counts["too_long"], manifest.counts["steps"], manifest.counts["exported_step"]) == (1, 3, 3)
    assert {"model/model.safetensors", "model/chat_template.jinja", "dropped.json"} <= set(manifest.files)
    assert set(manifest.usage) == {"tokens", "device_seconds"}
    folder = run.stage("train", "all-seed0")
    assert json.loads((folder / "dropped.json").read_text())["unwritable"] == []
    assert not run.stage("train", ".rows").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    watched = [(row["step"], row["selection/loss"]) for row in rows if "selection/loss" in row]
    assert [step for step, _ in watched] == [0, 3]
    assert watched[0][1] == pytest.approx(selection_loss(run), rel=1e-5)
    assert "train all-seed0: 3/3 steps" in capsys.readouterr().err
    stage.run(run)
    assert len(forked) == 1


def test_the_manifest_is_the_same_whichever_students_are_trained_before(tmp_path: Path, forked: list[list[str]]) -> None:
    both, one = make_run(tmp_path / "both"), make_run(tmp_path / "one", arms=["gold"])
    stage.run(both)
    stage.run(one)
    assert forked == [["all-seed0", "gold-seed0"], ["gold-seed0"]]
    assert both.digest("train", "gold-seed0") == one.digest("train", "gold-seed0")


def test_a_student_that_was_trained_but_not_committed_is_only_committed(tmp_path: Path, forked: list[list[str]]) -> None:
    run = make_run(tmp_path, arms=["gold"])
    stage.run(run)
    folder = run.stage("train", "gold-seed0")
    before = (folder / "manifest.json").read_text()
    digest = json.loads(before)["digest"]
    (folder / "manifest.json").unlink()
    stage.run(run)
    assert run.digest("train", "gold-seed0") == digest
    assert len(forked) == 1


@pytest.mark.usefixtures("forked")
def test_a_changed_setting_of_a_finished_student_is_refused_by_name(tmp_path: Path) -> None:
    stage.run(make_run(tmp_path, arms=["gold"]))
    with pytest.raises(UserError, match=r"train.learning_rate: 1e-05 -> 0.5"):
        stage.run(make_run(tmp_path, arms=["gold"], learning_rate=0.5))


def test_a_template_that_strips_the_reasoning_stops_the_stage_before_any_rank_starts(tmp_path: Path, forked: list[list[str]]) -> None:
    run = make_run(tmp_path, chat_template=TEMPLATE_THAT_STRIPS)
    with pytest.raises(UserError, match=r"the chat template of .*base alters the answer of example e0"):
        stage.run(run)
    assert forked == []
    assert not run.stage("train", "all-seed0").exists()


def test_after_a_mistake_in_the_first_steps_the_corrected_setting_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GroupError("the loss of step 1 is not finite")

    monkeypatch.setattr(stage, "run_group", refuse)
    for learning_rate in (9.0, 1.0):
        with pytest.raises(GroupError, match="not finite"):
            stage.run(make_run(tmp_path, arms=["gold"], learning_rate=learning_rate))


def test_more_ranks_than_processors_are_refused_before_anything_is_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_ranks=4, cpus_per_rank=1000)
    with pytest.raises(ClusterError, match=r"train.num_ranks=4 with train.cpus_per_rank=1000 needs 4000 CPUs"):
        stage.run(run)
    assert not (run.stage("train", "all-seed0") / "stage.json").exists()
    elastic = make_run(tmp_path, num_ranks=4, min_ranks=2, cpus_per_rank=1000)
    with pytest.raises(ClusterError, match=r"train.min_ranks=2 with train.cpus_per_rank=1000 needs 2000 CPUs"):
        stage.run(elastic)


def test_a_mixture_is_trained_like_an_arm_and_known_by_its_parts(tmp_path: Path, forked: list[list[str]]) -> None:
    blend = {"name": "blend", "parts": {"all": 1, "gold": 3}}
    run = make_run(tmp_path, arms=[], mixtures=[blend])
    stage.run(run)
    assert forked == [["blend-seed0"]]
    manifest = Manifest.load(run.stage("train", "blend-seed0"))
    assert (manifest.counts["rows"], manifest.counts["kept"], manifest.counts["too_long"]) == (21, 20, 1)
    assert manifest.config["mixture"] == {"all": 0.25, "gold": 0.75}
    with pytest.raises(UserError, match=r"Changed: mixture.all: 0.25 -> 0.5"):
        stage.run(make_run(tmp_path, arms=[], mixtures=[{**blend, "parts": {"all": 1, "gold": 1}}]))


def test_rows_are_made_once_for_all_seeds_and_again_when_they_are_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, rows_cache=str(tmp_path / "cache"))
    maker = RowsMaker(run, Path(run.config.student.model))
    path, (facts,) = maker.of_arm("all")
    assert path.parent == tmp_path / "cache"
    assert (facts.num_rows, facts.too_long) == (11, ("e11",))
    written = path.stat().st_mtime_ns
    assert maker.of_arm("all") == (path, (facts,))
    other = make_run(tmp_path / "other", rows_cache=str(tmp_path / "cache"))
    assert RowsMaker(other, Path(other.config.student.model)).of_arm("all")[0] == path
    assert path.stat().st_mtime_ns == written
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert maker.of_arm("all") == (path, (facts,))
    assert path.read_bytes() != bytes(content)
    assert "is damaged; its rows are made again" in caplog.text


def test_too_few_rows_stop_the_stage_before_any_rank_starts(tmp_path: Path, forked: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"9 rows are fewer than train.global_batch_size=12"):
        stage.run(make_run(tmp_path, global_batch_size=12, arms=["gold"]))
    assert forked == []


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"selection": {"every": 1, "patience": 2}}, r"train.selection.patience and train.selection.export=best choose by the loss on"),
        ({"warmup_steps": 3}, r"train.warmup_steps=3, but the training has 3 steps"),
    ],
)
def test_a_schedule_and_a_selection_that_cannot_be_stop_the_stage_before_any_rank_starts(
    tmp_path: Path, forked: list[list[str]], train: dict[str, Any], message: str
) -> None:
    run = make_run(tmp_path, **train)
    write_table(run.stage("prompts") / "selection.parquet", [Prompt("p", "selection", "1+1", "2", None, "test", "{}")], Prompt)
    with pytest.raises(UserError, match=message):
        stage.run(run)
    assert forked == []


def test_the_last_whole_row_of_growing_metrics_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert stage.last_row(path) == {}
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "selection/loss": 3.0}\n{"step": 2, "lo')
    assert stage.last_row(path) == {"step": 1, "loss": 2.0}


class Ended(BaseException):
    """What SIGTERM does to the command line."""


def test_sigterm_asks_the_ranks_through_a_file_and_takes_effect_when_they_have_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise Ended

    def run_group(*arguments: Any) -> None:
        on_poll, stopping = arguments[3], arguments[5]
        on_poll()
        assert not stop.exists()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
        on_poll()
        assert stop.exists()  # the ranks would save and return

    run = make_run(tmp_path, arms=["gold"])
    stop = run.stage("train", "gold-seed0") / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()  # of an attempt that was killed
    monkeypatch.setattr(stage, "run_group", run_group)
    monkeypatch.setattr(stage, "require", lambda *_: None)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            stage.run(run)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ranks_that_stopped_in_time_end_the_stage_as_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "run_group", lambda *_: None)
    monkeypatch.setattr(stage, "require", lambda *_: None)
    with pytest.raises(StoppedEarly, match=r"train: stopped with 2 of 2 students to do; run the same command again to go on"):
        stage.run(make_run(tmp_path))


def test_what_the_ranks_watchdogs_say_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, arms=["gold"])
    said = run.stage("train", "gold-seed0") / "stalls" / "said.txt"

    def run_group(*arguments: Any) -> None:
        said.parent.mkdir()
        for text in ("step 4 takes 60 s so far\n", "step 4 went on after 80 s\n"):
            with open(said, "a") as file:
                file.write(text)
            arguments[3]()
            arguments[3]()

    monkeypatch.setattr(stage, "run_group", run_group)
    monkeypatch.setattr(stage, "require", lambda *_: None)
    with pytest.raises(StoppedEarly):
        stage.run(run)
    lines = ["train gold-seed0: step 4 takes 60 s so far", "train gold-seed0: step 4 went on after 80 s"]
    assert [record.getMessage() for record in caplog.records if "step 4" in record.getMessage()] == lines
