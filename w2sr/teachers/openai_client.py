"""A client of OpenAI-compatible endpoints: one request, and either one whole answer or an exception that says whose fault it was.

The key comes from the environment, is sent to the configured host alone (redirects are not followed), and is cut out of every text that
leaves this module. Answers are not streamed: a body that ends early is no JSON, so an answer is whole or there is none.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import RetryLater
from w2sr.errors import UserError
from w2sr.teachers.config import SamplingConfig
from w2sr.teachers.openai_config import OpenAIEngineConfig, is_loopback
from w2sr.teachers.openai_key import Key
from w2sr.teachers.openai_reply import Fault, Refused, Reply, Wrong, parse_json, read_response
from w2sr.teachers.pacing import Pace, backoff_s

if TYPE_CHECKING:
    import aiohttp

MAX_ANSWER_BYTES = 64 << 20
_CONNECT_TIMEOUT_S = 30.0
_KEEP_ALIVE_S = 4.0  # less than uvicorn's five: a connection is not used just when the server closes it
_LONGEST_QUOTE = 300  # characters of an endpoint's message that are passed on
_log = logging.getLogger("w2sr.openai")


class Unanswered(RetryLater):
    """No answer this time. `everyone`: any other request would have met the same (connection refused, 429, 503)."""

    def __init__(self, reason: str, after_s: float, everyone: bool = False) -> None:
        super().__init__(reason, after_s)
        self.everyone = everyone


class OpenAIClient:
    """Asks `model` at the endpoint of `config`. Lives in one event loop; any number of requests may be awaited at once.

    At most max_in_flight of them are on the wire, at the endpoint's pace (w2sr.teachers.pacing). Raises UserError when the environment
    variable of the key is not set, or holds what cannot be a key.
    """

    def __init__(self, config: OpenAIEngineConfig, model: str) -> None:
        self.config = config
        self.model = model
        self.pace = Pace(config.requests_per_minute, config.backoff_s)
        self._key = Key.of(config)
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._session: aiohttp.ClientSession | None = None

    async def chat(self, messages: Sequence[Mapping[str, str]], sampling: SamplingConfig, seed: int, attempt: int = 1) -> Reply:
        """Return the model's answer to `messages` (each with role and content). `attempt` counts the tries of this request, from 1.

        Raises Unanswered (a RetryLater) when another try may help, Refused when the fault is the prompt's, UserError when the run has
        to stop: the key, the address or the model is wrong, or the endpoint has not answered anyone for max_retries + 1 tries.
        """
        return await self._ask("chat/completions", {"messages": list(messages)}, sampling, seed, attempt)

    async def complete(self, prompt: str, sampling: SamplingConfig, seed: int, attempt: int = 1) -> Reply:
        """Return how the model continues `prompt`. Raises what `chat` raises."""
        return await self._ask("completions", {"prompt": prompt}, sampling, seed, attempt)

    async def chat_patiently(self, messages: Sequence[Mapping[str, str]], sampling: SamplingConfig, seed: int) -> Reply:
        """As `chat`, for callers outside the pool: waits and tries again, up to max_retries times, holding no slot while it waits.

        Raises Refused and UserError.
        """
        return await self.patiently(lambda attempt: self.chat(messages, sampling, seed, attempt))

    async def patiently(self, ask: Callable[[int], Awaitable[Reply]]) -> Reply:
        """Await `ask(attempt)` until there is an answer. Raises UserError after max_retries + 1 attempts, and what `ask` raises."""
        attempt = 1
        while True:
            try:
                return await ask(attempt)
            except Unanswered as fault:
                if attempt > self.config.max_retries:
                    raise UserError(f"{self.where} did not answer a request in {attempt} tries: {fault.reason}") from None
                attempt += 1
                await asyncio.sleep(fault.after_s)

    async def served_models(self) -> list[dict[str, Any]]:
        """Return the entries of the endpoint's list of models; empty where it gives none."""
        body = await self.get(f"{self.config.base_url}/models")
        found = body.get("data") if isinstance(body, dict) else None
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    async def get(self, url: str) -> Any:
        """Return the JSON at `url`, an address of the endpoint's host; None where there is none."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_CONNECT_TIMEOUT_S)
        closing = {"Connection": "close"}  # a server that fails here may drop the connection, which a prompt might be using by then
        try:
            async with self._open().get(url, headers=closing, timeout=timeout, allow_redirects=False, proxy=proxy_for(url)) as response:
                return parse_json(await _read(response)) if response.status == 200 else None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, Fault, Refused):
            return None

    @property
    def where(self) -> str:
        """The endpoint, for messages."""
        return f"the endpoint {self.config.base_url}"

    def close(self) -> None:
        """Close all connections. Called in the event loop."""
        import aiohttp

        if self._session is not None and self._session.connector is not None:
            # The base class closes at once; TCPConnector's own is a coroutine, for resolvers that hold something.
            aiohttp.BaseConnector.close(self._session.connector)
        self._session = None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:  # not in __init__: a session belongs to the running loop
            timeout = aiohttp.ClientTimeout(total=self.config.timeout_s, connect=min(_CONNECT_TIMEOUT_S, self.config.timeout_s))
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, resolver=aiohttp.ThreadedResolver()),
                cookie_jar=aiohttp.DummyCookieJar(),  # requests have nothing to do with each other
                headers=self._key.headers(),
                timeout=timeout,
            )
        return self._session

    async def _ask(self, path: str, prompt: dict[str, Any], sampling: SamplingConfig, seed: int, attempt: int) -> Reply:
        body = {**request_fields(self.config, self.model, sampling, seed), **prompt}
        problem: Exception
        async with self._slots:
            went_at = await self.pace.turn()
            try:
                reply = await self._post(f"{self.config.base_url}/{path}", body)
                self.pace.answered()
                return reply
            except Fault as fault:
                problem = self._unanswered(fault, went_at, seed, attempt)
            except Refused as refusal:
                self.pace.answered()
                problem = Refused(self._quote(str(refusal)))
            except Wrong as wrong:
                problem = UserError(await self._advice(wrong))
        raise problem  # out here, so that nothing hangs on it: what the endpoint said may hold the key

    async def _post(self, url: str, body: dict[str, Any]) -> Reply:
        """Send one request and read its answer. Raises Fault, Refused, Wrong."""
        import aiohttp

        problem: Exception
        try:
            async with self._open().post(url, json=body, allow_redirects=False, proxy=proxy_for(url)) as response:
                return read_response(response.status, response.headers, await _read(response))
        except aiohttp.ClientConnectorCertificateError as error:
            problem = Wrong("tls", _line(error))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            problem = Fault(f"no connection ({_line(error)})", everyone=True)
        except asyncio.TimeoutError:
            problem = Fault(f"no whole answer within timeout_s = {self.config.timeout_s:g}")
        except (aiohttp.ClientError, OSError) as error:
            problem = Fault(f"the connection broke before the answer was whole ({type(error).__name__})")
        raise problem  # out here as well: some exceptions of aiohttp hold the request's headers, and so the key

    def _unanswered(self, fault: Fault, went_at: float, seed: int, attempt: int) -> Exception:
        reason = self._quote(fault.reason)
        if fault.asked_s is not None and fault.asked_s > self.config.max_wait_s:
            return UserError(
                f"{self.where} asks to wait {fault.asked_s:.0f} s, longer than max_wait_s = {self.config.max_wait_s:g} ({reason}). "
                "Is a quota used up? Run again later: what is finished stays"
            )
        held_s = self.pace.failed(went_at, everyone=fault.everyone, limited=fault.limited, asked_s=fault.asked_s)
        if self.pace.outages > self.config.max_retries:
            return UserError(
                f"{self.where} has answered no request in {self.pace.outages} tries (max_retries = {self.config.max_retries}), "
                f"the last time: {reason}. See whether it runs and whether base_url is right, then run again: what is finished stays"
            )
        if held_s:
            _log.warning("%s: %s; all requests wait %.1f s", self.where, reason, held_s)
        return Unanswered(f"{self.where}: {reason}", backoff_s(self.config.backoff_s, attempt, seed, fault.asked_s), fault.everyone)

    async def _advice(self, wrong: Wrong) -> str:
        said = f" It says: {self._quote(wrong.said)}" if wrong.said else ""
        key = f"the key in {self.config.api_key_env}" if self.config.api_key_env else "api_key_env: the endpoint may want a key"
        path = urlsplit(self.config.base_url).path
        address = f"base_url ({'most endpoints have a path /v1, yours has none' if not path else f'with {path} it may be wrong'})"
        if wrong.what == "model":
            served = ", ".join(sorted(str(entry.get("id")) for entry in await self.served_models())) or "it does not say"
            return self._key.hidden(f"{self.where} does not know the model {self.model!r}.{said} Models there: {served}. Correct `model`")
        advice = {
            "key": f"refuses the request (HTTP {wrong.status}). Check {key}",
            "address": f"has no such path (HTTP {wrong.status}). Check {address} and `api`",
            "redirect": f"sends the request elsewhere (HTTP {wrong.status}), and keys are not carried to other addresses. Check base_url",
            "quota": f"has no credit left for this key (HTTP {wrong.status}). Fill it up and run again: what is finished stays",
            "tls": "has no certificate that this machine accepts. Check base_url, or SSL_CERT_FILE for an authority of your own",
        }
        return f"{self.where} {advice[wrong.what]}.{said}"

    def _quote(self, text: str) -> str:
        """Return what may be shown of a text from the endpoint. The key goes first: cut in two it would not be found."""
        shown = self._key.hidden(text)
        return shown if len(shown) <= _LONGEST_QUOTE else f"{shown[: _LONGEST_QUOTE - 3]}..."


def request_fields(config: OpenAIEngineConfig, model: str, sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    """Return the fields of a request besides the prompt. The seed is cut to 31 bits, the most that every server takes."""
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed & 0x7FFFFFFF}
    kept = {name: value for name, value in drawn.items() if name not in config.omit}
    return {"model": model, config.max_tokens_field: sampling.max_new_tokens, **kept, **config.extra_body}


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for `url` (https_proxy, http_proxy, no_proxy); none for this machine itself.

    Not aiohttp's trust_env: that reads ~/.netrc too, whose passwords would be sent along. Raises UserError for a proxy that is not http.
    """
    parts = urlsplit(url)
    if is_loopback(parts.hostname or "") or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        raise UserError(
            f"{parts.scheme}_proxy in the environment names a proxy that does not begin with http://; correct it, or except "
            f"{parts.hostname} from it with no_proxy"
        )
    return proxy


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def _read(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise Refused(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(chunks)
