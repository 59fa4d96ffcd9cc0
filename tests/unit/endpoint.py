"""A loopback server that answers raw bytes as a test says, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from types import TracebackType
from typing import Any

from w2sr.prompting import PromptStyle
from w2sr.teachers.config import OpenAIEngineConfig, SamplingConfig
from w2sr.teachers.engine import GeneratorSpec, Request


def http(status: int, body: Any = b"", **headers: str) -> bytes:
    """Return a whole HTTP response; a body that is not bytes is written as JSON, `Retry_After` becomes the header Retry-After."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(raw)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    return f"HTTP/1.1 {status} X\r\n".encode() + b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items()) + b"\r\n" + raw


def answer(text: str = "2", finish_reason: str | None = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    body = {"id": "x", "model": "tiny", "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"content": text, **message}}]}
    return body if usage is None else body | {"usage": usage}


OK = http(200, answer(usage={"prompt_tokens": 5, "completion_tokens": 2}))


class Endpoint:
    """Use it in an `async with`. Answers are given in turn, the last one again and again; None: it closes without a word, "hang": never.

    GET requests (the list of models, the version) are answered by `got` and do not count.
    """

    def __init__(self, *answers: bytes | str | None, got: bytes = http(404), tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.got = got
        self.tls = tls
        self.asked: list[dict[str, Any]] = []
        self.heads: list[str] = []

    async def __aenter__(self) -> Endpoint:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()

    def config(self, **values: Any) -> OpenAIEngineConfig:
        """Return a configuration of this endpoint with short waits."""
        url = f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"
        settings = {"kind": "openai", "base_url": url, "backoff_s": 0.01, "timeout_s": 5, "max_retries": 2}
        return OpenAIEngineConfig(**(settings | values))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        if head.startswith("GET"):
            found: bytes | str | None = self.got
        else:
            self.asked.append(json.loads(body) if body else {})
            found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if found == "hang":
            await asyncio.sleep(30)
        if isinstance(found, bytes):
            writer.write(found)
            await writer.drain()
        writer.close()


def spec_of(config: OpenAIEngineConfig, **style: Any) -> GeneratorSpec:
    """Return a generator at an endpoint."""
    return GeneratorSpec("weak", "tiny", "digest", PromptStyle(**style), SamplingConfig(temperature=0.6, max_new_tokens=64), config)


def request_of(number: int) -> Request:
    """Return the request at position `number`."""
    return Request(f"t{number}", f"p{number}", 0, number, f"What is {number} + 1?", 1000 + number)
