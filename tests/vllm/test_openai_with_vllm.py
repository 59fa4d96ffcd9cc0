"""The openai engine against vLLM's own server: what it says of itself, its refusals, and faults on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from cluster.errors import RetryLater
from tests.endpoint.conftest import faulty_proxy
from tests.vllm.server import Server
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.teachers.config import OpenAIEngineConfig, SamplingConfig
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.openai_engine import OpenAIEngine

T = TypeVar("T")
QUESTIONS = [f"What is {number} + {number + 2}?" for number in range(6)]


def request_of(number: int, question: str | None = None, seed: int | None = None) -> Request:
    return Request(f"t{number}", f"p{number}", 0, number, question or QUESTIONS[number], 10 + number if seed is None else seed)


def with_engine(url: str, model: str, use: Callable[[OpenAIEngine], Awaitable[T]]) -> T:
    config = OpenAIEngineConfig(kind="openai", base_url=url, backoff_s=0.1, timeout_s=20, extra_body={"return_token_ids": True})
    sampling = SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=12)
    spec = GeneratorSpec("weak", model, "digest", PromptStyle(system="Be brief."), sampling, config)

    async def run() -> T:
        engine = await OpenAIEngine.start(spec, config)
        try:
            return await asyncio.wait_for(use(engine), 500)
        finally:
            engine.close()

    return asyncio.run(run())


async def one_by_one(engine: OpenAIEngine) -> list[Completion]:
    """Complete all questions with one request at a time: alone in its batch, vLLM answers a seed with the same bits."""
    completions = []
    for number in range(len(QUESTIONS)):
        while len(completions) == number:
            try:
                completions += await engine.complete([request_of(number)])
            except RetryLater as later:
                await asyncio.sleep(later.after_s)
    return completions


@pytest.fixture(scope="module")
def calm(server: Server) -> list[Completion]:
    return with_engine(server.base_url, server.model, one_by_one)


def test_vllm_says_what_it_is_and_what_it_made(server: Server, calm: list[Completion]) -> None:
    async def look(engine: OpenAIEngine) -> tuple[str, str, list[list[Completion]]]:
        again = await asyncio.gather(*(engine.complete([request_of(0, seed=seed)]) for seed in (1, 2, 3)))
        return engine.version, engine.model, again

    version, model, again = with_engine(server.base_url, server.model, look)
    assert version.startswith("vllm 0.")
    assert model.startswith(server.model)
    assert len({completions[0].text for completions in again}) > 1
    for completion in calm:
        assert completion.finish_reason in ("stop", "length")
        assert completion.num_prompt_tokens > 10
        assert completion.token_ids is not None
        assert 0 < len(completion.token_ids) == completion.num_tokens <= 12


def test_faults_on_the_way_to_vllm_change_nothing(server: Server, calm: list[Completion]) -> None:
    upstream = int(server.base_url.split(":")[2].split("/")[0])
    with faulty_proxy(upstream, seed=2) as proxy:
        assert with_engine(proxy.url, server.model, one_by_one) == calm
        assert sum(proxy.faults().values()) >= len(QUESTIONS) / 2


def test_a_prompt_beyond_vllms_context_is_a_recorded_outcome(server: Server) -> None:
    (completion,) = with_engine(server.base_url, server.model, lambda engine: engine.complete([request_of(0, "one two " * 600)]))
    assert completion.finish_reason == "error"
    assert (completion.error or "").startswith("the endpoint refused the prompt: HTTP 400: ")


def test_vllm_does_not_know_another_model(server: Server) -> None:
    with pytest.raises(UserError, match=rf"does not know the model 'another'.*Models there: {server.model}\. Correct `model`"):
        with_engine(server.base_url, "another", one_by_one)
