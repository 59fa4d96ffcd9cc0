"""When the next request may go to an endpoint: one pace for all of them, because limits and outages are the endpoint's and not a request's.

After a 429 or an outage everything waits (`hold`), and after a 429 requests go out one by one at growing distances that shrink again as
answers come in. Of a burst of failures only the first counts: the others were on their way before anyone knew.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_S = 60.0
_FIRST_SPACING_S = 0.1  # between requests after the first 429
_GROWTH = 1.5  # of the spacing with each further one
_WIDEST_SPACING_S = 1.0  # whoever needs less than a request a second says requests_per_minute; the holds do their part
_RECOVERY = 0.9  # what an answer leaves of the spacing
_MANY = 8  # failures in a row, without an answer between, that no longer look like those of single requests


def backoff_s(first_s: float, attempt: int, seed: int, asked_s: float | None) -> float:
    """Return how long to wait, in seconds, after failure number `attempt` (from 1) of the request with `seed`.

    `first_s`, doubled with each attempt up to a minute, times 0.5 to 1.5 drawn from (seed, attempt): requests that failed together do not
    come back together, and the same request always waits the same. Never less than `asked_s`, what the endpoint asked for.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{seed}\x1f{attempt}".encode()).digest()[:8], "big") / 2**64
    wait_s = min(LONGEST_BACKOFF_S, first_s * 2.0 ** min(attempt - 1, 60)) * (0.5 + drawn)
    return wait_s if asked_s is None else max(wait_s, asked_s + first_s * drawn)


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given in seconds or as an HTTP date (RFC 9110, 10.2.3); None: no such.

    `now` is the endpoint's own clock where it says it (its Date header), else this machine's.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = http_date(value)
        if date is None:
            return None
        seconds = (_utc(date) - _utc(now or datetime.now(timezone.utc))).total_seconds()
    return max(0.0, seconds) if abs(seconds) < 1e9 else None  # NaN and infinity are no number of seconds either


def http_date(value: str) -> datetime | None:
    """Return the time that a header names; None where it is no date, or one beyond what a datetime holds."""
    try:
        return parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None


def _utc(date: datetime) -> datetime:
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


class Pace:
    """The pace of one endpoint. `requests_per_minute` None: as fast as it answers.

    `outages` counts holds since the last answer: an endpoint that is down makes it grow without end. `num_answered` counts answers.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        first_wait_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.outages = 0
        self.num_answered = 0
        self._shortest_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._spacing_s = self._shortest_s
        self._first_wait_s = first_wait_s
        self._clock = clock
        self._sleep = sleep
        self._next_at = 0.0
        self._held_until = 0.0
        self._failures_in_a_row = 0

    async def turn(self) -> float:
        """Wait until one more request may go; return that time on the pace's clock, for `failed`."""
        while True:
            at = max(self._clock(), self._next_at, self._held_until)
            self._next_at = at + self._spacing_s
            if at > self._clock():
                await self._sleep(at - self._clock())
            if self._clock() >= self._held_until:  # else another request met an outage meanwhile
                return self._clock()

    def answered(self) -> None:
        """Take note of a whole answer."""
        self.num_answered += 1
        self.outages = self._failures_in_a_row = 0
        faster_s = self._spacing_s * _RECOVERY
        self._spacing_s = max(self._shortest_s, faster_s if faster_s > 0.001 else 0.0)

    def failed(self, went_at: float, *, everyone: bool, limited: bool = False, asked_s: float | None = None) -> float:
        """Take note of a failure of the request that went at `went_at`; return for how many seconds all requests are held because of it.

        `everyone`: it would meet every request (connection refused, 429, 503), `limited`: because of a rate limit.
        """
        self._failures_in_a_row += 1
        if went_at < self._held_until or not (everyone or self._failures_in_a_row >= _MANY):
            return 0.0
        self.outages += 1
        hold_s = backoff_s(self._first_wait_s, self.outages, 0, asked_s)
        if limited:
            wider_s = min(_WIDEST_SPACING_S, max(_GROWTH * self._spacing_s, _FIRST_SPACING_S))
            self._spacing_s = max(self._shortest_s, wider_s)
        self._held_until = self._next_at = self._clock() + hold_s
        return hold_s
