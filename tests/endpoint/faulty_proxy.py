"""A process between a client and a real endpoint that makes faults: python faulty_proxy.py UPSTREAM_PORT SEED

Prints its port. Each POST meets none to two faults before it is let through; how many and which depends on SEED and the request's bytes
alone. SEED 0 makes no faults. GET /faults tells how many of each kind there were.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

KINDS = ("429", "429 until a date", "500", "503", "timeout", "dropped before the answer", "dropped in mid-answer", "ended in mid-answer")
HANG_S = 60


class Proxy:
    def __init__(self, upstream: int, seed: int) -> None:
        self.upstream = upstream
        self.seed = seed
        self.tries: Counter[bytes] = Counter()
        self.faults: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                if head.startswith(b"GET /faults "):
                    writer.write(response(200, json.dumps(self.faults).encode()))
                elif not await self.answer(head, body, writer):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone
        finally:
            writer.close()

    async def answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        kind = self.fault_of(body) if head.startswith(b"POST") else None
        if kind is not None:
            self.faults[kind] += 1
        if kind in ("429", "429 until a date"):
            # Dates have whole seconds; of this one at least one is left.
            date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
            writer.write(response(429, b'{"error": {"message": "slow down"}}', f"Retry-After: {'1' if kind == '429' else date}"))
        elif kind in ("500", "503"):
            writer.write(response(int(kind), b'{"error": "engine trouble"}'))
        elif kind == "timeout":
            await asyncio.sleep(HANG_S)
        elif kind == "dropped before the answer":
            writer.transport.abort()
        else:
            whole = await self.forward(head, body)
            if kind is None:
                writer.write(whole)
                return True
            start = whole.index(b"\r\n\r\n") + 4
            writer.write(whole[: start + (len(whole) - start) // 2])
            await writer.drain()
            if kind == "dropped in mid-answer":
                writer.transport.abort()  # a reset; else an orderly end that comes too early
        return kind in ("429", "429 until a date", "500", "503")

    def fault_of(self, body: bytes) -> str | None:
        number = self.tries[body]
        self.tries[body] += 1
        drawn = random.Random(hashlib.sha256(b"%d %s" % (self.seed, body)).digest())
        kinds = drawn.choices(KINDS, k=drawn.randrange(3)) if self.seed else []
        return kinds[number] if number < len(kinds) else None

    async def forward(self, head: bytes, body: bytes) -> bytes:
        kept = [line for line in head.split(b"\r\n") if line and not line.lower().startswith((b"connection:", b"accept-encoding:"))]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body)
        whole = await reader.read()
        writer.close()
        return whole


def response(status: int, body: bytes, *lines: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


async def main() -> None:
    proxy = Proxy(int(sys.argv[1]), int(sys.argv[2]))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
