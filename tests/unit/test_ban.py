"""Banned words in decoding, against oracles that look at whole texts: which tokens are forbidden, and what comes out of a model."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import make_tiny_model, make_tiny_tokenizer
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle, render_prefix
from w2sr.teachers.ban import Piece, State, WordBan, pieces_of
from w2sr.teachers.config import HFEngineConfig, SamplingConfig, TeacherConfig
from w2sr.teachers.decoding import decode
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.hf_engine import HFEngine
from w2sr.teachers.models import generator_spec
from w2sr.teachers.openai_config import OpenAIEngineConfig
from w2sr.teachers.rows import Row
from w2sr.teachers.sampling import choose_tokens, row_noise
from w2sr.textual.banned import occurrences

LETTER = r"[\p{L}\p{M}]"
WORDS = ["wait", "Let's", "let me", "été", ";", "4 +", "поэтому", "so"]
FRAGMENTS = ["w", "wa", "it", "wait", " wait", "ing", "waiting", "Wait", "a", "let", " me", "'s", "’s", "\n", "  ", " ", "é", "É", "t"]
FRAGMENTS += ["ét", ";", "+", "4", " +", "поэ", "тому", "П", "ﬁ", "so", "ſo", "SO", ".", "-", "", "me", "\ufffd", "await", "wait-", "é"]


def holds(text: str, words: list[str]) -> bool:
    """An oracle: the whole text against a regular expression for each word."""
    read = text.casefold().replace("’", "'")
    return any(_expression(word).search(read) for word in words)


@cache
def _expression(word: str) -> Any:
    body = r"\s+".join(regex.escape(part) for part in word.casefold().replace("’", "'").split())
    left = rf"(?<!{LETTER})" if regex.match(LETTER, word) else ""
    right = rf"(?!{LETTER})" if regex.search(rf"{LETTER}$", word) else ""
    return regex.compile(left + body + right)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join), st.lists(st.sampled_from(WORDS), min_size=1, unique=True))
def test_a_text_holds_a_word_as_a_regular_expression_finds_it(text: str, words: list[str]) -> None:
    assert any(occurrences([text], words).values()) == holds(text, words)


def test_what_counts_as_the_word_and_what_does_not() -> None:
    inside = ["wait", "Wait, no", "WAIT!", "wait2", "a-wait", "(wait)", "wait\u200b", "so wait"]
    outside = ["waiting", "await", "wa it", "wait\u0301", "we"]
    assert [occurrences([text], ["wait"])["wait"] for text in inside] == [1] * len(inside)
    assert [occurrences([text], ["wait"])["wait"] for text in outside] == [0] * len(outside)
    assert occurrences(["let \n me; LET’S let me see; ;;"], ["let me", "let's", ";"]) == {"let me": 2, "let's": 1, ";": 4}


pieces_strategy = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS).map(str.encode),
        # Parts of characters, as byte-level vocabularies have them.
        st.sampled_from(["é", "поэ", "wait—", "’", "ﬁ", "🙂 so"]).flatmap(
            lambda text: st.tuples(st.integers(0, 3), st.integers(1, 9)).map(lambda cut: text.encode()[cut[0] : cut[0] + cut[1]])
        ),
    ),
    min_size=3,
    max_size=25,
)


@settings(max_examples=80)
@given(pieces_strategy, st.lists(st.sampled_from(WORDS), min_size=1, unique=True), st.randoms(use_true_random=False))
@example([b"w", b"ait", b"wait\xc3", b"\xa9", b"\xc3"], ["wait", "été"], random.Random(0))
def test_a_token_is_forbidden_exactly_if_the_text_after_it_holds_a_banned_word(
    pieces: list[bytes], words: list[str], choose: random.Random
) -> None:
    ban = WordBan([Piece(piece) for piece in pieces], words, frozenset())
    written, state = b"", State()
    for _ in range(12):
        forbidden = set(ban.forbidden(state).tolist())
        expected = {number for number, piece in enumerate(pieces) if piece and holds((written + piece).decode(errors="replace"), words)}
        assert forbidden == expected, written
        allowed = sorted(set(range(len(pieces))) - forbidden)
        if not allowed:
            return
        token = choose.choice(allowed)
        written, state = written + pieces[token], ban.after(state, token)


def trained(byte_level: bool) -> Any:
    """A real tokenizer: byte-level as GPT-2's, or with a mark for spaces and bytes to fall back to as sentencepiece's."""
    texts = ["wait, été so let me see — 4 + 3 = 7; waiting for it, perhaps 🙂 поэтому"] * 20
    texts += ["a waiting"] * 200  # often enough to be one token, whichever of equal pairs the trainer takes first
    if byte_level:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"])
    else:
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        specials = ["<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, limit_alphabet=30, special_tokens=specials)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("byte_level", [True, False])
def test_real_tokenizers_write_nothing_banned_whatever_they_choose(byte_level: bool) -> None:
    tokenizer = trained(byte_level)
    pieces, choose = pieces_of(tokenizer, len(tokenizer)), random.Random(3)
    assert len(pieces) == len(tokenizer)
    assert any(piece.alone for piece in pieces) is not byte_level
    ban = WordBan(pieces, WORDS, frozenset())
    head = tokenizer.encode("a", add_special_tokens=False)
    start, blocked = len(tokenizer.decode(head)), 0
    # Whole words and their beginnings as the tokenizer cuts them, and any token at all, bytes among them.
    spelt = [[*tokenizer.encode(text, add_special_tokens=False)] for word in WORDS for text in (word, f" {word}", word.upper(), f"x{word}")]
    for _ in range(60):
        ids, state = list(head), State()
        for _ in range(12):
            tries = choose.choice(spelt) if choose.random() < 0.5 else choose.choices(range(len(pieces)), k=2)
            for token in tries[: choose.randint(1, len(tries))]:
                if token in ban.forbidden(state):
                    blocked += 1
                    break
                ids, state = [*ids, token], ban.after(state, token)
        assert not holds(tokenizer.decode(ids)[start:], WORDS)
    assert blocked > 100, "the ban had little to do"
    state = State()
    for token in tokenizer.encode(" waiting", add_special_tokens=False):
        assert token not in ban.forbidden(state)
        state = ban.after(state, token)


def test_a_tokenizer_whose_tokens_depend_on_their_neighbours_is_refused() -> None:
    tokenizer = make_tiny_tokenizer("ab ")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])
    with pytest.raises(UserError, match="a ban could not be promised; leave banned_words out for this model"):
        pieces_of(tokenizer, len(tokenizer))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    # Few characters, so that words come about by chance.
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), characters="abot ;", std=0.05)
    sampling = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=40)
    return HFEngine(GeneratorSpec("tiny", str(folder), "digest", PromptStyle(), sampling, HFEngineConfig()), "cpu")


REQUESTS = [Request(f"t{number}", f"p{number}", 0, number, "ab" * (number % 4), number) for number in range(24)]


def complete(engine: HFEngine, **changes: Any) -> list[Completion]:
    engine.serve(replace(engine.spec, sampling=engine.spec.sampling.model_copy(update={"banned_words": [], **changes})))
    return asyncio.run(engine.complete(REQUESTS))


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_under_a_ban_a_model_chooses_among_the_tokens_that_are_left(engine: HFEngine, temperature: float) -> None:
    free = complete(engine, temperature=temperature)
    written = {completion.text.split()[0] for completion in free if completion.text.strip()} if temperature == 0 else set()
    banned = ["a", "Bo", "tt o", ";;", *sorted(written - {"a"})]
    found = complete(engine, temperature=temperature, banned_words=banned)
    assert any(holds(completion.text, banned) for completion in free), "without a ban they are written"
    for request, completion in list(zip(REQUESTS, found, strict=True))[:3]:
        assert completion.token_ids in (tuple(_decode_alone(engine, request, banned)), None)
    assert not any(holds(completion.text, banned) for completion in found)
    assert sum(completion.num_tokens for completion in found) > 200
    assert complete(engine, temperature=temperature) == free, "the ban is gone with its generator"


def _decode_alone(engine: HFEngine, request: Request, banned: list[str]) -> list[int]:
    """The reference: one row without a cache; every token is tried on the text and looked for banned words."""
    sampling, tokenizer = engine.spec.sampling, engine.tokenizer
    prefix = list(render_prefix(tokenizer, engine.spec.style, request.question).ids)
    noise = torch.from_numpy(row_noise([request.seed], sampling.max_new_tokens))
    new: list[int] = []
    while len(new) < sampling.max_new_tokens:
        with torch.no_grad():
            logits = engine.network(torch.tensor([prefix + new])).logits[:, -1].float()
        for token in set(range(len(tokenizer))) - {tokenizer.eos_token_id}:
            if holds(tokenizer.decode([*new, token]), banned):
                logits[0, token] = float("-inf")
        new.append(int(choose_tokens(logits, noise[:, len(new)], sampling.temperature, sampling.top_p)))
        if new[-1] == tokenizer.eos_token_id:
            break
    return new


def test_when_every_token_is_forbidden_the_row_says_so_and_ends(engine: HFEngine) -> None:
    size = len(engine.tokenizer)
    ban = WordBan([Piece(b"a b" if token % 2 else b"a ") for token in range(size)], ["b", "a a"], frozenset())
    rows = [Row(engine.rows.row(request).prefix, request.seed, 5) for request in REQUESTS[:3]]
    decode(engine.network, rows, engine.spec.sampling, frozenset(), 0, ban)
    assert [row.error for row in rows] == ["every token would complete a banned word at generated token 2"] * 3
    assert [engine.rows.completion(row).finish_reason for row in rows] == ["error"] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["so", ""], "banned word '' is empty or begins or ends with a space"),
        ([" so"], "banned word ' so' is empty or begins or ends with a space"),
        (["let me", "Let  ME"], r"banned word 'Let  ME' is given twice \('let me'\)"),
    ],
)
def test_lists_that_say_nothing_or_the_same_twice_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(max_new_tokens=1, banned_words=words)


def test_a_ban_is_part_of_the_samplings_identity() -> None:
    assert SamplingConfig(max_new_tokens=8).identity() != SamplingConfig(max_new_tokens=8, banned_words=["so"]).identity()


def test_engines_that_cannot_be_held_to_a_ban_refuse_it(tmp_path: Path) -> None:
    sampling = {"max_new_tokens": 8, "banned_words": ["so"]}
    endpoint = {"kind": "openai", "base_url": "http://localhost:1/v1"}
    with pytest.raises(ValueError, match=r"an endpoint chooses its tokens itself .* allowed engines: hf, vllm"):
        TeacherConfig.model_validate({"name": "far", "model": "m", "engine": endpoint, "sampling": sampling})
    recorded = {"kind": "recorded", "path": str(tmp_path / "x.jsonl")}
    with pytest.raises(ValueError, match="recorded traces are what they are"):
        TeacherConfig.model_validate({"name": "old", "engine": recorded, "sampling": sampling})
    engine = OpenAIEngineConfig.model_validate(endpoint)
    with pytest.raises(UserError, match=r"generator far: banned_words: an endpoint chooses its tokens itself"):
        generator_spec("far", "m", engine, PromptStyle(), SamplingConfig.model_validate(sampling))
