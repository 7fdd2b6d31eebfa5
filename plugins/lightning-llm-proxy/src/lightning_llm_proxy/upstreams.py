"""The upstream models of the moment: which takes a call, who waits for which, and which is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Final

import aiohttp
from yarl import URL

from .engines import ENGINE_OF_OWNER
from .settings import ANY_MODEL, EngineName, Upstream

__all__ = ["Backend", "Upstreams"]

logger = logging.getLogger(__name__)

REST_SECONDS: Final = 2.0
"""For how long an upstream that failed gets calls only if the others are failing too."""
LONGEST_REST: Final = 30.0
_PROBE_SECONDS: Final = 5.0
_REDACT_FROM: Final = 6


class Backend:
    """An upstream at work. Belongs to one event loop.

    Attributes:
        settings: What the user set.
        active: How many calls it has.
    """

    def __init__(self, settings: Upstream) -> None:
        self.settings = settings
        self.active = 0
        self.waiting: deque[asyncio.Future[Backend | None]] = deque()
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        self.headers: dict[str, str] = {}
        if key is not None:
            # Anthropic's API takes the one, all others the other.
            self.headers = {"Authorization": f"Bearer {key}", "x-api-key": key}
        # Placeholders such as "none" are no secrets, and may stand in any text.
        self.secrets = [key] if key is not None and len(key) >= _REDACT_FROM else []
        self.timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.timeout
        )
        self.refused_wishes = False
        self._rests_until = 0.0
        self._urls: dict[str, URL] = {}
        self._engine: EngineName | None = None if settings.engine == "auto" else settings.engine
        self._probing: asyncio.Task[EngineName] | None = None
        self._probe_again = 0.0

    @property
    def free(self) -> bool:
        """Whether it may get another call."""
        limit = self.settings.max_concurrency
        return limit is None or self.active < limit

    @property
    def resting(self) -> bool:
        """Whether it failed a moment ago."""
        return self._rests_until > time.monotonic()

    def rest(self, seconds: float = REST_SECONDS) -> None:
        """Leave it alone for a while, if there is another."""
        self._rests_until = time.monotonic() + min(seconds, LONGEST_REST)

    def recovered(self) -> None:
        """Note that it answers."""
        self._rests_until = 0.0

    def url(self, path: str) -> URL:
        """Return the address of an API."""
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(f"{self.settings.base_url}/{path}", encoded=True)
        return url

    def release(self) -> None:
        """Give back a call's place: to the one that has waited longest, if there is one."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(self)
                return
        self.active -= 1

    async def engine(self, session: aiohttp.ClientSession) -> EngineName:
        """Return what serves there. It is found out from the list of models; ``none`` while that cannot be had."""
        if self._engine is not None:
            return self._engine
        if self._probing is None:
            if time.monotonic() < self._probe_again:
                return "none"
            self._probing = asyncio.create_task(self._probe(session))
        probing = self._probing
        try:
            # Others wait for the same answer.
            return await asyncio.shield(probing)
        finally:
            if probing.done():
                self._probing = None

    async def _probe(self, session: aiohttp.ClientSession) -> EngineName:
        try:
            async with session.get(
                self.url("models"), headers=self.headers, timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS)
            ) as response:
                answer: Any = await response.json(content_type=None)
            owners = [str(model.get("owned_by")) for model in answer["data"]]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._probe_again = time.monotonic() + _PROBE_SECONDS
            logger.warning(
                "%s does not say what serves there (%s), so it is not asked for token ids; set engine",
                self.settings.base_url,
                type(error).__name__,
            )
            return "none"
        known: list[EngineName] = [ENGINE_OF_OWNER[owner] for owner in owners if owner in ENGINE_OF_OWNER]
        engine: EngineName = known[0] if known else "none"
        self._engine = engine
        logger.info("%s is served by %s", self.settings.base_url, engine)
        return engine


class Upstreams:
    """Picks an upstream for each call. Belongs to one event loop.

    Args:
        settings: The upstream models.
    """

    def __init__(self, settings: Sequence[Upstream] = ()) -> None:
        self._backends: list[Backend] = []
        self._by_name: dict[str, list[Backend]] = {}
        self.replace(settings)

    @property
    def names(self) -> list[str]:
        """What clients may call the models."""
        return [name for name in self._by_name if name != ANY_MODEL]

    def replace(self, settings: Sequence[Upstream]) -> None:
        """Use these from now on. Calls under way are finished where they are; those that wait look anew."""
        known = {backend.settings: backend for backend in self._backends}
        backends = [known.pop(each, None) or Backend(each) for each in settings]
        before, self._backends = self._backends, backends
        self._by_name = {}
        for backend in backends:
            self._by_name.setdefault(backend.settings.name, []).append(backend)
        for backend in before:
            while backend.waiting:
                waiter = backend.waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)

    def find(self, model: object) -> list[Backend]:
        """Return the upstreams of a model; none if nobody serves it."""
        found = self._by_name.get(model) if isinstance(model, str) else None
        if found is None and not isinstance(model, str) and len(self._by_name) == 1:
            # A request that names no model means the only one.
            return self._backends
        return found or self._by_name.get(ANY_MODEL, [])

    async def acquire(self, model: object, but: Collection[Backend] = ()) -> Backend | None:
        """Wait for an upstream of a model that may get a call. It must be released after that.

        Args:
            model: What the client calls it.
            but: Those that have failed with this call.

        Returns:
            The upstream, or ``None`` if there is no other.
        """
        while True:
            backends = [backend for backend in self.find(model) if backend not in but]
            if not backends:
                return None
            if len(backends) > 1:
                backends = [backend for backend in backends if not backend.resting] or backends
            free = [backend for backend in backends if backend.free]
            if free:
                chosen = free[0] if len(free) == 1 else _draw(free)
                chosen.active += 1
                return chosen
            found = await _wait(backends)
            if found is not None:
                return found


def _draw(backends: list[Backend]) -> Backend:
    return random.choices(backends, [backend.settings.weight for backend in backends])[0]


async def _wait(backends: list[Backend]) -> Backend | None:
    """Wait for a place to be given back; ``None`` if the upstreams were replaced meanwhile."""
    waiter: asyncio.Future[Backend | None] = asyncio.get_running_loop().create_future()
    for backend in backends:
        backend.waiting.append(waiter)
    try:
        return await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled() and (given := waiter.result()) is not None:
            given.release()
        raise
    finally:
        for backend in backends:
            if waiter in backend.waiting:
                backend.waiting.remove(waiter)
