"""What a run cost: by stage and by student, with and without the teachers, in money where there is a price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report_fake import config_of, fake_run
from tests.unit.trace_fake import add_training
from w2sr.config import dump_config, load_config
from w2sr.errors import UserError
from w2sr.records import Trace
from w2sr.reporting.compare import compare
from w2sr.reporting.contents import parts
from w2sr.reporting.cost_tables import money, stages_table, students_table
from w2sr.reporting.costs import Costs, Usage, costs
from w2sr.reporting.report import collect
from w2sr.run import Run
from w2sr.stages import report
from w2sr.tables import read_table, write_table

SMALL = {"prompts": {"num_test": 20}}
ENDPOINT = {
    "name": "small",
    "model": "m",
    "engine": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
    "sampling": {"max_new_tokens": 64},
}
VLLM = {
    "name": "small",
    "model": "lab:teacher",
    "engine": {"kind": "vllm", "tensor_parallel_size": 4},
    "pool": {"gpus_per_replica": 4},
    "sampling": {"max_new_tokens": 64},
}


def cost_of(run: Run) -> Costs:
    return costs(run, compare(run))


def student(found: Costs, key: str) -> Any:
    return next(cost for cost in found.students if cost.key == key)


def test_stages_add_up_their_units_and_a_student_costs_the_mean_of_its_seeds(tmp_path: Path) -> None:
    run = fake_run(tmp_path, **SMALL)
    found = cost_of(run)
    stages = {cost.stage: cost for cost in found.stages}
    assert list(stages) == ["prompts", "generate", "verify", "curate", "train", "evaluate"]
    assert stages["train"].units == 12
    assert stages["train"].usage == Usage(108000, 600.0, None, "")
    assert stages["verify"].usage == Usage()
    one = student(found, "all")
    assert (one.students, one.training) == (3, Usage(9000, 50.0, None, ""))
    assert (one.traces.device_seconds, one.whole.device_seconds) == (12.5, 62.5)
    assert student(found, "gold").teachers == []
    assert student(found, "gold").whole.device_seconds == 50.0
    row = compare(run).row("all")
    assert row is not None
    assert one.points == pytest.approx(100 * row.versus["base"].value)
    cells = {line[0].text: [cell.text for cell in line] for line in students_table(found).rows}
    assert float(cells["W2SR"][7]) == pytest.approx(62.5 / one.points, rel=0.01)
    assert cells["Gold SFT"][3] == "–"


def test_a_device_hour_costs_what_the_configuration_says(tmp_path: Path) -> None:
    run = fake_run(tmp_path, report={"prices": {"currency": "EUR", "device_hour": 3.6}}, **SMALL)
    found = cost_of(run)
    stages = {cost.stage: cost.usage for cost in found.stages}
    assert stages["train"].money == pytest.approx(0.6)
    assert stages["generate"].money == pytest.approx(0.0125)
    assert student(found, "all").whole.money == pytest.approx(0.0625)
    rows = {line[0].text: line[-1].text for line in stages_table(found).rows}
    total = 0.6 + 0.0125 + 3.6 * stages["evaluate"].device_seconds / 3600  # type: ignore[operator]
    assert rows["all"] == money(total, "EUR")
    assert rows["all without the teachers' traces"] == money(total - 0.0125, "EUR")
    assert rows["curate"] == "–"


def test_prices_by_stage_say_which_stage_has_none(tmp_path: Path) -> None:
    run = fake_run(tmp_path, report={"prices": {"device_hour": {"train": 36.0}}}, **SMALL)
    found = cost_of(run)
    stages = {cost.stage: cost.usage for cost in found.stages}
    assert stages["train"].money == pytest.approx(6.0)
    assert stages["evaluate"].money is None
    assert "a device-hour of evaluate has no price (report.prices.device_hour)" in stages_table(found).notes[-1]


def test_a_replica_over_several_gpus_makes_several_device_seconds(tmp_path: Path) -> None:
    run = fake_run(tmp_path, teachers=[VLLM], **SMALL)
    stages = {cost.stage: cost.usage for cost in cost_of(run).stages}
    assert stages["generate"].device_seconds == 4 * 12.5
    assert stages["train"].device_seconds == 600.0


def test_an_endpoint_is_paid_by_the_token_and_not_by_the_hour(tmp_path: Path) -> None:
    prices = {"device_hour": 3.6, "endpoints": {"small": {"input": 2.0, "output": 10.0}}}
    run = fake_run(tmp_path, teachers=[ENDPOINT], report={"prices": prices}, **SMALL)
    add_training(run)
    found = {cost.stage: cost.usage for cost in cost_of(run).stages}
    assert found["generate"].money == pytest.approx(90 * (9 * 2.0 + 30 * 10.0) / 1e6)
    assert found["generate"].device_seconds is None
    asked = read_table(run.stage("evaluate", "test", "teacher-small"), Trace)
    expected = sum(trace.num_prompt_tokens * 2.0 + trace.num_tokens * 10.0 for trace in asked) / 1e6
    others = sum(usage.device_seconds for stage, usage in found.items() if stage == "evaluate" and usage.device_seconds)
    assert found["evaluate"].money == pytest.approx(expected + others / 3600 * 3.6)


def test_what_is_not_known_of_traces_made_elsewhere_is_said(tmp_path: Path) -> None:
    teacher = {"name": "small", "engine": {"kind": "recorded", "path": "traces.jsonl"}}
    run = fake_run(tmp_path, teachers=[teacher], report={"prices": {"device_hour": 1.0}}, **SMALL)
    found = cost_of(run)
    [note] = [note for note in stages_table(found).notes if note.startswith("Incomplete")]
    assert "small ran elsewhere, its device time is not known here, and it has no price (report.prices.endpoints.small)" in note
    assert any(note.startswith("Incomplete: small ran elsewhere") for note in students_table(found).notes)
    assert student(found, "gold").whole.gap == ""

    priced = fake_run(tmp_path / "b", teachers=[teacher], report={"prices": {"endpoints": {"small": {"output": 1.0}}}}, **SMALL)
    add_training(priced)
    rows = read_table(priced.stage("generate", "small"), Trace)
    silent = [Trace(**{name: getattr(row, name) for name in Trace.__slots__} | {"num_tokens": 0}) for row in rows]  # type: ignore[arg-type]
    write_table(priced.stage("generate", "small") / "part-00000.parquet", [*rows[:80], *silent[80:]], Trace)
    usage = next(cost.usage for cost in cost_of(priced).stages if cost.stage == "generate")
    assert usage.gap == "10 traces of small come without a count of tokens"
    assert usage.money == pytest.approx(80 * 30 / 1e6)


def test_without_a_gain_a_point_has_no_price(tmp_path: Path) -> None:
    run = fake_run(tmp_path, skill={"all": 0.2, "base": 0.2}, **SMALL)
    found = cost_of(run)
    assert student(found, "all").points is None
    cells = {line[0].text: [cell.text for cell in line] for line in students_table(found).rows}
    assert cells["W2SR"][6:] == ["–", "–"]


def test_a_report_without_prices_shows_no_money_and_says_how_to_get_it(tmp_path: Path) -> None:
    run = fake_run(tmp_path, **SMALL)
    [section] = [part.section for part in parts(collect(run)) if part.id == "costs"]
    tables = [table for _, table in section.tables]
    assert all("Money" not in table.headings for table in tables)
    assert any("report.prices.device_hour" in note for note in tables[0].notes)
    report.run(run)
    first = json.loads((tmp_path / "report.json").read_text())["costs"]
    assert first["currency"] is None
    priced = Run(load_config(tmp_path / "config.yaml", ["report.prices.device_hour=2"]), run.folder, run.ray)
    report.run(priced)
    assert json.loads((tmp_path / "report.json").read_text())["costs"]["currency"] == "USD"


def test_small_amounts_keep_three_digits_that_count() -> None:
    assert [money(value, "EUR") for value in (None, 0.0, 0.00123456, 0.5, 1234.5)] == [
        "–",
        "0.00 EUR",
        "0.00123 EUR",
        "0.5 EUR",
        "1,234.50 EUR",
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "report.prices.endpoints={smal: {output: 1}}",
            "report.prices.endpoints has 'smal', neither a teacher nor in evaluate.models",
        ),
        ("report.prices.device_hour=-1", "device_hour is -1; give a number of at least 0"),
        ("report.prices.device_hour={train: .nan}", "device_hour.train is nan; give a number of at least 0"),
        ("report.prices.device_hour={traim: 1}", "device_hour"),
        ("report.max_characters=3", "max_characters"),
    ],
)
def test_prices_that_cannot_be_are_refused(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config_of(tmp_path)))
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(".", r"\.")):
        load_config(path, [override])


def test_prices_refuse_no_finished_stage(tmp_path: Path) -> None:
    assert "report" not in config_of(tmp_path).identity()


def test_each_training_stands_beside_what_was_predicted_of_it(tmp_path: Path) -> None:
    run = fake_run(tmp_path, train={"max_steps": 40, "seeds": [0]}, curate={"arms": ["all", "gold"]})
    plan = {"predicted": {"memory_bytes": 3 * 2**30, "seconds": 200.0}, "actual": {"memory_bytes": 2**31, "seconds": 130.0}, "note": ""}
    (run.stage("train", "all-seed0") / "plan.json").write_text(json.dumps(plan))
    [section] = [part.section for part in parts(collect(run)) if part.id == "costs"]
    [table] = [table for caption, table in section.tables if caption == "How each student was trained"]
    first, second = ([(cell.text, cell.small) for cell in row] for row in table.rows)
    assert first[:4] == [("all-seed0", "0.39 M parameters"), ("40", ""), ("6,000", ""), ("180", "")]
    assert first[4:] == [("2.00 GiB", "predicted 3.00 GiB"), ("2 min 10 s", "predicted 3 min 20 s")]
    assert second[1] == ("40", "weights of step 30"), "the best on the selection split"
    assert second[4:] == [("–", ""), ("–", "")], "nothing was predicted"
