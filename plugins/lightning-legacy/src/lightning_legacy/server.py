"""``AgentLightningServer``: hands out tasks over HTTP and collects what clients report."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Final

from aiohttp import web

from lightning_core import LightningStore
from lightning_core.errors import ConfigurationError, StoreError
from lightning_core.types import NamedResources, Rollout, RolloutMode, TaskInput

from .app import make_app
from .listening import check_address, listen
from .loop import on_loop
from .protocol import TOKEN_VARIABLE, check_token
from .store import ServerDataStore

__all__ = ["AgentLightningServer"]

logger = logging.getLogger(__name__)

# Longer than clients keep an idle connection, so that it is they who close it.
_KEEP_ALIVE_SECONDS: Final = 75.0
_STOP_SECONDS: Final = 5.0
_BACKLOG: Final = 2048
_LOOK_AGAIN_SECONDS: Final = 5.0


class AgentLightningServer:
    """Hands out tasks and resources to v0.1 clients, and collects their reports.

    It serves from a thread of its own; its methods may be awaited on any event loop. Tasks may be queued and results
    retrieved whether it runs or not, and it may be stopped and started again. With a durable ``store``, so may the
    process: it goes on where it was.

    A task that no client reports on within ``task_timeout_seconds`` is handed out again, ``max_requeues`` times, and
    then given up: its result has no reward, and metadata that say why. Both are logged. The first report on a task
    counts.

    Args:
        host: The interface to listen on. Any other than the loopback needs a token.
        port: The port; 0 picks a free one.
        task_timeout_seconds: How long a client may have a task before it is handed out again, in seconds.
        max_requeues: How often that happens to a task, before it is given up.
        store: What keeps everything: a store, or a specification such as ``"sqlite:///legacy.db"``; ``None`` keeps it
            in memory.
        token: What clients must show; ``None`` takes it from ``LIGHTNING_CORE_LEGACY_TOKEN``, and without that lets
            everybody in who can reach the interface.
        max_body_bytes: The largest report that is taken, in bytes.

    Attributes:
        store: The data store that it serves.

    Raises:
        ConfigurationError: If ``host`` is another interface than the loopback and there is no token; if no header can
            carry the token; or if a number is out of range.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        task_timeout_seconds: float = 300.0,
        *,
        max_requeues: int = 5,
        store: LightningStore | str | dict[str, Any] | None = None,
        token: str | None = None,
        max_body_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._token = token or os.environ.get(TOKEN_VARIABLE) or None
        check_token(self._token)
        check_address(host, port, self._token)
        if max_body_bytes < 1:
            raise ConfigurationError(f"max_body_bytes={max_body_bytes}: at least 1 is needed")
        self.host = host
        self.store = ServerDataStore(
            store, task_timeout_seconds=task_timeout_seconds, max_requeues=max_requeues
        )
        self._port = port
        self._max_body_bytes = max_body_bytes
        # What follows is touched on the bridge's loop alone.
        self._changing = asyncio.Lock()
        self._site: web.AppRunner | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @property
    def port(self) -> int:
        """The port; the one that was picked, once the server has started."""
        return self._port

    @property
    def endpoint(self) -> str:
        """Where clients find the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._port}"

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._site is not None

    async def start(self) -> None:
        """Start to serve, and return when the server can be reached. Does nothing if it runs already.

        Raises:
            LegacyServerError: If the port is taken, or the interface does not exist.
        """
        await on_loop(self._start())

    async def stop(self) -> None:
        """Finish what is being answered, and stop. Tasks and results stay where they are."""
        await on_loop(self._stop())

    async def run_forever(self) -> None:
        """Serve until :meth:`stop` is called elsewhere, or this is cancelled, as by Ctrl+C.

        Raises:
            LegacyServerError: If the port is taken, or the interface does not exist.
        """
        await self.start()
        try:
            await on_loop(self._stopped.wait())
        finally:
            await self.stop()

    async def queue_task(
        self,
        sample: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Queue a task for the clients, and return the id of its rollout.

        Args:
            sample: The input of the task; JSON values, or what has a form as such.
            mode: Why it runs: ``"train"``, ``"val"`` or ``"test"``.
            resources_id: The resources to use; ``None`` for the latest when it runs.
            metadata: Anything that the client should get with it.

        Raises:
            ConfigurationError: If there is no such mode.
            UnserializableValueError: If JSON cannot hold ``sample`` or ``metadata``.
        """
        return await self.store.add_task(sample, mode, resources_id, metadata)

    async def update_resources(self, resources: NamedResources) -> str:
        """Make these resources the latest, under an id of their own, which is returned."""
        return (await self.store.add_resources(resources)).resources_id

    async def get_completed_rollout(self, rollout_id: str) -> Rollout | None:
        """Return a result, once; ``None`` if there is none yet, or it has been retrieved."""
        return await self.store.retrieve_rollout(rollout_id)

    async def poll_completed_rollout(self, rollout_id: str, timeout: float | None = None) -> Rollout | None:
        """Wait for a result, and return it.

        Args:
            rollout_id: The task's id.
            timeout: The longest wait, in seconds; ``None`` waits as long as it takes.

        Returns:
            The result; ``None`` if there is none in time, or it has been retrieved already.

        Raises:
            UnknownRolloutError: If there is no such task.
        """
        return await self.store.wait_for_rollout(rollout_id, timeout)

    async def retrieve_completed_rollouts(self) -> list[Rollout]:
        """Return all results that there are, each once; see :meth:`ServerDataStore.retrieve_rollout`."""
        return await self.store.retrieve_completed_rollouts()

    async def close(self) -> None:
        """Stop, and close the store unless it was given as an object."""
        await self.stop()
        await self.store.close()

    # The inside, on the bridge's loop

    async def _start(self) -> None:
        async with self._changing:
            if self._site is not None:
                return
            # An error of the store should come here, not with every request.
            await self.store.look_for_stale()
            listener = listen(self.host, self._port)
            app = make_app(self.store, token=self._token, max_body_bytes=self._max_body_bytes)
            site = web.AppRunner(
                app, access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS, shutdown_timeout=_STOP_SECONDS
            )
            try:
                await site.setup()
                await web.SockSite(site, listener, backlog=_BACKLOG).start()
            except BaseException:
                await site.cleanup()
                listener.close()
                raise
            self._port = listener.getsockname()[1]
            self._site = site
            self._stopped.clear()
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _stop(self) -> None:
        async with self._changing:
            site, watching = self._site, self._watching
            if site is None or watching is None:
                return
            self._site = self._watching = None
            watching.cancel()
            await site.cleanup()
            self._stopped.set()

    async def _watch(self) -> None:
        """Notice stale tasks though nobody asks for one, so that the log tells of them in time."""
        while True:
            try:
                seconds = await self.store.look_for_stale()
            except StoreError as error:
                logger.error("cannot look for stale tasks, trying again: %s", error)
                seconds = _LOOK_AGAIN_SECONDS
            await asyncio.sleep(seconds)
