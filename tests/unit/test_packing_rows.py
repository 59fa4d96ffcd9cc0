from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packed import collate_padded
from tests.tiny import CHAT_TEMPLATE, make_tiny_model, make_tiny_tokenizer
from w2sr.errors import UserError
from w2sr.packing.lengths import LengthCounter
from w2sr.packing.pack import IGNORED
from w2sr.packing.rows import ModelLimits, Row, build_rows, model_limits
from w2sr.prompting import PromptStyle, render_prefix
from w2sr.records import Example

CHAT = PromptStyle()
TRACE = "<think>\n2+3=5\n</think>\nThe answer is 5"
STRIPS_THINKING = CHAT_TEMPLATE.replace(
    "<|{{ message['role'] }}|>{{ message['content'] }}",
    "<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}",
)
ADDS_EMPTY_BLOCK = CHAT_TEMPLATE.replace(
    "<|{{ message['role'] }}|>", "<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
)
ADDS_BLOCK_WHERE_MISSING = ADDS_EMPTY_BLOCK.replace(
    "== 'assistant' %}<think>", "== 'assistant' and '<think>' not in message['content'] %}<think>"
)
OPENS_THINKING = CHAT_TEMPLATE.replace(
    "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|><think>\n"
)
TRIMS = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] | trim }}")


def example(text: str = TRACE, question: str = "2+3=?", name: str = "e0") -> Example:
    return Example(name, f"prompt-of-{name}", question, text, "gold", None, None)


def limits_of(tokenizer: Any) -> ModelLimits:
    return ModelLimits((tokenizer.eos_token_id,), len(tokenizer), 256)


def one_row(tokenizer: Any, text: str = TRACE, style: PromptStyle = CHAT) -> Row:
    return build_rows(tokenizer, style, [example(text)], 256, limits_of(tokenizer)).kept[0]


def test_a_row_is_the_evaluation_prefix_the_trace_and_one_end_token() -> None:
    tokenizer = make_tiny_tokenizer()
    row = one_row(tokenizer)
    prefix = render_prefix(tokenizer, CHAT, "2+3=?")
    assert row.ids[: row.num_prefix] == prefix.ids
    assert tokenizer.decode(row.ids[row.num_prefix :]) == TRACE + "<eos>"
    assert row.num_supervised == len(TRACE) + 1
    assert row.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [STRIPS_THINKING, ADDS_EMPTY_BLOCK])
def test_a_template_that_alters_the_reasoning_is_refused_by_name(template: str) -> None:
    tokenizer = make_tiny_tokenizer(chat_template=template)
    tokenizer.name_or_path = "models/careless"
    with pytest.raises(UserError, match=r"chat template of models/careless alters the answer of example e0.*assistant_prefix"):
        one_row(tokenizer)


def test_the_refusal_shows_the_first_lost_text() -> None:
    with pytest.raises(UserError, match=r"where '<think>\\n2\+3=5.* should stand it writes '\\nThe answer is 5"):
        one_row(make_tiny_tokenizer(chat_template=STRIPS_THINKING))


def test_what_the_template_inserts_can_be_declared_as_assistant_prefix() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=ADDS_BLOCK_WHERE_MISSING)
    with pytest.raises(UserError, match="assistant_prefix"):
        one_row(tokenizer, "5")
    row = one_row(tokenizer, "5", PromptStyle(assistant_prefix="<think>\n\n</think>\n\n"))
    assert tokenizer.decode(row.ids[row.num_prefix :]) == "5<eos>"


def test_a_template_may_open_every_turn_with_bos() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace("{{ bos_token }}", "").replace("<|", "<bos><|"))
    assert one_row(tokenizer, "5").ids.count(tokenizer.bos_token_id) == 2
    with pytest.raises(UserError, match="BOS must stand once"):
        one_row(tokenizer, "5<bos>6")
    doubled = make_tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace("<|", "<bos><|"))
    with pytest.raises(UserError, match="BOS must stand once"):
        one_row(doubled, "5")


