"""Supervised rows: prefix, trace and end-of-sequence token, and the gate every row passes.

What always holds for a row that leaves this module:
- the chat template keeps the whole trace (a template that deletes what stands before `</think>` would train on answers only);
- the supervised tokens decode to exactly the trace and its end token, on which generation stops;
- the prefix is the one that evaluation generates from, and it holds the only BOS.
Loss is masked by position, never by token value, so a pad token that equals EOS hides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from w2sr.errors import UserError
from w2sr.prompting import Prefix, PromptStyle, messages_of, render_chat, render_prefixes, tokens_of
from w2sr.records import Example

# A stray trace that the tokenizer cannot write is dropped and counted; a larger share means that the tokenizer is the wrong one.
MAX_UNWRITABLE_SHARE = 0.01
THINK_OPENINGS = ("<think>\n", "<think>")
AT_ONCE = 256  # examples: the tokenizer makes some hundred bytes for each token of a batch
Item = TypeVar("Item")


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
    gate, tally = Gate(tokenizer, style, limits, max_length), Tally(max_length)
    kept: list[Row] = []
    for some in batched(examples, AT_ONCE):
        sifted = gate.sift(some)
        tally.add(len(sifted.kept), sifted)
        kept += sifted.kept
    tally.check()
    return Rows(tuple(kept), tuple(tally.too_long), tuple(tally.unwritable))


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


@dataclass(frozen=True, slots=True)
class Sifted:
    """What the gate made of some examples: the rows that fit, {example id: tokens} of those too long, {example id: why} of the others."""

    kept: list[Row]
    too_long: dict[str, int]
    unwritable: dict[str, str]


class Tally:
    """Counts what the gate dropped, over all examples of an arm."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.num_kept = 0
        self.too_long: dict[str, int] = {}
        self.unwritable: dict[str, str] = {}

    def add(self, num_kept: int, sifted: Sifted) -> None:
        """Count some more examples: so many became rows, the others are in `sifted`."""
        self.num_kept += num_kept
        self.too_long |= sifted.too_long
        self.unwritable |= sifted.unwritable

    def check(self) -> None:
        """Raise UserError when the examples seen make no training."""
        total = self.num_kept + len(self.too_long) + len(self.unwritable)
        if len(self.unwritable) > MAX_UNWRITABLE_SHARE * total:
            raise UserError(f"{len(self.unwritable)} of {total} rows fail the gate. The first: {next(iter(self.unwritable.values()))}")
        if self.num_kept:
            return
        if not self.too_long:
            raise UserError("there is no example to train on; look at curate/funnel.json for the reasons, or train other arms (train.arms)")
        shortest = min(self.too_long.values())
        raise UserError(
            f"all {len(self.too_long)} rows are longer than train.max_length={self.max_length} tokens; the shortest has {shortest}: raise "
            f"it to at least {shortest}"
        )


class _UnwritableError(UserError):
    """The tokenizer cannot write this one trace as supervised tokens."""


class Gate:
    """Builds rows for one tokenizer and style and checks each. Raises UserError when tokenizer or `max_length` do not fit the model."""

    def __init__(self, tokenizer: Any, style: PromptStyle, limits: ModelLimits, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.limits = limits
        self.max_length = max_length
        self._end_ids: dict[str, tuple[int, ...]] = {}
        self._bos_opens_turns = style.format == "chat" and _bos_opens_turns(tokenizer)
        if limits.max_positions is not None and max_length > limits.max_positions:
            raise UserError(
                f"train.max_length={max_length} is more than the {limits.max_positions} positions of the model; "
                f"set train.max_length to {limits.max_positions} or less"
            )
        if len(tokenizer) > limits.vocab_size and max(tokenizer.get_vocab().values()) >= limits.vocab_size:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path} has token ids up to {max(tokenizer.get_vocab().values())}, but the model has only "
                f"{limits.vocab_size} embeddings; use the tokenizer the model was trained with"
            )

    def sift(self, examples: Sequence[Example]) -> Sifted:
        """Return the checked rows of some examples, AT_ONCE at most, and what was dropped."""
        questions = list(dict.fromkeys(example.question for example in examples))  # a prompt has several traces
        prefixes = dict(zip(questions, render_prefixes(self.tokenizer, self.style, questions), strict=True))
        texts = tokens_of(self.tokenizer, [example.text for example in examples])
        rows, expected = [], []
        for example, text_ids in zip(examples, texts, strict=True):
            prefix = prefixes[example.question]
            end_text, end_id = self._end(example, prefix)
            # A trace that the token limit cut gets no end token: an end that is faked teaches to stop in mid-thought.
            end_ids, end_text = ((end_id,), end_text) if example.ended else ((), "")
            rows.append(Row(example.example_id, example.prompt_id, (*prefix.ids, *text_ids, *end_ids), len(prefix.ids)))
            expected.append(example.text + end_text)
        read = self.tokenizer.batch_decode(
            [list(row.ids[row.num_prefix :]) for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        sifted = Sifted([], {}, {})
        for row, text_ids, text, decoded in zip(rows, texts, expected, read, strict=True):
            try:
                self._check_tokens(row, text_ids, text, decoded)
            except _UnwritableError as error:
                sifted.unwritable[row.example_id] = str(error)
                continue
            if len(row.ids) <= self.max_length:
                sifted.kept.append(row)
            else:
                sifted.too_long[row.example_id] = len(row.ids)
        return sifted

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
        missing = self._missing_generation_prompt(example)
        if missing is not None:
            return (
                f"the chat template of {self.tokenizer.name_or_path} has no generation prompt: asked for one it writes nothing after the "
                f"question, but in a whole conversation the answer comes after {missing!r}. Trained or asked without that the student "
                "would not know whose turn it is. Let the template end with "
                f"{{% if add_generation_prompt %}}{{{{ {missing!r} }}}}{{% endif %}}, or set student.style.format: plain"
            )
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

    def _missing_generation_prompt(self, example: Example) -> str | None:
        """Return what stands between question and answer, if the template writes it in whole conversations only."""
        messages, mark = messages_of(self.style, example.question), "0"
        asked, unasked = (render_chat(self.tokenizer, messages, add_generation_prompt=prompt) for prompt in (True, False))
        whole = render_chat(self.tokenizer, [*messages, {"role": "assistant", "content": mark}], add_generation_prompt=False)
        if asked != unasked or not whole.startswith(asked):
            return None
        return whole[len(asked) :].partition(mark)[0] or None

    def _check_tokens(self, row: Row, text_ids: Sequence[int], supervised_text: str, decoded: str) -> None:
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
