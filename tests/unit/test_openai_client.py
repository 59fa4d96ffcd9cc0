"""What the client makes of everything an endpoint can answer, on a real loopback socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import pickle
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.unit.endpoint import OK, Endpoint, answer, http
from w2sr.errors import UserError
from w2sr.teachers.config import OpenAIEngineConfig, SamplingConfig
from w2sr.teachers.openai_client import MAX_ANSWER_BYTES, OpenAIClient, Unanswered, proxy_for, request_fields
from w2sr.teachers.openai_key import Key
from w2sr.teachers.openai_reply import Refused, Reply

KEY = "sk-Very.Secret-123"
SAMPLING = SamplingConfig(temperature=0.6, max_new_tokens=64)
ASK = [{"role": "user", "content": "What is 1 + 1?"}]
T = TypeVar("T")


def with_client(endpoint: Endpoint, use: Callable[[OpenAIClient], Awaitable[T]], **values: Any) -> T:
    async def run() -> T:
        async with endpoint:
            client = OpenAIClient(endpoint.config(**values), "tiny")
            try:
                return await asyncio.wait_for(use(client), 20)
            finally:
                client.close()

    return asyncio.run(run())


def ask(endpoint: Endpoint, **values: Any) -> Reply:
    return with_client(endpoint, lambda client: client.chat(ASK, SAMPLING, 7), **values)


def test_an_answer_is_read_with_its_counts_and_what_was_asked_is_complete() -> None:
    endpoint = Endpoint(http(200, answer("é ✓", usage={"prompt_tokens": 5, "completion_tokens": 2}) | {"system_fingerprint": "fp_1"}))
    reply = ask(endpoint, extra_body={"top_k": 5})
    assert (reply.content, reply.finish_reason, reply.num_prompt_tokens, reply.num_tokens) == ("é ✓", "stop", 5, 2)
    assert (reply.model, reply.fingerprint, reply.token_ids) == ("tiny", "fp_1", None)
    expected = {"model": "tiny", "messages": ASK, "max_tokens": 64, "temperature": 0.6, "top_p": 0.95, "seed": 7, "top_k": 5}
    assert endpoint.asked == [expected]
    assert endpoint.heads[0].startswith("POST /v1/chat/completions ")


def test_the_text_interface_sends_the_text() -> None:
    endpoint = Endpoint(http(200, {"choices": [{"text": "2", "finish_reason": "length", "token_ids": [4, 5]}]}))
    reply = with_client(endpoint, lambda client: client.complete("1 + 1 =", SAMPLING, 7))
    assert (reply.content, reply.finish_reason, reply.num_tokens, reply.token_ids) == ("2", "length", 0, (4, 5))
    assert endpoint.asked[0]["prompt"] == "1 + 1 ="
    assert endpoint.heads[0].startswith("POST /v1/completions ")


def test_fields_an_endpoint_refuses_can_be_left_out_and_a_seed_fits_31_bits() -> None:
    values = {
        "kind": "openai",
        "base_url": "http://127.0.0.1:1/v1",
        "omit": ["temperature", "seed"],
        "max_tokens_field": "max_completion_tokens",
    }
    assert request_fields(OpenAIEngineConfig(**values), "m", SAMPLING, 2**62 + 5) == {
        "model": "m",
        "max_completion_tokens": 64,
        "top_p": 0.95,
    }
    del values["omit"]
    assert request_fields(OpenAIEngineConfig(**values), "m", SAMPLING, 2**62 + 5)["seed"] == 5


@pytest.mark.parametrize("body", [answer("2", usage={}), answer("2"), answer("2", usage={"prompt_tokens": None, "total_tokens": 3})])
def test_counts_that_are_not_given_are_0(body: dict[str, Any]) -> None:
    reply = ask(Endpoint(http(200, body)))
    assert (reply.num_prompt_tokens, reply.num_tokens) == (0, 0)


def test_half_characters_become_the_replacement_sign_and_whole_ones_stay() -> None:
    reply = ask(Endpoint(http(200, rb'{"choices": [{"finish_reason": "stop", "message": {"content": "a\ud83d b \ud83d\ude00 \u0000"}}]}')))
    assert reply.content == "a� b 😀 \0"


def test_a_compressed_answer_is_read() -> None:
    assert ask(Endpoint(http(200, gzip.compress(json.dumps(answer("zip")).encode()), Content_Encoding="gzip"))).content == "zip"


HALF = http(200, answer("a long answer of many words"))
FAULTS = {
    "429": (http(429, {"error": {"message": "slow down"}}), "HTTP 429: slow down", True),
    "500": (http(500, {"error": "engine died"}), "HTTP 500: engine died", False),
    "503": (http(503, b"<html>busy</html>", Content_Type="text/html"), "HTTP 503", True),
    "504": (http(504, {"object": "error", "message": "upstream"}), "HTTP 504: upstream", True),
    "408": (http(408), "HTTP 408", False),
    "204": (http(204), "HTTP 204", False),
    "closed": (None, "connection broke", False),
    "half a body": (HALF[:-20], "connection broke", False),
    "half a head": (HALF[:25], "connection broke", False),
    "no HTTP": (b"hello\r\n\r\n", "connection broke", False),
    "torn JSON": (http(200, json.dumps(answer()).encode()[:-9]), "is not JSON", False),
    "deep JSON": (http(200, b"[" * 100_000), "is not JSON", False),
    "long number": (http(200, b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON", False),
    "no UTF-8": (http(200, b'{"a": "\xff"}'), "is not JSON", False),
    "broken gzip": (http(200, b"junk", Content_Encoding="gzip"), "connection broke", False),
    "no choices": (http(200, {"choices": []}), "no completion: choices", False),
    "a list": (http(200, [1]), "no completion: body", False),
    "wrong type": (http(200, {"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}), "no completion", False),
    "more tokens than there can be": (http(200, {**answer(), "usage": {"completion_tokens": 10**30}}), "usage.completion_tokens", False),
    "fewer than no tokens": (http(200, {**answer(), "usage": {"prompt_tokens": -5}}), "usage.prompt_tokens", False),
    "no token's id": (http(200, {"choices": [{"text": "4", "finish_reason": "stop", "token_ids": [2**31]}]}), "token_ids.0", False),
    "no finish_reason": (http(200, answer("half an ans", None)), "no finish_reason", False),
    "no message": (http(200, {"choices": [{"finish_reason": "stop"}]}), "neither a message nor a text", False),
    "aborted": (http(200, answer("half an ans", "abort")), "broke the answer off", False),
    "error under 200": (http(200, {"error": {"message": "rate", "code": 429}}), "HTTP 429: rate", True),
    "unnamed error under 200": (http(200, {"error": "oops"}), "HTTP 500: oops", False),
    "hang": ("hang", "no whole answer within timeout_s = 0.3", False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_endpoint_is_to_be_tried_again(name: str) -> None:
    given, reason, everyone = FAULTS[name]
    with pytest.raises(Unanswered) as caught:
        ask(Endpoint(given), timeout_s=0.3 if given == "hang" else 5)
    assert reason in caught.value.reason
    assert caught.value.everyone is everyone
    assert 0 < caught.value.after_s < 1
    assert reason in str(pickle.loads(pickle.dumps(caught.value)))


def test_a_connection_that_is_refused_is_to_be_tried_again_and_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(Unanswered, match="no connection") as caught:
        ask(Endpoint(OK), base_url=url)
    assert caught.value.everyone


@pytest.mark.parametrize(
    ("headers", "at_least", "at_most"),
    [
        ({"Retry_After": "3"}, 3.0, 3.1),
        ({"retry_after_ms": "2500", "Retry_After": "60"}, 2.5, 2.6),
        ({"Retry_After": "Sun, 22 Nov 2026 02:00:09 GMT", "Date": "Sun, 22 Nov 2026 02:00:00 GMT"}, 9.0, 9.1),
        ({"Retry_After": "whenever"}, 0.0, 0.02),
        ({"Retry_After": "3", "Date": "Sun, 22 Nov 99999999999 02:00:00 GMT"}, 3.0, 3.1),
    ],
)
def test_retry_after_is_honoured(headers: dict[str, str], at_least: float, at_most: float) -> None:
    with pytest.raises(Unanswered) as caught:
        ask(Endpoint(http(429, **headers)))
    assert at_least <= caught.value.after_s <= at_most
    assert caught.value.everyone


def test_a_date_is_read_by_this_machines_clock_where_the_endpoint_does_not_say_its_own() -> None:
    with pytest.raises(Unanswered) as caught:
        ask(Endpoint(http(429, Retry_After=format_datetime(datetime.now(timezone.utc) + timedelta(seconds=600), usegmt=True))))
    assert 500 <= caught.value.after_s <= 601


def test_after_a_429_the_next_request_waits_too() -> None:
    async def two(client: OpenAIClient) -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unanswered):
            await client.chat(ASK, SAMPLING, 7)
        await client.chat(ASK, SAMPLING, 8)
        return asyncio.get_running_loop().time() - began

    assert with_client(Endpoint(http(429, Retry_After="0.4"), OK), two) >= 0.4


WRONG = {
    "401": (http(401, {"error": {"message": "bad key"}}), r"refuses the request \(HTTP 401\). Check api_key_env.* It says: bad key"),
    "403": (http(403), r"refuses the request \(HTTP 403\)"),
    "path": (http(404, {"detail": "Not Found"}), r"has no such path \(HTTP 404\). Check base_url \(with /v1 it may be wrong\) and `api`"),
    "405": (http(405), "has no such path"),
    "a web page": (http(200, b"<html>hello</html>", Content_Type="text/html; charset=utf-8"), "has no such path"),
    "model": (
        http(404, {"message": "The model `tiny` does not exist."}),
        "does not know the model 'tiny'.*does not exist.*Models there: big, small",
    ),
    "quota": (http(429, {"error": {"message": "no money", "code": "insufficient_quota"}}), "no credit left"),
    "402": (http(402, {"error": {"message": "no money"}}), r"no credit left for this key \(HTTP 402\).* It says: no money"),
    "too long a wait": (http(429, Retry_After="86400"), r"asks to wait 86400 s, longer than max_wait_s = 900"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_has_to_mend_stops_at_once(name: str) -> None:
    given, message = WRONG[name]
    endpoint = Endpoint(given, got=http(200, {"data": [{"id": "small"}, {"id": "big"}, 7]}))
    with pytest.raises(UserError, match=message):
        ask(endpoint)
    assert len(endpoint.asked) == 1


def test_an_address_without_a_path_gets_the_hint_of_v1() -> None:
    endpoint = Endpoint(http(404))

    async def run() -> None:
        async with endpoint:
            client = OpenAIClient(endpoint.config(base_url=f"http://127.0.0.1:{endpoint.port}"), "tiny")
            with pytest.raises(UserError, match="most endpoints have a path /v1, yours has none"):
                await client.chat(ASK, SAMPLING, 7)
            client.close()

    asyncio.run(run())


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return the TLS side of a server whose certificate nobody vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")]), datetime.now(timezone.utc)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


def test_a_certificate_that_nobody_vouches_for_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    endpoint = Endpoint(OK, tls=self_signed(tmp_path))
    with pytest.raises(UserError, match=r"has no certificate that this machine accepts.*SSL_CERT_FILE.*CERTIFICATE_VERIFY_FAILED"):
        ask(endpoint, api_key_env="TEACHER_KEY")
    assert endpoint.heads == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_its_own_fault(status: int) -> None:
    with pytest.raises(Refused, match=f"HTTP {status}: too long"):
        ask(Endpoint(http(status, {"error": {"message": "too  long"}})))


def test_a_refusal_is_quoted_in_short_whatever_it_is() -> None:
    with pytest.raises(Refused) as caught:
        ask(Endpoint(http(400, {"error": {"message": "x" * 10_000}})))
    assert len(str(caught.value)) < 400
    with pytest.raises(Refused, match=r'HTTP 400: \[\{"loc": "a"\}\]'):
        ask(Endpoint(http(400, {"detail": [{"loc": "a"}]})))
    with pytest.raises(Refused, match="HTTP 400: plain words"):
        ask(Endpoint(http(400, b"plain words")))
    with pytest.raises(Refused, match="HTTP 400: no reason given"):
        ask(Endpoint(http(400, [1])))


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    head = f"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: {MAX_ANSWER_BYTES + 10}\r\n\r\n".encode()
    with pytest.raises(Refused, match=f"more than {MAX_ANSWER_BYTES} bytes"):
        ask(Endpoint(head + b" " * (MAX_ANSWER_BYTES + 10)))


def test_an_endpoint_that_never_answers_ends_the_work_after_bounded_tries() -> None:
    endpoint = Endpoint(http(503))
    with pytest.raises(UserError, match=r"has answered no request in 3 tries \(max_retries = 2\), the last time: HTTP 503"):
        with_client(endpoint, lambda client: client.chat_patiently(ASK, SAMPLING, 7))
    assert len(endpoint.asked) == 3


def test_a_patient_caller_gets_its_answer_after_faults() -> None:
    endpoint = Endpoint(http(500), None, OK)
    assert with_client(endpoint, lambda client: client.chat_patiently(ASK, SAMPLING, 7)).content == "2"
    assert endpoint.asked[0] == endpoint.asked[2]


def test_a_patient_caller_gives_up_on_a_request_that_always_fails() -> None:
    endpoint = Endpoint(http(500))
    with pytest.raises(UserError, match=r"did not answer a request in 3 tries: .*HTTP 500"):
        with_client(endpoint, lambda client: client.chat_patiently(ASK, SAMPLING, 7))


def test_no_more_requests_than_allowed_are_on_the_wire() -> None:
    async def many(client: OpenAIClient) -> int:
        tasks = [asyncio.create_task(client.chat(ASK, SAMPLING, seed)) for seed in range(9)]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return 0

    endpoint = Endpoint("hang")
    with_client(endpoint, many, max_in_flight=3)
    assert len(endpoint.asked) == 3


# ---- the key


def test_a_refusal_does_not_show_the_key_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with pytest.raises(Refused, match=r"HTTP 400: bad header \[key\]") as caught:
        ask(Endpoint(http(400, {"error": {"message": f"bad header {KEY}"}})), api_key_env="TEACHER_KEY")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_not_even_the_beginning_of_a_key_is_shown_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for length in range(265, 305):
        with pytest.raises(Refused) as caught:
            ask(Endpoint(http(400, {"error": {"message": "x" * length + KEY}})), api_key_env="TEACHER_KEY")
        assert "sk-V" not in str(caught.value)


def test_the_key_is_sent_and_a_wrong_one_is_not_repeated(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    endpoint = Endpoint(http(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"Check the key in TEACHER_KEY.*provided: \[key\]") as caught:
        ask(endpoint, api_key_env="TEACHER_KEY")
    assert f"Authorization: Bearer {KEY}\r\n" in endpoint.heads[0]
    assert KEY not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "hang"])
def test_no_fault_shows_the_key(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    given = FAULTS[name][0]
    if name in ("429", "500"):  # endpoints repeat keys in their messages
        given = http(int(name), {"error": {"message": f"bad luck, {KEY}"}})
    with caplog.at_level(logging.DEBUG), pytest.raises(Unanswered) as caught:
        ask(Endpoint(given), api_key_env="TEACHER_KEY")
    assert name not in ("429", "500") or "bad luck, [key]" in caught.value.reason
    shown = "".join(traceback.format_exception(caught.value)) + repr(pickle.dumps(caught.value)) + caplog.text
    hanging: BaseException | None = caught.value  # exceptions of the HTTP library hold the request's headers
    while hanging is not None:
        shown += repr(hanging)
        hanging = hanging.__cause__ or hanging.__context__
    assert KEY not in shown


def test_a_redirect_is_not_followed_and_carries_the_key_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)

    async def run() -> tuple[Endpoint, Endpoint]:
        async with Endpoint(OK) as elsewhere, Endpoint(http(307, Location=f"http://127.0.0.1:{elsewhere.port}/v1?key=x")) as endpoint:
            client = OpenAIClient(endpoint.config(api_key_env="TEACHER_KEY"), "tiny")
            with pytest.raises(
                UserError, match=rf"sends the request elsewhere \(HTTP 307\).*It says: http://127.0.0.1:{elsewhere.port}/v1$"
            ):
                await client.chat(ASK, SAMPLING, 7)
            endpoint.got = http(302, Location=f"http://127.0.0.1:{elsewhere.port}/v1/models")
            assert await client.served_models() == []
            client.close()
            return endpoint, elsewhere

    endpoint, elsewhere = asyncio.run(run())
    assert len(endpoint.heads) == 2
    assert elsewhere.heads == []


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_key_that_is_not_set_is_said_with_its_variable(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(UserError, match=r"the environment variable TEACHER_KEY \(api_key_env\) is not set or empty"):
        ask(Endpoint(OK), api_key_env="TEACHER_KEY")


@pytest.mark.parametrize("value", ["two words", "sk-1\nX-Other: 1", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(UserError, match="TEACHER_KEY holds white space or signs that no key has") as caught:
        ask(Endpoint(OK), api_key_env="TEACHER_KEY")
    assert value not in str(caught.value)


def test_a_key_neither_shows_nor_travels() -> None:
    key = Key(KEY)
    assert KEY not in repr(key) + str(key) + f"{key}"
    with pytest.raises(TypeError, match="a key stays in the process that read it"):
        pickle.dumps(key)


# ---- proxies of the environment


def test_the_environments_proxy_is_used_except_where_it_says_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,.cluster")
    assert proxy_for("https://api.example.com/v1") == "http://proxy:3128"
    assert proxy_for("https://node1.cluster:8000/v1") is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert proxy_for("http://127.0.0.1:8000/v1") is None
    assert proxy_for("http://node2:8000/v1") == "http://proxy:3128"


def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@proxy:1080")
    with pytest.raises(UserError, match="https_proxy in the environment names a proxy that does not begin with http://") as caught:
        ask(Endpoint(OK), base_url="https://api.example.com/v1")
    assert "secret" not in str(caught.value)
