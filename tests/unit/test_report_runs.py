"""`w2sr report RUN [RUN ...]`: one run by its folder, several beside each other, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.cli import main
from tests.chromium import Browser
from tests.unit.report_fake import HOSTILE, fake_label, fake_run
from w2sr.errors import UserError
from w2sr.evaluation.intervals import Bootstrap
from w2sr.records import Prompt, Verification
from w2sr.reporting.runs import changes, compare_runs
from w2sr.reporting.runs_view import sections
from w2sr.run import Run
from w2sr.tables import read_table, write_table

ONE_SEED = {"max_steps": 40, "seeds": [0]}
LABELS = ("base", "base-cot", "teacher-small", "all-seed0", "correct-seed0", "incorrect-seed0", "gold-seed0")


def made(folder: Path, number: int = 40, **changes: Any) -> Run:
    return fake_run(folder, **{"train": ONE_SEED, "prompts": {"num_test": number}} | changes)


def shares(run: Run, label: str) -> dict[str, float]:
    rows = read_table(run.stage("evaluate", "test", label) / "verdicts.parquet", Verification)
    return {
        prompt_id: float(np.mean([row.verdict == "correct" for row in rows if row.prompt_id == prompt_id]))
        for prompt_id in dict.fromkeys(row.prompt_id for row in rows)
    }


def test_runs_on_the_same_problems_are_paired(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one"), made(tmp_path / "two", skill={"all": 0.9})
    found = compare_runs([tmp_path / "one", tmp_path / "two"])
    assert [run.name for run in found.runs] == ["one", "two"]
    [shared] = found.shared
    assert (shared.set, shared.name, shared.first, shared.common) == ("test", "two", "one", 40)
    columns = {str(side): np.array(list(shares(run, "all-seed0").values())) for side, run in enumerate((one, two))}
    expected = Bootstrap(columns, 400, 0.95, 0).difference("1", "0")
    assert shared.versus["all"].value == pytest.approx(columns["1"].mean() - columns["0"].mean())
    assert (shared.versus["all"].low, shared.versus["all"].high) == pytest.approx((expected.low, expected.high))
    assert shared.versus["base"].value == 0.0


def test_runs_that_share_some_problems_are_paired_on_those_alone(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", 40), made(tmp_path / "two", 25)
    prompts = read_table(two.stage("prompts") / "test.parquet", Prompt)
    changed = [Prompt(**{name: getattr(prompts[0], name) for name in Prompt.__slots__} | {"question": "another one"})]
    write_table(two.stage("prompts") / "test.parquet", [*changed, *prompts[1:]], Prompt)  # the same id, and not the same problem
    [shared] = compare_runs([tmp_path / "one", tmp_path / "two"]).shared
    assert (shared.common, shared.problems, shared.others) == (24, 25, 40)
    firsts, seconds = shares(one, "all-seed0"), shares(two, "all-seed0")
    common = [prompt.prompt_id for prompt in prompts[1:]]
    assert shared.versus["all"].value == pytest.approx(np.mean([seconds[each] - firsts[each] for each in common]))


def test_runs_without_a_common_problem_are_not_paired_and_it_is_said(tmp_path: Path) -> None:
    made(tmp_path / "one")
    other = made(tmp_path / "two")
    prompts = read_table(other.stage("prompts") / "test.parquet", Prompt)
    others = [
        Prompt(**{name: getattr(prompt, name) for name in Prompt.__slots__} | {"prompt_id": f"q{n}"}) for n, prompt in enumerate(prompts)
    ]
    write_table(other.stage("prompts") / "test.parquet", others, Prompt)
    for label in LABELS:
        shutil.rmtree(other.stage("evaluate", "test", label))
        fake_label(other, "test", label, others, 0.5)
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["shared"][0]["common"] == 0
    assert found["shared"][0]["versus"] == {}
    for name in ("comparison.md", "comparison.html"):
        assert "two and one have no problem in common: no paired difference can be given" in (tmp_path / "out" / name).read_text()


def test_the_command_writes_a_page_that_a_browser_shows_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name / "run" for name in ("one", "<b>two")]
    made(folders[0], title=HOSTILE, report={"prices": {"device_hour": 2.0}})
    made(folders[1], train=ONE_SEED | {"learning_rate": 3e-4}, student={"style": {"system": HOSTILE}})
    out = tmp_path / "out"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    assert "W2SR solves" in capsys.readouterr().out
    found = json.loads((out / "comparison.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["one/run", "<b>two/run"]
    assert {"key": "train.learning_rate", "values": ["1e-05", "0.0003"]} in found["changes"]
    text = (out / "comparison.md").read_text()
    assert "train.learning\\_rate" in text or "train.learning_rate" in text
    assert "<b>two" not in text
    with Browser(tmp_path / "profile") as browser:
        for width in (390, 1200):
            page = browser.open((out / "comparison.html").as_uri(), width)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.complaints == []
            assert page.requests == [(out / "comparison.html").as_uri()]
            assert page.evaluate("document.querySelectorAll('b, main script').length") == 0
            assert "<b>two/run" in page.evaluate("document.body.innerText")
            page.close()


def test_students_of_several_sizes_stand_by_size_with_what_each_gained(tmp_path: Path) -> None:
    large, small = made(tmp_path / "large", parameters=7_600_000_000), made(tmp_path / "small", skill={"all": 0.3}, parameters=390_000)
    found = compare_runs([tmp_path / "large", tmp_path / "small"])
    [section] = [section for section in sections(found) if section.title == "Students by size"]
    [(_, table)] = section.tables
    assert [(row[0].text, row[0].small) for row in table.rows] == [("small", "0.39 M parameters"), ("large", "7.6 B parameters")]
    place = table.headings.index("W2SR")
    assert [row[place].text for row in table.rows] == [
        f"{100 * np.mean(list(shares(run, 'all-seed0').values())):.1f} %" for run in (small, large)
    ]
    assert [row[-1].text for row in table.rows] == ["180", "180"]
    made(tmp_path / "other", parameters=390_000)
    assert "Students by size" not in [section.title for section in sections(compare_runs([tmp_path / "small", tmp_path / "other"]))]


def test_only_what_differs_in_how_runs_were_made_is_shown() -> None:
    one = {"run_dir": "a", "title": "x", "seed": 0, "train": {"lr": 1e-3, "seeds": [0]}, "report": {"max_traces": 1}}
    two = {"run_dir": "b", "title": "y", "seed": 0, "train": {"lr": 1e-4, "seeds": [0, 1]}, "report": {"max_traces": 2}}
    assert [(change.key, change.values) for change in changes([one, two])] == [
        ("train.lr", ["0.001", "0.0001"]),
        ("train.seeds.1", ["(absent)", "1"]),
    ]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "one")
    with pytest.raises(UserError, match=r"no config\.yaml there"):
        compare_runs([tmp_path / "one", tmp_path])
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with pytest.raises(UserError, match="link is given twice"):
        compare_runs([tmp_path / "one", tmp_path / "link"])
    chosen = made(tmp_path / "chosen", evaluate={"split": "selection"})
    write_table(chosen.stage("prompts") / "selection.parquet", read_table(chosen.stage("prompts") / "test.parquet", Prompt), Prompt)
    with pytest.raises(UserError, match=r"no set of problems in common \(one: test; chosen: selection\)"):
        compare_runs([tmp_path / "one", tmp_path / "chosen"])
    unfinished = made(tmp_path / "unfinished")
    (unfinished.stage("evaluate", "test", "gold-seed0") / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished/evaluate/test/gold-seed0 is not finished"):
        compare_runs([tmp_path / "one", tmp_path / "unfinished"])


def test_one_run_is_reported_by_its_folder_wherever_it_is_now(tmp_path: Path) -> None:
    run = made(tmp_path / "before")
    run.folder.rename(tmp_path / "after")
    assert main(["report", str(tmp_path / "after"), "report.max_traces=40"]) == 0
    assert (tmp_path / "after" / "report.html").exists()
    assert not (tmp_path / "before").exists()
    assert json.loads((tmp_path / "after" / "report.json").read_text())["browser"]["sets"][0]["shown_traces"] < 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "--out", "x"], "--out is for a comparison of several runs"),
        (["one", "two", "seed=3"], "seed=3 overrides a value of one run, but 2 runs were given"),
        (["one", "gone"], "is not a run folder"),
        (["gone.yaml"], "cannot read configuration"),
        (["one", "verify.grader=exact"], "one was made with another configuration. Changed: verify.grader"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    made(tmp_path / "one", 5)
    made(tmp_path / "two", 5)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
