"""``AgentLightningClient``: takes tasks from a v0.1 server and reports on them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import uuid
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from lightning_core.bridge import bridge_loop
from lightning_core.errors import ConfigurationError
from lightning_core.types import ResourcesUpdate, Rollout, Task

from .cache import ResourcesCache
from .connection import Answer, Backoff, Connection, Trouble, pause
from .errors import LegacyServerError
from .loop import call, on_loop
from .protocol import (
    CLIENT_HEADER,
    LATEST_PATH,
    REQUEST_HEADER,
    RESOURCES_PATH,
    ROLLOUT_PATH,
    TASK_PATH,
    TaskIfAny,
    write,
)

__all__ = ["AgentLightningClient"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class AgentLightningClient:
    """Takes tasks from a v0.1 server, gets their resources, and reports what came of them.

    Each method is there twice, to be called and to be awaited; both do the same. A client may be used from several
    threads and event loops, survives ``fork``, and can be pickled; a pickled client carries the token.

    While the server cannot be reached, requests are tried again with growing pauses, so that it may be started later,
    or again: a task that is asked for twice is handed out once, and a report that arrives twice counts once.

    Args:
        endpoint: The server's root URL, such as ``http://127.0.0.1:8000``.
        poll_interval: How long to wait before asking again when the server has no task, in seconds.
        timeout: How long an answer may take, in seconds.
        token: What the server asks for, if it does; ``None`` takes it from ``LIGHTNING_CORE_LEGACY_TOKEN``.
        retry_seconds: How long to try again while the server cannot be reached, in seconds. Waiting for a task has no
            such limit.
        cache_size: How many versions of resources are remembered.

    Raises:
        ConfigurationError: If ``endpoint`` is no URL of a server, a number is out of range, or no header can carry the
            token.
    """

    def __init__(
        self,
        endpoint: str,
        poll_interval: float = 5.0,
        timeout: float = 10.0,
        *,
        token: str | None = None,
        retry_seconds: float = 60.0,
        cache_size: int = 32,
    ) -> None:
        if not poll_interval >= 0:
            raise ConfigurationError(
                f"poll_interval={poll_interval!r}: a number of seconds from 0 on is needed"
            )
        if not timeout > 0:
            raise ConfigurationError(f"timeout={timeout!r}: a number of seconds above 0 is needed")
        if not retry_seconds >= 0:
            raise ConfigurationError(
                f"retry_seconds={retry_seconds!r}: a number of seconds from 0 on is needed"
            )
        self._connection = Connection(endpoint, timeout, token)
        self.endpoint = self._connection.endpoint
        self.poll_interval = poll_interval
        self.timeout = timeout
        self._retry_seconds = retry_seconds
        self._cache = ResourcesCache(cache_size)
        self._away = False
        self._closed = False
        # Touched on the bridge's loop alone.
        self._sleepers: set[asyncio.Event] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: everything but who waits in this one."""
        return {**vars(self), "_sleepers": set()}

    # Tasks

    def poll_next_task(self) -> Task | None:
        """Wait for the server to have a task, and take it.

        Returns:
            The task; ``None`` once the client is closed.

        Raises:
            LegacyServerError: If there is no v0.1 server at the endpoint, and waiting would not bring one about.
        """
        return call(self._poll())

    async def poll_next_task_async(self) -> Task | None:
        """Wait for the server to have a task, and take it; see :meth:`poll_next_task`."""
        return await on_loop(self._poll())

    # Resources

    def get_resources_by_id(self, resource_id: str) -> ResourcesUpdate | None:
        """Return the resources of this id, asking the server only for those that are not remembered.

        Args:
            resource_id: Usually a task's ``resources_id``.

        Returns:
            The resources, a copy of your own; ``None`` if the server does not know them.

        Raises:
            LegacyServerError: If there is no v0.1 server at the endpoint, or it could not be reached for
                ``retry_seconds``.
        """
        return call(self._get_by_id(resource_id))

    async def get_resources_by_id_async(self, resource_id: str) -> ResourcesUpdate | None:
        """Return the resources of this id; see :meth:`get_resources_by_id`."""
        return await on_loop(self._get_by_id(resource_id))

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """Ask the server for its latest resources.

        Returns:
            The resources; ``None`` if the server has none yet.

        Raises:
            LegacyServerError: If there is no v0.1 server at the endpoint, or it could not be reached for
                ``retry_seconds``.
        """
        return call(self._get_latest())

    async def get_latest_resources_async(self) -> ResourcesUpdate | None:
        """Ask the server for its latest resources; see :meth:`get_latest_resources`."""
        return await on_loop(self._get_latest())

    # Reports

    def post_rollout(self, rollout: Rollout) -> dict[str, Any] | None:
        """Report what came of a task.

        Args:
            rollout: The report; its ``rollout_id`` is the task's.

        Returns:
            The server's answer. Its ``status`` is ``"error"`` if the server does not take the report, for instance
            because it does not know the task. ``None`` if the server could not be reached for ``retry_seconds``: it
            will hand the task out again. Both are logged.

        Raises:
            LegacyServerError: If there is no v0.1 server at the endpoint.
            UnserializableValueError: If JSON cannot hold the report.
        """
        return call(self._post(rollout))

    async def post_rollout_async(self, rollout: Rollout) -> dict[str, Any] | None:
        """Report what came of a task; see :meth:`post_rollout`."""
        return await on_loop(self._post(rollout))

    def close(self) -> None:
        """Have those who wait for a task get ``None``, and whoever waits for the server give up."""
        self._closed = True
        bridge_loop().call_soon_threadsafe(self._wake)

    # The inside, on the bridge's loop

    def _wake(self) -> None:
        for event in self._sleepers:
            event.set()

    async def _sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.add(event)
        try:
            if not self._closed:
                await pause(seconds, event)
        finally:
            self._sleepers.discard(event)

    async def _poll(self) -> Task | None:
        while not self._closed:
            # The same for every try, so that a task whose answer is lost is handed out again, and no other.
            headers = {CLIENT_HEADER: _name(), REQUEST_HEADER: uuid.uuid4().hex}
            answer = await self._ask("GET", TASK_PATH, headers=headers, patience=None)
            if answer is None:
                break
            found = self._parse(TaskIfAny, answer, TASK_PATH)
            if found.task is not None:
                return found.task
            await self._sleep(self.poll_interval)
        return None

    async def _get_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        known = self._cache.get(resources_id)
        if known is not None:
            return known
        return await self._get(f"{RESOURCES_PATH}/{quote(resources_id, safe='')}")

    async def _get_latest(self) -> ResourcesUpdate | None:
        return await self._get(LATEST_PATH)

    async def _get(self, path: str) -> ResourcesUpdate | None:
        answer = await self._ask("GET", path, patience=self._retry_seconds)
        if answer is None:
            raise LegacyServerError(
                f"the server at {self.endpoint} could not be reached for {self._retry_seconds:g} s: its resources are "
                "not known"
            )
        if answer.status == 404:
            return None
        update = self._parse(ResourcesUpdate, answer, path)
        self._cache.put(update)
        return update

    async def _post(self, rollout: Rollout) -> dict[str, Any] | None:
        answer = await self._ask("POST", ROLLOUT_PATH, body=write(rollout), patience=self._retry_seconds)
        if answer is None:
            logger.error(
                "rollout %s could not be reported: the server at %s could not be reached for %g s. It will hand the "
                "task out again",
                rollout.rollout_id,
                self.endpoint,
                self._retry_seconds,
            )
            return None
        if not answer.is_object:
            raise self._connection.stranger(f"POST {ROLLOUT_PATH}", f"with {answer.message}")
        if answer.status >= 400:
            logger.error(
                "the server at %s did not take the report on rollout %s: %s",
                self.endpoint,
                rollout.rollout_id,
                answer.message,
            )
        return answer.value

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience: float | None,
    ) -> Answer | None:
        """Send a request until there is an answer; ``None`` if there is none for too long, or the client is closed."""
        backoff = Backoff(patience)
        while True:
            try:
                answer = await self._connection.request(method, path, body=body, headers=headers)
            except Trouble as trouble:
                if not self._away:
                    self._away = True
                    logger.warning("no answer by the server at %s, trying again: %s", self.endpoint, trouble)
            else:
                if self._away:
                    self._away = False
                    logger.warning("the server at %s answers again", self.endpoint)
                return answer
            seconds = backoff.next()
            if seconds is None or self._closed:
                return None
            await self._sleep(seconds)

    def _parse(self, model: type[M], answer: Answer, path: str) -> M:
        if answer.status >= 400:
            raise self._connection.stranger(f"GET {path}", f"with status {answer.status}: {answer.message}")
        try:
            return model.model_validate(answer.value)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the whole"
            raise self._connection.stranger(
                f"GET {path}", f"with {answer.message} ({where}: {problem['msg']})"
            ) from None


def _name() -> str:
    host = re.sub(r"[^A-Za-z0-9._]+", "-", socket.gethostname())
    return f"{host}-{os.getpid()}"[-64:]