def test_a_generation_prompt_may_open_the_think_block() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=OPENS_THINKING)
    row = one_row(tokenizer, "2+3=5\n</think>\n5")
    assert tokenizer.decode(row.ids[: row.num_prefix]).endswith("<think>\n")


def test_a_template_may_trim_white_space_around_the_trace_but_the_row_keeps_it() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=TRIMS)
    row = one_row(tokenizer, " 5\n")
    assert tokenizer.decode(row.ids[row.num_prefix :]) == " 5\n<eos>"


def test_a_template_without_an_end_token_is_refused() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace("{{ eos_token }}", ""))
    with pytest.raises(UserError, match="one end-of-turn token is needed"):
        one_row(tokenizer)


def test_a_template_without_a_generation_prompt_is_refused_as_such() -> None:
    without = make_tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace("{% if add_generation_prompt %}<|assistant|>{% endif %}", ""))
    with pytest.raises(UserError, match=r"no generation prompt: .* the answer comes after '<\|assistant\|>'.*student.style.format: plain"):
        one_row(without)


def test_a_template_that_needs_no_generation_prompt_is_taken() -> None:
    """As Mistral's: the answer follows the end of the instruction."""
    bare = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}\n{% else %}{{ m['content'] }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tiny_tokenizer(chat_template=bare)
    assert tokenizer.decode(one_row(tokenizer).ids) == f"<bos><|user|>2+3=?\n{TRACE}<eos>"


def test_an_end_token_on_which_generation_does_not_stop_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    with pytest.raises(UserError, match=r"ends with '<eos>' .*stops on \[77\].*generation_config.json"):
        build_rows(tokenizer, CHAT, [example()], 256, ModelLimits((77,), len(tokenizer), None))


def test_a_second_bos_is_refused_with_its_place() -> None:
    with pytest.raises(UserError, match=r"BOS must stand once, at position 0, but stands at \[0, \d+\]"):
        one_row(make_tiny_tokenizer(), "5<bos>")


def test_a_missing_bos_is_refused() -> None:
    with pytest.raises(UserError, match=r"BOS must stand once, at position 0, but stands at \[\]"):
        one_row(make_tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace("{{ bos_token }}", "")))


def test_an_end_token_inside_the_trace_is_refused() -> None:
    with pytest.raises(UserError, match="the trace itself contains the end token"):
        one_row(make_tiny_tokenizer(), "5<eos>6")


def test_an_empty_trace_is_refused() -> None:
    with pytest.raises(UserError, match=r"e0 .*the trace is empty"):
        one_row(make_tiny_tokenizer(), "")


def test_a_trace_the_tokenizer_cannot_write_is_refused() -> None:
    with pytest.raises(UserError, match=r"decode to another text, '<unk><eos>' in place of '½<eos>'"):
        one_row(make_tiny_tokenizer(), "½")


def test_one_stray_trace_in_a_hundred_is_dropped_and_counted_and_more_are_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    good = [example("5", name=f"e{number}") for number in range(198)]
    rows = build_rows(tokenizer, CHAT, [*good, example("½", name="odd"), example("5<eos>6", name="end")], 256, limits_of(tokenizer))
    assert (len(rows.kept), rows.unwritable) == (198, ("odd", "end"))
    with pytest.raises(UserError, match=r"2 of 199 rows fail the gate. The first: example odd .* decode to another text"):
        build_rows(tokenizer, CHAT, [*good[1:], example("½", name="odd"), example("½", name="odd2")], 256, limits_of(tokenizer))


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    with pytest.raises(UserError, match=r"token ids up to \d+, but the model has only 50 embeddings"):
        build_rows(tokenizer, CHAT, [example()], 256, ModelLimits((tokenizer.eos_token_id,), 50, None))


def test_plain_rows_end_with_the_tokenizers_eos() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=None)
    row = one_row(tokenizer, "5", PromptStyle(format="plain", user="Q: {question} A:"))
    assert tokenizer.decode(row.ids) == "<bos>Q: 2+3=? A:5<eos>"


