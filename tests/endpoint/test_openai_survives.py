"""The openai engine against `transformers serve`, with a process in between that makes faults."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

import pytest

from cluster.errors import RetryLater
from tests.endpoint.conftest import MODEL, FaultyProxy, Server, free_port
from tests.endpoint.faulty_proxy import KINDS
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.teachers.config import OpenAIEngineConfig, SamplingConfig
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.openai_engine import OpenAIEngine

NUM_REQUESTS = 48
IN_FLIGHT = 8
ASK = "State the final answer to the following arithmetic problem: "
QUESTIONS = [f"{ASK}{a} + {b} - {c} + {a} =" for a in range(4) for b in range(4) for c in range(3)]


def request_of(number: int) -> Request:
    return Request(f"t{number}", f"p{number}", 0, number, QUESTIONS[number], number)


def spec_of(url: str, **values: object) -> tuple[GeneratorSpec, OpenAIEngineConfig]:
    settings = {"backoff_s": 0.1, "timeout_s": 5, "max_retries": 5, "max_in_flight": IN_FLIGHT} | values
    config = OpenAIEngineConfig(kind="openai", base_url=url, **settings)
    # Greedy: `transformers serve` seeds all its requests together.
    sampling = SamplingConfig(temperature=0, max_new_tokens=64)
    return GeneratorSpec("weak", MODEL, "digest", PromptStyle(system="Think step by step."), sampling, config), config


async def drive(engine: OpenAIEngine, max_retries: int) -> tuple[list[tuple[int, Completion]], int]:
    """Complete all requests as the pool does: a bounded number at a time, those to be tried later waiting aside.

    Return what came back, with the request's number, in the order of coming, and how often a request was put off.
    """
    fresh, delayed, put_off = list(range(NUM_REQUESTS))[::-1], [], dict.fromkeys(range(NUM_REQUESTS), 0)
    running: dict[asyncio.Task[list[Completion]], int] = {}
    finished = []
    loop = asyncio.get_running_loop()
    while fresh or delayed or running:
        while len(running) < IN_FLIGHT and (fresh or (delayed and delayed[0][0] <= loop.time())):
            number = heapq.heappop(delayed)[1] if delayed and delayed[0][0] <= loop.time() else fresh.pop()
            running[asyncio.create_task(engine.complete([request_of(number)]))] = number
        done, _ = await asyncio.wait(running, timeout=0.05, return_when=asyncio.FIRST_COMPLETED) if running else (set(), 0)
        if not running:
            await asyncio.sleep(0.05)
        for task in done:
            number = running.pop(task)
            try:
                finished.append((number, task.result()[0]))
            except RetryLater as later:
                put_off[number] += 1
                heapq.heappush(delayed, (loop.time() + later.after_s, number))
    assert max(put_off.values()) <= max_retries, "a request would have been given up"
    return finished, sum(put_off.values())


def run(url: str) -> tuple[list[tuple[int, Completion]], int]:
    async def go() -> tuple[list[tuple[int, Completion]], int]:
        spec, config = spec_of(url)
        engine = await OpenAIEngine.start(spec, config)
        try:
            return await asyncio.wait_for(drive(engine, config.max_retries), 60)
        finally:
            engine.close()

    return asyncio.run(go())


@pytest.fixture(scope="module")
def calm(server: Server) -> dict[int, Completion]:
    finished, put_off = run(server.url)
    assert put_off == 0
    return dict(finished)


def test_the_real_server_answers_with_reasons_and_counts(calm: dict[int, Completion]) -> None:
    assert len(calm) == NUM_REQUESTS
    assert {completion.finish_reason for completion in calm.values()} == {"stop"}
    assert len({completion.text for completion in calm.values()}) > NUM_REQUESTS / 2
    assert all(completion.num_tokens > 3 and completion.num_prompt_tokens > 5 for completion in calm.values())


def test_every_request_ends_as_in_the_calm_run_whatever_happens_on_the_way(
    calm: dict[int, Completion], faulty: Callable[[int], FaultyProxy]
) -> None:
    proxy = faulty(1)
    finished, put_off = run(proxy.url)
    faults = proxy.faults()
    assert set(faults) == set(KINDS), faults
    assert put_off >= NUM_REQUESTS / 2
    assert sorted(number for number, _ in finished) == list(range(NUM_REQUESTS))  # none lost, none twice
    assert dict(finished) == calm


def test_an_endpoint_that_is_down_ends_the_start_with_a_clear_message() -> None:
    spec, config = spec_of(f"http://127.0.0.1:{free_port()}/v1", max_retries=2)
    with pytest.raises(UserError, match=r"has answered no request in 3 tries \(max_retries = 2\), the last time: no connection.*run again"):
        asyncio.run(OpenAIEngine.start(spec, config))


def test_a_model_that_is_not_served_is_said_before_any_prompt(server: Server) -> None:
    spec, config = spec_of(server.url)
    other = GeneratorSpec("weak", "another/model", "digest", spec.style, spec.sampling, config)
    with pytest.raises(UserError, match=r"refuses a short question to 'another/model' \(HTTP 400: Server is pinned to"):
        asyncio.run(OpenAIEngine.start(other, config))


def test_a_wrong_path_is_said(server: Server) -> None:
    spec, config = spec_of(server.url.removesuffix("/v1"))
    with pytest.raises(UserError, match=r"has no such path \(HTTP 404\). Check base_url \(most endpoints have a path /v1"):
        asyncio.run(OpenAIEngine.start(spec, config))
