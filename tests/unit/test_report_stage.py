"""The report of a finished run: complete, offline, escaped, consistent with report.json, made again when anything changed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report_fake import HOSTILE, SKILL, fake_label, fake_run
from w2sr.artifacts import Manifest
from w2sr.errors import UserError
from w2sr.records import Prompt
from w2sr.reporting.html import render_html
from w2sr.reporting.markdown import render_markdown
from w2sr.reporting.report import collect
from w2sr.run import Run
from w2sr.stages import report
from w2sr.tables import read_table

VOID = {"meta", "wbr", "br", "line", "path", "circle", "rect", "polyline"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = fake_run(tmp_path_factory.mktemp("run"))
    report.run(run)
    return run


class Page(HTMLParser):
    """Checks that tags balance; collects tags, attributes and the texts of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "data", "xlink:href")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data


def numbers_of(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "report.json").read_text())  # type: ignore[no-any-return]


def test_a_report_has_three_files_and_a_manifest(finished: Run) -> None:
    for name in ("report.json", "report.md", "report.html"):
        assert (finished.folder / name).stat().st_size > 1000
    manifest = Manifest.load(finished.stage("report"))
    assert manifest.counts == {"rows": 7, "students": 12, "problems": 120}
    assert "evaluate/test/gold-seed2" in manifest.inputs
    assert "train/all-seed0" in manifest.inputs


def test_the_page_is_one_file_that_loads_nothing(finished: Run) -> None:
    text = (finished.folder / "report.html").read_text()
    page = Page(text)
    assert page.links
    assert all(re.fullmatch(r"href=#[a-z0-9-]+", link) for link in page.links), page.links
    assert {link.removeprefix("href=#") for link in page.links} <= set(page.ids)
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "form"}
    assert "default-src &#39;none&#39;" in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_text_from_data_is_escaped(finished: Run) -> None:
    text = (finished.folder / "report.html").read_text()
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script") == 2  # the data of the traces, and what shows them
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text
    assert "<b>bold</b>" not in text
    assert "weak teacher &amp; strong student" in text
    markdown = (finished.folder / "report.md").read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "evil.example" not in outside


def test_a_hostile_title_is_escaped_in_both(tmp_path: Path) -> None:
    run = fake_run(tmp_path, title=HOSTILE, train={"max_steps": 40, "seeds": [0]})
    report.run(run)
    assert "<script>alert" not in (tmp_path / "report.html").read_text()
    first = (tmp_path / "report.md").read_text().splitlines()[0]
    assert "<script" not in first
    assert "\\[link\\](" in first


def test_the_tables_agree_with_report_json(finished: Run) -> None:
    found = numbers_of(finished)
    page = Page((finished.folder / "report.html").read_text())
    cells = {row[0].strip(): [cell.split() for cell in row[1:]] for row in page.rows[:8]}
    for row in found["comparison"]["rows"]:
        name = next(key for key in cells if key == f"{row['name']}{row['detail']}")
        avg = row["figures"]["avg"]
        assert cells[name][0] == [f"{100 * avg['value']:.1f}", f"%[{100 * avg['low']:.1f},", f"{100 * avg['high']:.1f}]"]
        if "teacher" in row["versus"]:
            difference = row["versus"]["teacher"]
            sign = "≈" if difference["low"] <= 0 <= difference["high"] else "▲" if difference["value"] > 0 else "▼"
            assert cells[name][5][0] == f"{100 * difference['value']:+.1f}".replace("-", "−")
            assert cells[name][5][1].startswith(sign)
        ratio = (row["rgr_vs_student_base"] or {}).get("ratio")
        if ratio:
            assert cells[name][8][0] == f"{100 * ratio['value']:.0f}".replace("-", "−")
    markdown = (finished.folder / "report.md").read_text()
    for row in found["comparison"]["rows"]:
        assert f"{100 * row['figures']['avg']['value']:.1f} %" in markdown
    assert found["headline"].split("(")[0] in markdown


def test_every_figure_can_be_computed_by_hand_from_the_verdicts(finished: Run) -> None:
    found = {row["key"]: row for row in numbers_of(finished)["comparison"]["rows"]}
    for key in ("base", "teacher-small"):
        counts = Manifest.load(finished.stage("evaluate", "test", key)).counts
        assert found[key]["figures"]["avg"]["value"] == pytest.approx(counts["correct"] / counts["samples"])
    seeds = [Manifest.load(finished.stage("evaluate", "test", f"all-seed{seed}")).counts for seed in range(3)]
    assert found["all"]["figures"]["avg"]["value"] == pytest.approx(sum(c["correct"] for c in seeds) / sum(c["samples"] for c in seeds))