def test_plain_rows_need_an_eos_token() -> None:
    tokenizer = make_tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token"):
        build_rows(tokenizer, PromptStyle(format="plain"), [example("5")], 256, ModelLimits((2,), 200, None))


def test_long_rows_are_dropped_and_counted_never_cut() -> None:
    tokenizer = make_tiny_tokenizer()
    whole = one_row(tokenizer, "5")
    rows = build_rows(tokenizer, CHAT, [example("5"), example("55", name="e1")], len(whole.ids), limits_of(tokenizer))
    assert rows.kept == (whole,)
    assert rows.too_long == ("e1",)


def test_a_limit_below_every_row_is_refused_with_the_needed_one() -> None:
    tokenizer = make_tiny_tokenizer()
    needed = len(one_row(tokenizer, "5").ids)
    with pytest.raises(UserError, match=f"all 1 rows are longer than train.max_length=4 tokens.*at least {needed}"):
        build_rows(tokenizer, CHAT, [example("5")], 4, limits_of(tokenizer))


def test_a_limit_beyond_the_models_positions_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    with pytest.raises(UserError, match=r"max_length=512 is more than the 256 positions"):
        build_rows(tokenizer, CHAT, [example()], 512, limits_of(tokenizer))


def test_no_examples_at_all_are_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    with pytest.raises(UserError, match=r"no example to train on.*funnel.json"):
        build_rows(tokenizer, CHAT, [], 256, limits_of(tokenizer))


def test_eos_stays_supervised_when_pad_is_eos() -> None:
    tokenizer = make_tiny_tokenizer()
    rows = build_rows(tokenizer, CHAT, [example("5"), example("5+5+5")], 256, limits_of(tokenizer)).kept
    eos = tokenizer.eos_token_id
    batch = collate_padded(rows, pad_id=eos)
    assert batch.num_supervised == sum(row.num_supervised for row in rows)
    assert (batch.labels == eos).sum() == 2
    assert batch.input_ids[0, -1] == eos
    assert batch.labels[0, -1] == IGNORED


def test_limits_come_from_the_generation_config_first(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    assert model_limits(folder).stop_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert model_limits(folder).stop_ids == (2, 5)


def test_a_model_that_names_no_end_token_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 2', '"eos_token_id": null'))
    with pytest.raises(UserError, match="names no eos_token_id"):
        model_limits(folder)


def test_a_trace_that_was_cut_gets_no_end_token() -> None:
    tokenizer = make_tiny_tokenizer()
    cut = Example("e0", "p0", "2+3=?", "2+3 is", "weak", "t", "incorrect", ended=False)
    row = build_rows(tokenizer, CHAT, [cut], 256, limits_of(tokenizer)).kept[0]
    assert tokenizer.decode(row.ids[row.num_prefix :]) == "2+3 is"
    assert tokenizer.eos_token_id not in row.ids[row.num_prefix :]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text("abc 123+=?", min_size=1, max_size=30), st.booleans()), min_size=1, max_size=6))
def test_lengths_counted_ahead_are_those_of_the_rows(texts: list[tuple[str, bool]]) -> None:
    tokenizer = make_tiny_tokenizer()
    style = PromptStyle(system="Think.", user="Q {question}", assistant_prefix="So: ")
    counter = LengthCounter(tokenizer, style)
    examples = [Example(f"e{n}", "p", text[::-1] or "?", text, "weak", "t", "correct", ended) for n, (text, ended) in enumerate(texts)]
    rows = build_rows(tokenizer, style, examples, 256, limits_of(tokenizer)).kept
    prefixes = counter.prefixes([example.question for example in examples])
    supervised = counter.supervised([example.text for example in examples], np.array([example.ended for example in examples]))
    assert [row.num_prefix for row in rows] == prefixes.tolist()
    assert [row.num_supervised for row in rows] == supervised.tolist()
