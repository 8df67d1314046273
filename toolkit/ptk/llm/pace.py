"""When the next request may begin: so many requests and tokens a minute, evenly spaced, and none while the server wants a pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["Pace"]


class Pace:
    """Spaces out what begins; `None` is no bound. For one event loop."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_a_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._free = 0.0
        self._resume = 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing begin for that long."""
        self._resume = max(self._resume, self._clock() + seconds)

    async def turn(self, tokens: int) -> None:
        """Return when a request of so many tokens, prompt and answer, may begin; turns are given in the order of the calls."""
        while True:
            # What was promised before a pause is promised anew after it: else all would begin at once at its end.
            start = max(self._clock(), self._free, self._resume)
            self._free = start + max(self._seconds_a_request, tokens * self._seconds_a_token)
            if (wait := start - self._clock()) > 0:
                await self._sleep(wait)
            if self._resume <= start:
                return