def test_two_runs_that_computed_the_same_have_the_same_results(finished: Run, tmp_path: Path) -> None:
    other = fake_run(tmp_path)
    report.run(other)
    assert (other.stage("report") / "results.json").read_bytes() == (finished.stage("report") / "results.json").read_bytes()
    assert Manifest.load(other.stage("report")).digest == Manifest.load(finished.stage("report")).digest
    apart = [key for key, value in numbers_of(other).items() if value != numbers_of(finished)[key]]
    assert set(apart) <= {"costs", "trainings", "provenance"}


def test_a_report_is_left_alone_until_something_changes_and_then_made_again(tmp_path: Path) -> None:
    one_seed = {"max_steps": 40, "seeds": [0]}
    run = fake_run(tmp_path, train=one_seed)
    report.run(run)
    html = tmp_path / "report.html"
    before = html.stat().st_mtime_ns
    report.run(run)
    assert html.stat().st_mtime_ns == before

    renamed = Run(run.config.model_copy(update={"title": "Another title"}), run.folder, run.ray)
    report.run(renamed)
    assert "<h1>Another title</h1>" in html.read_text()

    shutil.rmtree(run.stage("evaluate", "test", "base"))
    fake_label(run, "test", "base", read_table(run.stage("prompts") / "test.parquet", Prompt), 0.01)
    old = numbers_of(run)["comparison"]["rows"][0]["figures"]["avg"]["value"]
    report.run(renamed)
    assert numbers_of(run)["comparison"]["rows"][0]["figures"]["avg"]["value"] < old

    pages = {name: (tmp_path / name).read_bytes() for name in report.FILES}
    html.unlink()
    report.run(renamed)
    assert {name: (tmp_path / name).read_bytes() for name in report.FILES} == pages


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path, train={"max_steps": 40, "seeds": [0]})
    (run.stage("evaluate", "test", "gold-seed0") / "manifest.json").unlink()
    with pytest.raises(UserError, match="gold-seed0 is not finished"):
        report.run(run)


def test_selection_scores_are_shown_apart(tmp_path: Path) -> None:
    run = fake_run(tmp_path, train={"max_steps": 40, "seeds": [0]})
    prompts = read_table(run.stage("prompts") / "test.parquet", Prompt)[:20]
    for label in ("base", "all-seed0"):
        fake_label(run, "selection", label, prompts, SKILL.get(label, 0.6))
    report.run(run)
    assert "Selection prompts (not results)" in (tmp_path / "report.html").read_text()
    rows = numbers_of(run)["other_split"]["rows"]
    assert [row["label"] for row in rows] == ["base", "all-seed0"]
    assert rows[0]["prompts"] == 20


def test_losses_logged_twice_count_once_and_torn_lines_are_skipped(finished: Run) -> None:
    curve = numbers_of(finished)["curves"][0]
    assert curve["steps"] == list(range(1, 41))
    assert curve["losses"][-1] == pytest.approx(0.2 + 2.2 * 0.93**40)


def test_other_sets_have_pictures_of_their_own(finished: Run) -> None:
    made = collect(finished)
    assert "The picture on other sets" not in render_html(made)
    far = dataclasses.replace(made.comparison, title="Far <b>away</b>", domain="out")
    made = dataclasses.replace(made, elsewhere=[far, dataclasses.replace(far, title="Near", domain="in")])
    page, text = render_html(made), render_markdown(made)
    assert page.count('class="plot small"') == 2
    for words in ("<b>Far &lt;b&gt;away&lt;/b&gt;</b>, out-of-domain: 120 problems", "<b>Near</b>, in-domain"):
        assert words in page
    assert "Far &lt;b&gt;away&lt;/b&gt;, out-of-domain:\n\n```\nBase" in text
    Page(page)


def test_a_long_curve_keeps_its_ends_and_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = fake_run(tmp_path, train={"max_steps": 40, "seeds": [0]})
    lines = [json.dumps({"step": step, "loss": float("nan") if step == 7 else 1 / step}) for step in range(1, 1002)]
    (run.stage("train", "all-seed0") / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    report.run(run)
    curve = next(curve for curve in numbers_of(run)["curves"] if curve["label"] == "all-seed0")
    assert (curve["steps"][0], curve["steps"][-1], 7 in curve["steps"]) == (1, 1001, False)
    assert len(curve["steps"]) <= 202


def test_the_funnel_conserves_rows(finished: Run) -> None:
    for arm in numbers_of(finished)["arms"]:
        assert arm["candidates"] == arm["kept"] + sum(arm["rejected"].values()) == 32
