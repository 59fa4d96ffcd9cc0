"""The lab: the task's texts, the tokenizer, the shipped models and their build."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.artifacts import model_digest
from w2sr.errors import UserError
from w2sr.lab import build, models, recipe, task
from w2sr.lab.tokenizer import build_tokenizer
from w2sr.prompting import messages_of

TOKENIZER = build_tokenizer()


def expressions() -> st.SearchStrategy[str]:
    return st.builds(
        lambda seed, terms: task.sample_expression(random.Random(seed), 1, terms),
        st.integers(0, 2**32),
        st.integers(1, 8),
    )


def test_reference_chains_reach_the_answer_that_reasoning_gym_gives() -> None:
    from reasoning_gym import create_dataset

    for digits in (1, 3):
        dataset = create_dataset("chain_sum", min_terms=2, max_terms=8, max_digits=digits, seed=5, size=200)
        for item in dataset:
            trace = task.reference_trace("chain_sum", item)
            assert trace is not None
            assert trace.rsplit("#### ", 1)[1] == item["answer"]
            assert trace.count("=") == item["metadata"]["num_terms"] - 1


def test_every_step_of_a_chain_is_true() -> None:
    rng = random.Random(3)
    for _ in range(300):
        expression = task.sample_expression(rng, 2, 8)
        sizes = task.hasty_group_sizes(rng, len(task.parse_expression(expression)[1]), 3)
        for chain in (task.worked_chain(expression), task.worked_chain(expression, sizes)):
            for step in chain.split("\n")[0].removeprefix("So").split(";"):
                left, right = step.strip().split(" = ")
                assert task.answer_of(left) == int(right)


def test_the_question_is_worded_as_reasoning_gym_words_it() -> None:
    from reasoning_gym import create_dataset

    item = create_dataset("chain_sum", max_digits=1, seed=1, size=1)[0]
    assert task.question_text(item["metadata"]["expression"]) == item["question"]


def test_there_is_no_reference_for_a_task_that_the_lab_does_not_know() -> None:
    assert task.reference_trace("leg_counting", {"metadata": {"expression": "1 + 2"}}) is None
    assert task.reference_trace("chain_sum", {"question": "?", "metadata": {"expression": "1.5 + 2"}}) is None
    assert task.reference_trace("chain_sum", {"question": "?", "metadata": None}) is None


def test_an_expression_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="not a chain of sums"):
        task.parse_expression("2 * 3")


@given(expressions())
def test_questions_chains_and_answers_come_back_from_the_tokenizer_unchanged(expression: str) -> None:
    rng = random.Random(expression)
    operations = len(task.parse_expression(expression)[1])
    hasty = task.worked_chain(expression, task.hasty_group_sizes(rng, operations, 3))
    answer = str(task.answer_of(expression))
    for text in (task.question_text(expression), task.worked_chain(expression), hasty, answer, recipe.facts_text(rng)):
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.unk_token_id not in ids


@given(st.text(alphabet=[chr(code) for code in [9, 10, *range(32, 127)]]))
def test_any_ascii_text_comes_back_from_the_tokenizer_unchanged(text: str) -> None:
    ids = TOKENIZER.encode(text, split_special_tokens=True)
    assert TOKENIZER.decode(ids) == text


def test_other_characters_become_the_unknown_token() -> None:
    assert TOKENIZER.encode("é") == [TOKENIZER.unk_token_id]


def test_the_chat_template_writes_one_bos_and_ends_an_answer_with_eos() -> None:
    prompt = messages_of(recipe.PROMPT_STYLES["reasoning"], task.question_text("4 + 3 - 9"))
    chain = task.worked_chain("4 + 3 - 9")
    row = TOKENIZER.apply_chat_template([*prompt, {"role": "assistant", "content": chain}], tokenize=False)
    prefix = TOKENIZER.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = TOKENIZER.encode(row, add_special_tokens=False)
    assert row == f"{prefix}{chain}{TOKENIZER.eos_token}"
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[-1] == TOKENIZER.eos_token_id
    assert len({TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id}) == 4


def test_the_chat_template_refuses_an_unknown_role() -> None:
    with pytest.raises(Exception, match="unknown role: tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_shipped_models_match_their_recorded_digests_and_recipes() -> None:
    records = models.read_records()
    assert set(records) == set(recipe.RECIPES)
    for name, made_by in recipe.RECIPES.items():
        assert records[name]["digest"] == model_digest(Path(models.resolve_model(f"lab:{name}")))
        assert records[name]["recipe"] == json.loads(json.dumps(asdict(made_by)))


def test_a_name_without_the_lab_prefix_comes_back_unchanged() -> None:
    assert models.resolve_model("/some/where") == "/some/where"


def test_an_unknown_lab_model_is_refused_with_the_valid_names() -> None:
    with pytest.raises(UserError, match=r"unknown lab model 'lab:techer'.*lab:student.*lab:teacher"):
        models.resolve_model("lab:techer")


def test_a_changed_or_missing_model_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models.MODELS_DIR, copy)
    with (copy / "teacher" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="its files were changed"):
        models.resolve_model("lab:teacher", copy)
    shutil.rmtree(copy / "teacher")
    with pytest.raises(UserError, match="missing"):
        models.resolve_model("lab:teacher", copy)
    (copy / models.RECORD_FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        models.resolve_model("lab:teacher", copy)


def test_questions_of_the_reserved_seeds_are_never_drawn_for_pre_training() -> None:
    made_by = recipe.RECIPES["teacher"]
    free = [recipe.sample_row(made_by, {"careful": 1.0}, random.Random(7), frozenset())]
    question = free[0][0][-1]["content"]
    expression = question.removeprefix(task.QUESTION_PREFIX).removesuffix("=").strip()
    other = recipe.sample_row(made_by, {"careful": 1.0}, random.Random(7), frozenset({expression}))
    assert other[0][-1]["content"] != question


def test_the_learning_rate_warms_up_and_goes_in_straight_lines_through_the_phases() -> None:
    phases = (recipe.Phase(100, {"careful": 1.0}, 0.5), recipe.Phase(50, {"direct": 1.0}, 0.0))
    made_by = recipe.ModelRecipe("m", 8, 1, 1, 8, phases, warmup_steps=10)
    assert made_by.phase_at(0) == (phases[0], pytest.approx(0.1))
    assert made_by.phase_at(50) == (phases[0], pytest.approx(0.75))
    assert made_by.phase_at(100) == (phases[1], pytest.approx(0.5))
    assert made_by.phase_at(125) == (phases[1], pytest.approx(0.25))
    with pytest.raises(AssertionError, match="past the last of 150"):
        made_by.phase_at(150)


def test_a_short_build_gives_the_same_record_twice_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "reserved_expressions", lambda *_: frozenset())
    for run in "ab":
        build.build("teacher", tmp_path / run, num_steps=3, num_questions=4, report=lambda _: None)
    records = [models.read_records(tmp_path / run) for run in "ab"]
    assert records[0] == records[1]
    assert models.resolve_model("lab:teacher", tmp_path / "a") == str(tmp_path / "a" / "teacher")


def test_recording_one_model_keeps_the_record_of_the_other(tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models.MODELS_DIR, copy)
    before = models.read_records(copy)
    build.record(recipe.TEACHER, copy, num_questions=50, report=lambda _: None)
    after = models.read_records(copy)
    assert after["student"] == before["student"]
    assert after["teacher"]["digest"] == before["teacher"]["digest"]
    assert after["teacher"]["accuracy"]["reasoning"] == pytest.approx(before["teacher"]["accuracy"]["reasoning"], abs=0.2)


def test_a_build_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe for lab model 'tutor'.*teacher"):
        build.build_all(tmp_path, only=["tutor"])


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 4))
def test_hasty_groups_cover_all_operations(seed: int, operations: int, merged: int) -> None:
    sizes = task.hasty_group_sizes(random.Random(seed), operations, merged)
    assert sum(sizes) == operations
    assert min(sizes) >= 1
