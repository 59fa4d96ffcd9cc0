"""`w2sr diagnose` on invented run folders, against figures computed by other means."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from launcher.cli import main
from tests.unit.report_fake import config_of, finish_stage
from tests.unit.test_diagnosis import GOOD, LOOP, trace
from w2sr.config import dump_config
from w2sr.diagnosis.agreement import Comparison, Sample, answer_key
from w2sr.diagnosis.diagnose import diagnose
from w2sr.diagnosis.lookup import find_trace
from w2sr.diagnosis.means import Mean
from w2sr.errors import UserError
from w2sr.records import Prompt, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.tables import write_table
from w2sr.traces.store import TraceStore

TEXTS = ["3 + 4 = 7\n#### 7", "Three and four are 7.0\n#### 7.0", "It is 5.\n#### 5", "I cannot say.", LOOP]


def make_run(folder: Path, teachers: dict[str, int], num_prompts: int = 12, **changes: Any) -> Run:
    """Write configuration and prompts; `teachers` are names with their samples per prompt."""
    rows = [
        {"name": name, "model": "lab:teacher", "sampling": {"max_new_tokens": 64}, "samples_per_prompt": samples}
        for name, samples in teachers.items()
    ]
    config = config_of(folder, teachers=rows, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    prompts = [Prompt(f"p{number:03d}", "train", f"What is 3 + 4? ({number})", "7", None, "fake", "{}") for number in range(num_prompts)]
    run = Run(config=config, folder=folder, ray=None)  # type: ignore[arg-type]
    finish_stage(run, "prompts", {"train.parquet": (prompts, Prompt), "test.parquet": (prompts[:2], Prompt)}, {"train": num_prompts})
    return run


def traces_of(name: str, samples: int, num_prompts: int = 12, seed: int = 0) -> list[Trace]:
    rng = np.random.default_rng(seed)
    found = []
    for number, sample in product(range(num_prompts), range(samples)):
        text = TEXTS[int(rng.integers(len(TEXTS)))]
        changes = {"trace_id": trace_id_of(f"p{number:03d}", name, sample), "generator": name, "sample_index": sample}
        position = number * samples + sample
        if rng.random() < 0.1:
            found.append(trace(position, "", f"p{number:03d}", "error", error="the engine had enough", **changes))
        else:
            finish = "length" if text is LOOP else "stop"
            found.append(trace(position, text, f"p{number:03d}", finish, num_tokens=len(text), **changes))
    return found


def verdict_of(row: Trace) -> Verification:
    correct = row.text in TEXTS[:2]
    reason = "error" if row.finish_reason == "error" else "match" if correct else "mismatch"
    return Verification(row.trace_id, row.prompt_id, "correct" if correct else "incorrect", reason, None, None)


def finish_teacher(run: Run, traces: list[Trace], verified: bool = True) -> None:
    name = traces[0].generator
    half = len(traces) // 2
    finish_stage(run, f"generate/{name}", {"part-00000.parquet": (traces[:half], Trace), "part-00001.parquet": (traces[half:], Trace)}, {})
    if verified:
        finish_stage(run, f"verify/{name}", {"part-00000.parquet": ([verdict_of(row) for row in traces], Verification)}, {})


def test_a_run_of_two_teachers_gives_the_figures_of_a_slow_computation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 3, "b": 1})
    traces = {"a": traces_of("a", 3), "b": traces_of("b", 1, seed=1)}
    for rows in traces.values():
        finish_teacher(run, rows)
    found = diagnose(run.folder)
    assert [one.teacher for one in found.teachers] == ["a", "b"]
    for one in found.teachers:
        fine = [row for row in traces[one.teacher] if row.finish_reason != "error"]
        assert one.complete
        assert one.accuracy is not None
        assert (one.accuracy.count, one.accuracy.total) == (sum(row.text in TEXTS[:2] for row in fine), len(fine))
        assert one.rates["loop"].count == sum(row.text == LOOP for row in fine)
        assert one.rates["format_valid"].count == sum("####" in row.text for row in fine)
    pair = found.comparison.agreement[("a", "b")]
    by_prompt = {
        name: {
            prompt: [row.text for row in rows if row.prompt_id == prompt and row.finish_reason != "error"]
            for prompt in {r.prompt_id for r in rows}
        }
        for name, rows in traces.items()
    }
    common = [prompt for prompt in by_prompt["a"] if by_prompt["a"][prompt] and by_prompt["b"].get(prompt)]
    key = {TEXTS[0]: 7, TEXTS[1]: 7, TEXTS[2]: 5}
    same = [
        np.mean([one in key and key.get(one) == key.get(other) for one, other in product(by_prompt["a"][prompt], by_prompt["b"][prompt])])
        for prompt in common
    ]
    assert pair.same_answer.count == len(common)
    assert pair.same_answer.value == pytest.approx(np.mean(same))
    assert pair.both.value + pair.only_first.value + pair.only_second.value + pair.neither.value == pytest.approx(1)
    solved = [any(text in TEXTS[:2] for name in by_prompt for text in by_prompt[name][prompt]) for prompt in common]
    assert pair.solved_by_any.value == pytest.approx(np.mean(solved))


def test_the_console_and_the_file_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 3, "b": 1})
    finish_teacher(run, traces_of("a", 3))
    finish_teacher(run, traces_of("b", 1, seed=1), verified=False)
    assert main(["diagnose", str(run.folder)]) == 0
    shown = capsys.readouterr().out
    written = json.loads((run.folder / "diagnosis.json").read_text())
    first, second = written["teachers"]
    assert f"{100 * first['accuracy']['value']:.1f} % [" in shown
    assert second["accuracy"] is None
    assert "not verified" in shown
    assert "teacher b is not verified: run `w2sr verify" in shown
    assert first["requests"] == first["traces"] + first["rates"]["failed"]["count"]
    assert first["failures"] == {"the engine had enough": first["rates"]["failed"]["count"]}
    assert "gate: would stop. teacher a: only" in shown
    assert written["teachers"][0]["gate"][0] in shown
    assert first["examples"]["loop"][0] in shown
    assert "a and b, on the" in shown
    assert "both correct" not in shown  # b has no verdicts
    assert first["diversity"]["majority"]["prompts"] > 0


def test_an_unfinished_teacher_is_counted_and_one_that_has_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 3, "b": 1})
    rows = traces_of("a", 3)
    with TraceStore.open(run.stage("generate", "a"), Trace, len(rows)) as store:
        store.append(rows[20:30])
        store.flush()
        assert main(["diagnose", str(run.folder)]) == 0
    shown = capsys.readouterr().out
    assert "10 so far" in shown
    assert "teacher a is not finished: its 10 traces so far are counted, and not compared" in shown
    assert "teacher b has no traces yet" in shown


def test_a_good_run_passes_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 1})
    rows = [trace(number, GOOD, f"p{number:03d}", generator="a", trace_id=trace_id_of(f"p{number:03d}", "a", 0)) for number in range(12)]
    finish_teacher(run, rows)
    assert main(["diagnose", str(run.folder)]) == 0
    assert "gate: passed" in capsys.readouterr().out


def test_what_is_no_run_or_has_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        diagnose(tmp_path)
    run = make_run(tmp_path / "run", {"a": 1})
    with pytest.raises(UserError, match="has no traces yet; run `w2sr generate"):
        diagnose(run.folder)
    (run.folder / "prompts" / "train.parquet").unlink()
    with pytest.raises(UserError, match="has no prompts yet"):
        diagnose(run.folder)


def test_verdicts_of_other_traces_and_traces_of_other_prompts_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 1})
    rows = traces_of("a", 1)
    finish_teacher(run, rows)
    write_table(run.stage("verify", "a") / "part-00000.parquet", [verdict_of(row) for row in rows[:-1]], Verification)
    with pytest.raises(UserError, match=r"does not judge the traces of .* row by row"):
        diagnose(run.folder)
    write_table(run.stage("prompts") / "train.parquet", [], Prompt)
    with pytest.raises(UserError, match=r"answers prompt p000, which .* does not have"):
        diagnose(run.folder)


def test_a_trace_is_shown_by_the_beginning_of_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 1})
    rows = [
        trace(0, LOOP + " 所以", "p000", "length", generator="a", trace_id="abcd0123"),
        trace(1, "", "p001", "error", error="no", trace_id="abef"),
    ]
    finish_teacher(run, rows)
    assert main(["diagnose", str(run.folder), "--show", "abcd"]) == 0
    shown = capsys.readouterr().out
    for part in ("trace abcd0123 in generate/a, sample 0 of prompt p000", "finish_reason length", "What is 3 + 4? (0)", LOOP, "Han 2"):
        assert part in shown
    assert main(["diagnose", str(run.folder), "--show", "abef"]) == 0
    assert "error: no" in capsys.readouterr().out
    assert main(["diagnose", str(run.folder), "--show", "ab"]) == 2
    assert "has 2 traces whose id begins with it" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no such trace in generate/ and evaluate/"):
        find_trace(run.folder, "zz")
    write_table(run.stage("prompts") / "train.parquet", [], Prompt)
    assert main(["diagnose", str(run.folder), "--show", "abcd"]) == 2
    assert "the prompts were changed after the traces" in capsys.readouterr().err


def test_a_trace_of_an_evaluation_is_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 1})
    finish_stage(run, "evaluate/test/base", {"part-00000.parquet": ([trace(0, GOOD, "p001", trace_id="e1")], Trace)}, {})
    assert main(["diagnose", str(run.folder), "--show", "e1"]) == 0
    assert "trace e1 in evaluate/test/base" in capsys.readouterr().out


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_mean_and_its_interval_are_those_of_scipy(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean.add(value)
    assert mean.value == pytest.approx(np.mean(values))
    error = stats.sem(values)
    if error > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert mean.interval() == pytest.approx((max(0, low), min(1, high)), abs=1e-6)


def test_one_prompt_says_nothing_about_the_others() -> None:
    mean = Mean()
    mean.add(0.5)
    assert mean.interval() == (0, 1)


SAMPLES = st.lists(
    st.builds(Sample, st.sampled_from(["a b c", "a b d", "x"]), st.sampled_from(["1", "2", None]), st.booleans()), min_size=1, max_size=4
)


@given(st.lists(st.tuples(SAMPLES, SAMPLES), min_size=1, max_size=8))
def test_agreement_is_symmetric_and_within_its_bounds(prompts: list[tuple[list[Sample], list[Sample]]]) -> None:
    one_way, other_way = Comparison(), Comparison()
    for first, second in prompts:
        one_way.add({"a": first, "b": second})
        other_way.add({"b": second, "a": first})
    there, back = one_way.agreement[("a", "b")], other_way.agreement[("b", "a")]
    for name, mirrored in (
        ("same_answer", "same_answer"),
        ("only_first", "only_second"),
        ("shared_bigrams", "shared_bigrams"),
        ("both", "both"),
    ):
        assert getattr(there, name).value == pytest.approx(getattr(back, mirrored).value)
        assert 0 <= getattr(there, name).value <= 1
    alone = max(one_way.diversity[name].solved_by_any.value for name in "ab")
    assert one_way.solved_by_any.value == there.solved_by_any.value >= alone


def test_diversity_of_samples_by_hand() -> None:
    comparison = Comparison()
    comparison.add({"a": [Sample("a b c", "1", None), Sample("a b d", "1", None), Sample("x", "2", None), Sample("y", None, None)]})
    found = comparison.diversity["a"]
    assert found.distinct_answers.value == pytest.approx(2 / 3)
    assert found.majority.value == pytest.approx(2 / 3)
    assert found.distinct_bigrams.value == 3 / 4
    assert found.solved_by_any.count == 0


def test_equal_numbers_and_equal_words_have_one_key() -> None:
    assert answer_key("$1,200.0") == answer_key("1200")
    assert answer_key(r"\frac{1}{2}") == answer_key("0.5")
    assert answer_key("The Cat") == answer_key("the  cat")
    assert Counter(map(answer_key, ["5", "50"])) == {5: 1, 50: 1}
