"""Supervised rows: prefix, trace and end-of-sequence token, and the gate every row passes.

What always holds for a row that leaves this module:
- the chat template keeps the whole trace (a template that deletes what stands before `</think>` would train on answers only);
- the supervised tokens decode to exactly the trace and its end token, on which generation stops;
- the prefix is the one that evaluation generates from, and it holds the only BOS.
Loss is masked by position, never by token value, so a pad token that equals EOS hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.prompting import Prefix, PromptStyle, messages_of, render_chat, render_prefix
from w2sr.records import Example

# A stray trace that the tokenizer cannot write is dropped and counted; a larger share means that the tokenizer is the wrong one.
MAX_UNWRITABLE_SHARE = 0.01
THINK_OPENINGS = ("<think>\n", "<think>")


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one example; the first `num_prefix` are not supervised, all others (trace, EOS) are, with `weight` in the loss."""

    example_id: str
    prompt_id: str
    ids: tuple[int, ...]
    num_prefix: int
    weight: float = 1.0

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return len(self.ids) - self.num_prefix


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that fit, and the ids of the examples dropped: longer than the limit, or not to be written by the tokenizer."""

    kept: tuple[Row, ...]
    too_long: tuple[str, ...]
    unwritable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a row must respect: the tokens on which generation stops, the number of token embeddings and of positions (None: unknown)."""

    stop_ids: tuple[int, ...]
    vocab_size: int
    max_positions: int | None


