"""The key of an endpoint: read from the environment, shown nowhere."""

from __future__ import annotations

import os

from w2sr.errors import UserError
from w2sr.teachers.openai_config import OpenAIEngineConfig


class Key:
    """A key, or none. Neither its repr nor a pickle of it gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str | None) -> None:
        self._value = value

    @classmethod
    def of(cls, config: OpenAIEngineConfig) -> Key:
        """Read the variable that `config` names. Raises UserError when it is not set, or holds what no header can carry."""
        if config.api_key_env is None:
            return cls(None)
        value = os.environ.get(config.api_key_env, "").strip()
        if not value:
            raise UserError(
                f"the environment variable {config.api_key_env} (api_key_env) is not set or empty; set it to the key of "
                f"{config.base_url} where you start w2sr, or leave api_key_env out if the endpoint wants no key"
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise UserError(
                f"the environment variable {config.api_key_env} holds white space or signs that no key has; set it to the key alone"
            )
        return cls(value)

    def headers(self) -> dict[str, str]:
        """Return the header that carries the key; none without a key."""
        return {} if self._value is None else {"Authorization": f"Bearer {self._value}"}

    def hidden(self, text: str) -> str:
        """Return `text` without the key: endpoints repeat a wrong key in their messages."""
        return text if self._value is None else text.replace(self._value, "[key]")

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a key stays in the process that read it")
