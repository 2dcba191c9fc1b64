"""Whether anybody listens where a daemon should: a client's suspicion is checked before it counts."""

from __future__ import annotations

import asyncio


async def refuses_connections(endpoints: tuple[str, ...], timeout_s: float) -> bool:
    """Whether every endpoint refuses; silence or an open listener is no refusal, and the lease decides."""
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            continue
        except (OSError, TimeoutError):
            return False
        writer.close()
        return False
    return True