def model_limits(folder: str | Path) -> ModelLimits:
    """Read the limits from a model's config.json and generation_config.json; raises UserError when it names no end token."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    eos = config.eos_token_id
    if (Path(folder) / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(folder).eos_token_id or eos
    if eos is None:
        raise UserError(f"model {folder} names no eos_token_id in generation_config.json or config.json; add the id on which it shall stop")
    stop_ids = tuple(eos) if isinstance(eos, list) else (int(eos),)
    return ModelLimits(stop_ids, int(config.vocab_size), getattr(config, "max_position_embeddings", None))


def build_rows(tokenizer: Any, style: PromptStyle, examples: Iterable[Example], max_length: int, limits: ModelLimits) -> Rows:
    """Return the gated rows of `examples`, in order.

    `max_length` counts all tokens of a row. Longer rows are dropped, never cut; so is a row whose trace the tokenizer cannot write (empty,
    with an end token inside, or read back as another text). Raises UserError when the template or the tokenizer fails the gate, when more
    than MAX_UNWRITABLE_SHARE of the rows cannot be written, when there is no example, or when no row fits.
    """
    if limits.max_positions is not None and max_length > limits.max_positions:
        raise UserError(
            f"train.max_length={max_length} is more than the {limits.max_positions} positions of the model; "
            f"set train.max_length to {limits.max_positions} or less"
        )
    gate = _Gate(tokenizer, style, limits)
    kept: list[Row] = []
    too_long: list[str] = []
    unwritable: dict[str, _UnwritableError] = {}
    shortest = 0
    for example in examples:
        try:
            row = gate.row(example)
        except _UnwritableError as error:
            unwritable[example.example_id] = error
            continue
        if len(row.ids) <= max_length:
            kept.append(row)
        else:
            too_long.append(row.example_id)
            shortest = min(shortest or len(row.ids), len(row.ids))
    _refuse_many(unwritable, len(kept) + len(too_long) + len(unwritable))
    if not kept:
        if not too_long:
            raise UserError("there is no example to train on; look at curate/funnel.json for the reasons, or train other arms (train.arms)")
        raise UserError(
            f"all {len(too_long)} rows are longer than train.max_length={max_length} tokens; the shortest has {shortest}: raise it to at "
            f"least {shortest}"
        )
    return Rows(tuple(kept), tuple(too_long), tuple(unwritable))


class _UnwritableError(UserError):
    """The tokenizer cannot write this one trace as supervised tokens."""


def _refuse_many(unwritable: dict[str, _UnwritableError], total: int) -> None:
    if len(unwritable) > MAX_UNWRITABLE_SHARE * total:
        raise UserError(f"{len(unwritable)} of {total} rows fail the gate. The first: {next(iter(unwritable.values()))}")


class _Gate:
    """Builds rows for one tokenizer and style and checks each; prefixes are remembered, since a prompt has several traces."""

    def __init__(self, tokenizer: Any, style: PromptStyle, limits: ModelLimits) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.limits = limits
        self._prefix: tuple[str, Prefix] | None = None
        self._end_ids: dict[str, tuple[int, ...]] = {}
        self._bos_opens_turns = style.format == "chat" and _bos_opens_turns(tokenizer)
        if len(tokenizer) > limits.vocab_size and max(tokenizer.get_vocab().values()) >= limits.vocab_size:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path} has token ids up to {max(tokenizer.get_vocab().values())}, but the model has only "
                f"{limits.vocab_size} embeddings; use the tokenizer the model was trained with"
            )

    def row(self, example: Example) -> Row:
        """Return the checked row of one example."""
        prefix = self._render(example.question)
        end_text, end_id = self._end(example, prefix)
        text_ids = tuple(self.tokenizer.encode(example.text, add_special_tokens=False))
        # A trace that the token limit cut gets no end token: an end that is faked teaches to stop in mid-thought.
        end_ids, end_text = ((end_id,), end_text) if example.ended else ((), "")
        row = Row(example.example_id, example.prompt_id, (*prefix.ids, *text_ids, *end_ids), len(prefix.ids))
        self._check_tokens(row, text_ids, example.text + end_text)
        return row

    def _render(self, question: str) -> Prefix:
        if self._prefix is None or self._prefix[0] != question:
            self._prefix = (question, render_prefix(self.tokenizer, self.style, question))
        return self._prefix[1]

    def _end(self, example: Example, prefix: Prefix) -> tuple[str, int]:
        """Return text and id of the token that ends the answer; proves on the way that the template keeps the reasoning."""
        if self.style.format == "plain":
            end = self.tokenizer.eos_token
            if end is None:
                raise UserError(
                    f"tokenizer {self.tokenizer.name_or_path} has no eos_token, so no row can end; set one in tokenizer_config.json"
                )
        else:
            end = self._template_end(example, prefix)
        ids = self._ids_of_end(end)
        if len(ids) != 1 or ids[0] not in self.limits.stop_ids:
            raise UserError(
                f"an answer ends with {end!r} (token ids {list(ids)}), but generation of this model stops on "
                f"{list(self.limits.stop_ids)}: the student would never learn to stop. Add the id to eos_token_id in "
                "generation_config.json, or use a chat template that ends with a stop token"
            )
        return end, ids[0]

    def _ids_of_end(self, text: str) -> tuple[int, ...]:
        if text not in self._end_ids:
            self._end_ids[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._end_ids[text]

    def _template_end(self, example: Example, prefix: Prefix) -> str:
        messages = messages_of(self.style, example.question)
        # A generation prompt may open the think block itself; then the answer in a full conversation has to begin with it.
        head = prefix.text.removesuffix(self.style.assistant_prefix) if self.style.assistant_prefix else prefix.text
        openings = ["", *(opening for opening in THINK_OPENINGS if head.endswith(opening))]
        whole = ""
        for opening in openings:
            answer = opening + self.style.assistant_prefix + example.text
            whole = render_chat(self.tokenizer, [*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            # Templates trim white space around an answer; that loses no reasoning.
            for text in (example.text, example.text.rstrip(), example.text.strip()):
                if whole.startswith(prefix.text + text):
                    rest = whole[len(prefix.text) + len(text) :].strip()
                    if rest and len(self._ids_of_end(rest)) == 1:
                        return rest
        raise UserError(self._explain_template(example, prefix.text + example.text, whole))

    def _explain_template(self, example: Example, expected: str, found: str) -> str:
        same = next((place for place, (one, other) in enumerate(zip(expected, found)) if one != other), min(len(expected), len(found)))
        if same == len(expected):
            what = f"puts {found[same : same + 60]!r} after it, where one end-of-turn token is needed"
        else:
            what = f"does not keep it: where {expected[same : same + 60]!r} should stand it writes {found[same : same + 60]!r}"
        return (
            f"the chat template of {self.tokenizer.name_or_path} alters the answer of example {example.example_id}: it {what}. A student "
            "trained so would not learn the reasoning. Give the model a chat_template.jinja that keeps the whole answer and ends it with "
            "its end token, or write what the template inserts into student.style.assistant_prefix, or set student.style.format: plain"
        )

    def _check_tokens(self, row: Row, text_ids: Sequence[int], supervised_text: str) -> None:
        where = f"example {row.example_id} with tokenizer {self.tokenizer.name_or_path}"
        if not text_ids:
            raise _UnwritableError(f"{where}: the trace is empty, only the end token would be supervised; remove the example")
        stop = next((token for token in text_ids if token in self.limits.stop_ids), None)
        if stop is not None:
            raise _UnwritableError(f"{where}: the trace itself contains the end token (id {stop}); remove the token from the text")
        bos = self.tokenizer.bos_token_id
        # A second BOS is looked for up to the last token: some tokenizers have one token for BOS and EOS. Others open every turn with BOS.
        second = row.ids[1:2] + tuple(text_ids) if self._bos_opens_turns else row.ids[1:-1]
        if bos is not None and (row.ids[0] != bos or bos in second):
            places = [place for place, token in enumerate(row.ids) if token == bos]
            raise UserError(f"{where}: BOS must stand once, at position 0, but stands at {places}; correct the chat template or the text")
        decoded = self.tokenizer.decode(row.ids[row.num_prefix :], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if decoded != supervised_text:
            same = next((i for i, (a, b) in enumerate(zip(decoded, supervised_text)) if a != b), min(len(decoded), len(supervised_text)))
            raise _UnwritableError(
                f"{where}: the supervised tokens decode to another text, {decoded[same : same + 40]!r} in place of "
                f"{supervised_text[same : same + 40]!r}; the tokenizer cannot write this trace: change the text or the tokenizer"
            )


def _bos_opens_turns(tokenizer: Any) -> bool:
    """Whether the chat template writes BOS in front of every turn (SmolLM2 does), not only at the start."""
    messages = [{"role": "user", "content": "a"}]
    before, after = (render_chat(tokenizer, messages, add_generation_prompt=prompt) for prompt in (False, True))
    return bool(tokenizer.bos_token) and tokenizer.bos_token in after[len(before) :]
