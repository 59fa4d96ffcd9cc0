"""The engine that asks an endpoint: probing, what a completion becomes, whose fault a failure is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from cluster.errors import RetryLater
from tests.unit.endpoint import OK, Endpoint, answer, http, request_of, spec_of
from w2sr.errors import UserError
from w2sr.teachers.config import OpenAIEngineConfig, TeacherConfig
from w2sr.teachers.engine import Completion
from w2sr.teachers.openai_engine import OpenAIEngine, OpenAIWorkerFactory, check_openai, completion_of
from w2sr.teachers.openai_reply import Reply

T = TypeVar("T")
FORMAT = "<think>\n{reasoning}\n</think>\n\n{content}"


def with_engine(endpoint: Endpoint, use: Callable[[OpenAIEngine], Awaitable[T]], style: dict[str, Any] | None = None, **values: Any) -> T:
    async def run() -> T:
        async with endpoint:
            config = endpoint.config(**values)
            engine = await OpenAIEngine.start(spec_of(config, **(style or {})), config)
            try:
                return await asyncio.wait_for(use(engine), 20)
            finally:
                engine.close()

    return asyncio.run(run())


def reply(content: str = "2", finish_reason: str = "stop", reasoning: str = "", refusal: str | None = None) -> Reply:
    return Reply(content, reasoning, refusal, finish_reason, 5, 7, "tiny", "", None)


def test_the_engine_probes_then_asks_in_its_style() -> None:
    endpoint = Endpoint(OK)
    completion = with_engine(endpoint, lambda engine: engine.complete([request_of(3)]), {"system": "Think.", "user": "Q: {question}"})
    assert completion == [Completion("2", "stop", 5, 2)]
    probe, asked = endpoint.asked
    assert probe["max_tokens"] == 16
    assert asked["max_tokens"] == 64
    assert asked["seed"] == 1003
    assert asked["messages"] == [{"role": "system", "content": "Think."}, {"role": "user", "content": "Q: What is 3 + 1?"}]
    assert {**probe, "messages": 0, "max_tokens": 0, "seed": 0} == {**asked, "messages": 0, "max_tokens": 0, "seed": 0}


def test_plain_text_goes_through_the_text_interface_with_its_prefix() -> None:
    endpoint = Endpoint(http(200, {"choices": [{"text": " 4", "finish_reason": "stop"}]}))
    style = {"format": "plain", "user": "Q: {question}\nA:", "assistant_prefix": " So"}
    completion = with_engine(endpoint, lambda engine: engine.complete([request_of(3)]), style, api="completions")
    assert completion[0].text == " 4"
    assert endpoint.asked[1]["prompt"] == "Q: What is 3 + 1?\nA: So"


def test_what_serves_and_which_model_are_recorded() -> None:
    async def look(engine: OpenAIEngine) -> tuple[str, str, str]:
        await engine.complete([request_of(1)])
        return engine.name, engine.version, engine.model

    served = Endpoint(
        OK, http(200, answer() | {"system_fingerprint": "fp_9"}), got=http(200, {"data": [{"id": "tiny", "owned_by": "sglang"}]})
    )
    assert with_engine(served, look) == ("openai", "sglang", "tiny (fp_9)")
    assert with_engine(Endpoint(OK), look) == ("openai", "unknown server", "tiny")
    both = http(200, {"data": [{"id": "tiny", "owned_by": "vllm"}], "version": "0.32.0"})  # the list of models, and /version
    assert with_engine(Endpoint(OK, got=both), look)[1] == "vllm 0.32.0"


def test_the_template_hash_follows_what_we_send() -> None:
    async def look(engine: OpenAIEngine) -> str:
        return engine.template_hash

    styles: list[dict[str, Any]] = [{}, {"system": "Think."}, {}]
    found = [with_engine(Endpoint(OK), look, style, extra_body=extra) for style, extra in zip(styles, ({}, {}, {"top_k": 1}))]
    assert len(set(found)) == 3
    assert found[0] == with_engine(Endpoint(OK), look)


def test_a_probe_that_is_refused_stops_the_run_before_a_prompt_is_sent() -> None:
    endpoint = Endpoint(http(400, {"error": {"message": "unknown field top_k"}}))
    with pytest.raises(UserError, match=r"refuses a short question to 'tiny' \(HTTP 400: unknown field top_k\). Check `model`, `sampling`"):
        with_engine(endpoint, lambda engine: engine.complete([request_of(1)]))
    assert len(endpoint.asked) == 1


def test_a_probe_waits_for_an_endpoint_that_comes_up() -> None:
    endpoint = Endpoint(http(503), http(503), OK)
    assert with_engine(endpoint, lambda engine: engine.complete([request_of(1)]))[0].text == "2"


def test_a_prompt_that_is_refused_is_a_recorded_outcome() -> None:
    endpoint = Endpoint(OK, http(400, {"error": {"message": "4097 tokens, context 4096"}}))
    completion = with_engine(endpoint, lambda engine: engine.complete([request_of(1)]))
    assert completion == [Completion("", "error", 0, 0, "the endpoint refused the prompt: HTTP 400: 4097 tokens, context 4096")]


def test_a_fault_goes_back_to_the_dispatcher_with_its_wait_and_the_next_try_waits_longer() -> None:
    async def twice(engine: OpenAIEngine) -> list[float]:
        waits = []
        for _ in range(2):
            with pytest.raises(RetryLater, match="HTTP 500") as caught:
                await engine.complete([request_of(1)])
            waits.append(caught.value.after_s)
        return waits

    waits = with_engine(Endpoint(OK, http(500)), twice, backoff_s=1)
    assert 0.5 <= waits[0] <= 1.5
    assert 1.0 <= waits[1] <= 3.0
    assert waits == with_engine(Endpoint(OK, http(500)), twice, backoff_s=1)


def test_a_prompt_on_which_a_healthy_endpoint_always_fails_is_recorded_after_its_tries() -> None:
    async def poisoned(engine: OpenAIEngine) -> Completion:
        for _ in range(2):
            with pytest.raises(RetryLater):
                await engine.complete([request_of(1)])
            assert (await engine.complete([request_of(2)]))[0].text == "2"
        return (await engine.complete([request_of(1)]))[0]

    completion = with_engine(Endpoint(OK, http(500), OK, http(500), OK, http(500)), poisoned)
    assert completion.finish_reason == "error"
    assert (completion.error or "").startswith("no answer in 3 tries, between which the endpoint answered others: ")


@pytest.mark.parametrize(("fault", "answered"), [(http(429), True), (http(503), True), (http(500), False)])
def test_an_outage_or_a_rate_limit_is_never_held_against_a_prompt(fault: bytes, answered: bool) -> None:
    async def unlucky(engine: OpenAIEngine) -> None:
        for _ in range(4):
            with pytest.raises(RetryLater):
                await engine.complete([request_of(1)])
            if answered:
                await engine.complete([request_of(2)])

    with_engine(Endpoint(*([OK] + [fault, OK] * 4 if answered else [OK, fault])), unlucky)


def test_several_requests_come_back_in_order_and_a_fault_of_one_leaves_no_other_running() -> None:
    async def several(engine: OpenAIEngine) -> list[Completion]:
        with pytest.raises(RetryLater):
            await engine.complete([request_of(1), request_of(2), request_of(3)])
        assert not engine.client._slots.locked()
        return await engine.complete([request_of(1), request_of(2)])

    completions = with_engine(Endpoint(OK, OK, http(500), OK), several)
    assert [completion.text for completion in completions] == ["2", "2"]


def test_a_worker_is_made_for_the_spec() -> None:
    async def run() -> str:
        async with Endpoint(OK) as endpoint:
            worker = OpenAIWorkerFactory()()
            await worker.load(spec_of(endpoint.config()))
            made = await worker.run([request_of(1)])
            await worker.close()
            return f"{made.engine} {made.model} {made.completions[0].text}"

    assert asyncio.run(run()) == "openai tiny 2"


# ---- what an answer becomes


@pytest.mark.parametrize(
    ("given", "text", "finish_reason"),
    [
        (reply("So 2."), "So 2.", "stop"),
        (reply("So", "length"), "So", "length"),
        (reply("So", "eos_token"), "So", "stop"),
        (reply("\nThe answer is 2.", reasoning="\n1 + 1\n"), "<think>\n1 + 1\n</think>\n\nThe answer is 2.", "stop"),
        (reply("The", "length", "1 + 1"), "<think>\n1 + 1\n</think>\n\nThe", "length"),
        (reply("", "length", "1 + {content}"), "<think>\n1 + {content}", "length"),  # cut off while it reasoned: never closed
        (reply("", "stop", "1 + 1"), "<think>\n1 + 1\n</think>\n\n", "stop"),
    ],
)
def test_text_and_reason_of_an_answer(given: Reply, text: str, finish_reason: str) -> None:
    assert completion_of(given, FORMAT) == Completion(text, finish_reason, 5, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (reply(""), "the model generated nothing"),
        (reply("", "length"), "the model generated nothing"),
        (reply("half", "content_filter"), "the endpoint's content filter held the answer back"),
        (reply("", refusal="I cannot"), "the model refused: I cannot"),
        (reply("x", "tool_calls", refusal="it calls a tool"), "the model refused: it calls a tool"),
        (reply("x", "tired"), "the answer ended with finish_reason 'tired', which is neither stop nor length"),
    ],
)
def test_what_is_no_trace_is_an_error_with_its_reason(given: Reply, error: str) -> None:
    assert completion_of(given, FORMAT) == Completion("", "error", 5, 0, error)


def test_a_reasoning_format_of_ones_own() -> None:
    assert completion_of(reply("2", reasoning="1+1"), "[{reasoning}] {content}.").text == "[1+1] 2."


# ---- settings


def test_styles_that_the_interface_cannot_carry_are_refused() -> None:
    config = OpenAIEngineConfig(kind="openai", base_url="http://127.0.0.1:1/v1")
    text = config.model_copy(update={"api": "completions"})
    check_openai(spec_of(config, system="s"), config)
    check_openai(spec_of(text, format="plain"), text)
    with pytest.raises(UserError, match="format: plain needs api: completions"):
        check_openai(spec_of(config, format="plain"), config)
    with pytest.raises(UserError, match="assistant_prefix cannot be sent with api: chat"):
        check_openai(spec_of(config, assistant_prefix="<think>"), config)
    with pytest.raises(UserError, match="api: completions sends the text as it is, with no chat template"):
        check_openai(spec_of(text), text)
    with pytest.raises(UserError, match=r"style\.system needs format: chat"):
        check_openai(spec_of(text, format="plain", system="s"), text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_url": "127.0.0.1:8000/v1"}, "no http:// or https:// address"),
        ({"base_url": "ftp://host/v1"}, "no http:// or https:// address"),
        ({"base_url": "http://:8000"}, "no http:// or https:// address"),
        ({"base_url": "http://a:99999/v1"}, "no http:// or https:// address"),
        ({"base_url": "http://a..b/v1"}, "no http:// or https:// address"),
        ({"base_url": "https://me:secret@host/v1"}, "holds a user, a query or a fragment"),
        ({"base_url": "https://host/v1?key=1"}, "holds a user, a query or a fragment"),
        ({"api_key_env": "sk-abc"}, "takes the name of an environment variable in capitals"),
        ({"base_url": "http://node7:8000/v1", "api_key_env": "KEY"}, "would travel in clear"),
        ({"extra_body": {"temperature": 1}}, "'temperature' is set by w2sr; it comes from sampling"),
        ({"extra_body": {"model": "x"}}, "it comes from the teacher's model and style"),
        ({"extra_body": {"stream": True}}, "one whole answer a request"),
        ({"extra_body": {"Api-Key": "x"}}, "looks like a secret"),
        ({"reasoning_format": "{content}{reasoning}"}, "must hold {reasoning} and behind it {content}"),
        ({"reasoning_format": "{reasoning}"}, "must hold {reasoning} and behind it {content}"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        OpenAIEngineConfig(**({"kind": "openai", "base_url": "https://host/v1"} | values))
    assert message in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "values",
    [
        {"base_url": "http://localhost:8000/v1/", "api_key_env": "KEY"},
        {"base_url": "http://[::1]:8000/v1", "api_key_env": "KEY"},
        {"base_url": "http://node7:8000/v1"},
        {"base_url": "http://node7:8000/v1", "api_key_env": "KEY", "allow_http": True},
        {"base_url": "https://node7", "api_key_env": "KEY"},
    ],
)
def test_settings_that_keep_the_key_private_are_taken(values: dict[str, Any]) -> None:
    assert not OpenAIEngineConfig(kind="openai", **values).base_url.endswith("/")


def test_where_the_endpoint_is_does_not_change_what_a_teacher_is() -> None:
    values = {"name": "a", "model": "m", "sampling": {"max_new_tokens": 8}}
    here, there = ({"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "max_in_flight": port} for port in (1, 2))
    one, other = TeacherConfig(**values, engine=here), TeacherConfig(**values, engine=there)
    assert one.identity() == other.identity()
    assert "KEY" not in str(TeacherConfig(**values, engine={"kind": "openai", "base_url": "https://h", "api_key_env": "KEY"}).identity())
