"""How an OpenAI-compatible endpoint is reached."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from w2sr.schema import PLACEMENT, StrictModel

_OUR_FIELDS = {
    **dict.fromkeys(("model", "messages", "prompt"), "it comes from the teacher's model and style"),
    **dict.fromkeys(("temperature", "top_p", "seed", "max_tokens", "max_completion_tokens"), "it comes from sampling; see also omit"),
    **dict.fromkeys(("n", "stream", "stream_options", "echo"), "one whole answer a request is asked for"),
}
"""Fields of a request that extra_body may not set, and why."""


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine itself, by name or address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class OpenAIEngineConfig(StrictModel):
    """An OpenAI-compatible endpoint: a running vLLM or SGLang server, or a hosted service."""

    kind: Literal["openai"]
    base_url: str = Field(
        description="Where the endpoint is, for example http://127.0.0.1:8000/v1. The same model may move in mid-run.",
        json_schema_extra=PLACEMENT,
    )
    api_key_env: str | None = Field(
        None,
        description="Environment variable that holds the key, in capitals; the key itself is written nowhere. None: no key is sent.",
        json_schema_extra=PLACEMENT,
    )
    allow_http: bool = Field(False, description="Send the key over unencrypted http to another machine.", json_schema_extra=PLACEMENT)
    api: Literal["chat", "completions"] = Field(
        "chat", description="chat: the server applies its own template to messages; completions: the text is sent as it is."
    )
    max_in_flight: int = Field(32, gt=0, description="Requests on the wire at a time.", json_schema_extra=PLACEMENT)
    requests_per_minute: float | None = Field(
        None, gt=0, description="Most requests a minute; None: as fast as the endpoint takes them.", json_schema_extra=PLACEMENT
    )
    timeout_s: float = Field(600, gt=0, description="Longest wait for one whole answer.", json_schema_extra=PLACEMENT)
    max_retries: int = Field(8, ge=0, description="Further tries of a request after faults of the endpoint.", json_schema_extra=PLACEMENT)
    backoff_s: float = Field(
        1, gt=0, description="First wait after a fault; each further one is twice as long, up to a minute.", json_schema_extra=PLACEMENT
    )
    max_wait_s: float = Field(
        900, gt=0, description="Longest Retry-After that is waited for; a longer one stops the run.", json_schema_extra=PLACEMENT
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls the token limit.", json_schema_extra=PLACEMENT
    )
    omit: list[Literal["temperature", "top_p", "seed"]] = Field(
        default_factory=list, description="Fields that the endpoint refuses and that are not sent: its own defaults hold."
    )
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Further fields of every request, as the endpoint names them.")
    reasoning_format: str = Field(
        "<think>\n{reasoning}\n</think>\n\n{content}",
        description="How a trace is made of an answer whose reasoning the endpoint returns apart.",
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            found = url.scheme in ("http", "https") and (url.hostname or "").encode("idna") and url.port != 0
        except ValueError:
            found = False
        if not found:
            raise ValueError("it is no http:// or https:// address with a host; write for example http://127.0.0.1:8000/v1")
        if url.username is not None or url.query or url.fragment:
            raise ValueError("it holds a user, a query or a fragment; give the plain address, and the key by api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            # The value is not shown: it may be the key.
            raise ValueError("it takes the name of an environment variable in capitals, for example OPENAI_API_KEY, never a key itself")
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key in _OUR_FIELDS:
                raise ValueError(f"{key!r} is set by w2sr; {_OUR_FIELDS[key]}")
            if key.lower().replace("-", "_") in ("api_key", "apikey", "authorization", "access_token", "password", "secret"):
                raise ValueError(f"{key!r} looks like a secret, and the configuration is stored with the run; give the key by api_key_env")
        return value

    @field_validator("reasoning_format")
    @classmethod
    def _both_parts(cls, value: str) -> str:
        if value.count("{reasoning}") != 1 or value.count("{content}") != 1 or value.index("{reasoning}") > value.index("{content}"):
            raise ValueError(f"{value!r} must hold {{reasoning}} and behind it {{content}}, each once")
        return value

    @model_validator(mode="after")
    def _key_stays_private(self) -> OpenAIEngineConfig:
        url = urlsplit(self.base_url)
        if self.api_key_env is not None and url.scheme == "http" and not is_loopback(url.hostname or "") and not self.allow_http:
            raise ValueError(
                f"{self.base_url} is not encrypted, and the key in {self.api_key_env} would travel in clear; use https://, leave "
                "api_key_env out, or set allow_http: true on a network that you trust"
            )
        return self
