"""What an OpenAI-compatible endpoint answers, read strictly: a half answer is never taken for a whole one.

Of what is no answer it is said whose fault it is: the endpoint's (Fault: ask again), the prompt's (Refused), the configuration's (Wrong).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from w2sr.teachers.pacing import http_date, retry_after_s


class Fault(Exception):
    """No answer for a reason that may pass. `everyone`: any request would have met it; `limited`: because of a rate limit.

    `asked_s`: how long the endpoint asks to wait, in seconds.
    """

    def __init__(self, reason: str, *, everyone: bool = False, limited: bool = False, asked_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.everyone = everyone
        self.limited = limited
        self.asked_s = asked_s


class Refused(Exception):
    """This one prompt will not be answered, however often it is asked (too long, unreadable): a recorded outcome."""


class Wrong(Exception):
    """No request will be answered until the user mends something. `said`: the endpoint's own words."""

    def __init__(self, what: Literal["key", "address", "model", "redirect", "quota", "tls"], said: str, status: int = 0) -> None:
        super().__init__(what)
        self.what = what
        self.said = said
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer. `finish_reason` is the endpoint's own word. Token counts are the endpoint's, 0 where it does not say.

    `reasoning` is what the endpoint returned apart from `content`. `model` and `fingerprint` are empty where the endpoint does not say.
    `refusal`: why it would not answer, None mostly. `token_ids` are the generated tokens where it returns them (vLLM: return_token_ids).
    """

    content: str
    reasoning: str
    refusal: str | None
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int
    model: str
    fingerprint: str
    token_ids: tuple[int, ...] | None


# What our tables hold: 32 bits.
_Number = Annotated[int, Field(ge=0, lt=2**31)]


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None  # DeepSeek, SGLang, vLLM until 2025, transformers serve
    reasoning: str | None = None  # vLLM since then, OpenRouter
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None
    token_ids: list[_Number] | None = None


class _Usage(BaseModel):
    prompt_tokens: _Number | None = None
    completion_tokens: _Number | None = None


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None


def read_response(status: int, headers: Mapping[str, str], raw: bytes) -> Reply:
    """Return the answer that an HTTP response holds. Raises Fault, Refused, Wrong."""
    if status == 200 and "html" in headers.get("Content-Type", ""):
        raise Wrong("address", "", status)  # a page for people: this is no endpoint
    if status == 200:
        body = parse_json(raw)
        if isinstance(body, dict) and body.get("error") and not body.get("choices"):  # OpenRouter: an error under 200
            code = body["error"].get("code") if isinstance(body["error"], dict) else None
            raise problem_of(code if isinstance(code, int) and code >= 400 else 500, headers, raw)
        return read_reply(body)
    raise problem_of(status, headers, raw)


def problem_of(status: int, headers: Mapping[str, str], raw: bytes) -> Fault | Refused | Wrong:
    """Return what a response with a status other than 200 means."""
    message, code = _error_of(raw)
    said = whole_characters(" ".join(message.split()))
    if 300 <= status < 400:
        return Wrong("redirect", headers.get("Location", "").split("?")[0], status)
    if status == 402 or (status == 429 and "insufficient_quota" in code):
        return Wrong("quota", said, status)
    if status in (401, 403, 407):
        return Wrong("key", said, status)
    if status in (404, 405, 501):
        unknown_model = status == 404 and ("model" in message.lower() or "model" in code)
        return Wrong("model" if unknown_model else "address", said, status)
    if status in (408, 409, 425, 429) or status >= 500 or status < 300:
        asked_s = _asked_s(headers)
        everyone = status in (429, 502, 503, 504) or asked_s is not None
        return Fault(f"HTTP {status}{f': {said}' if said else ''}", everyone=everyone, limited=status == 429, asked_s=asked_s)
    return Refused(f"HTTP {status}: {said or 'no reason given'}")


def read_reply(body: Any) -> Reply:
    """Return the first choice of a chat or text completion (parsed JSON). Raises Fault."""
    try:
        answer = _Body.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise Fault(f"its answer is no completion: {'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}") from None
    choice, usage = answer.choices[0], answer.usage or _Usage()
    if not choice.finish_reason:
        raise Fault("its answer has no finish_reason: it is not whole")
    if choice.finish_reason in ("abort", "error"):
        raise Fault(f"it broke the answer off (finish_reason {choice.finish_reason!r})")
    if choice.message is None and choice.text is None:
        raise Fault("its answer has neither a message nor a text")
    message = choice.message or _Message(content=choice.text)
    return Reply(
        content=whole_characters(message.content or ""),
        reasoning=whole_characters(message.reasoning_content or message.reasoning or ""),
        refusal=message.refusal or ("it calls a tool" if message.tool_calls else None),
        finish_reason=choice.finish_reason,
        num_prompt_tokens=usage.prompt_tokens or 0,
        num_tokens=usage.completion_tokens or 0,
        model=answer.model or "",
        fingerprint=answer.system_fingerprint or "",
        token_ids=None if choice.token_ids is None else tuple(choice.token_ids),
    )


def parse_json(raw: bytes) -> Any:
    """Return the value of a body that should be JSON. Raises Fault."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # torn, no UTF-8, nested without end, a number of thousands of digits
        raise Fault(f"its answer of {len(raw)} bytes is not JSON") from None


def _error_of(raw: bytes) -> tuple[str, str]:
    """Return (message, code) of an error's body in any of the shapes in use; empty texts where there is none."""
    try:
        body = parse_json(raw)
    except Fault:
        text = raw[:4096].decode("utf-8", "replace")
        return ("" if text.lstrip().startswith("<") else text), ""  # a page for people says nothing in one line
    found = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(found, dict):
        return (found if isinstance(found, str) else ""), ""
    message = found.get("message") or found.get("detail") or ""
    codes = " ".join(str(found[name]) for name in ("code", "type") if found.get(name) is not None)
    return (message if isinstance(message, str) else json.dumps(message)), codes


def _asked_s(headers: Mapping[str, str]) -> float | None:
    milliseconds = retry_after_s(headers.get("retry-after-ms"))  # OpenAI and Azure, more exact than Retry-After
    if milliseconds is not None:
        return milliseconds / 1000
    return retry_after_s(headers.get("Retry-After"), http_date(headers.get("Date", "")))


def whole_characters(text: str) -> str:
    """Replace half characters, which JSON can write and neither Parquet nor a tokenizer can hold, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
