"""``ClientServerExecutionStrategy``: runners in processes of their own, here or on other machines, over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast, get_args

from lightning_core import ExecutionStrategy, LightningStore
from lightning_core.bridge import run_sync
from lightning_core.errors import ConfigurationError, ExecutionError
from lightning_core.execution.base import AlgorithmBundle, Role, RunnerBundle
from lightning_core.execution.event import StopEvent
from lightning_core.execution.orphans import start_mark
from lightning_core.execution.pickling import pack, refuse_entered_script
from lightning_core.execution.spawning import LogSettings
from lightning_core.store.base import StoreStatistics
from lightning_core.types import Run

from .attempts import abandon, quiet
from .child import Assignment
from .following import FollowedRun
from .parts import Part, ProcessPart, Restarts, ThreadPart
from .processes import StartMethod
from .server import LightningStoreServer, check_address
from .supervisor import Patience, Supervisor
from .watched import WatchedClient

__all__ = ["ClientServerExecutionStrategy"]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 4747
_FAREWELL_SECONDS = 5.0
"""How long the server stays at most for those who want to see how the run has ended."""
_NEEDED: Mapping[str, str] = {
    "role": "LIGHTNING_CORE_ROLE",
    "server_host": "LIGHTNING_CORE_SERVER_HOST",
    "server_port": "LIGHTNING_CORE_SERVER_PORT",
    "token": "LIGHTNING_CORE_STORE_TOKEN",
}


class ClientServerExecutionStrategy(ExecutionStrategy):
    """Runs the runners in processes of their own, which talk over HTTP to a server of the run's store.

    With the role ``both``, everything is started from here: the store and its server, the algorithm, and the runners.
    With ``algorithm`` the runners are elsewhere, and this process waits for them; with ``runner`` only runners are
    started, which work for the server of the other side until its run is over. One script can serve as both sides: what
    is not given comes from LIGHTNING_CORE_ROLE, LIGHTNING_CORE_SERVER_HOST, LIGHTNING_CORE_SERVER_PORT and
    LIGHTNING_CORE_STORE_TOKEN.

    A runner process that dies is replaced, and what it had in hand is reported as failed with the reason
    ``infrastructure``. Stopping escalates: runners finish what they have in hand, are interrupted, get SIGTERM, get
    SIGKILL. Agent, tracer, hooks and runner travel as specifications, and are made anew in each process.

    Args:
        n_runners: How many processes take rollouts.
        role: Which sides are started from here.
        server_host: The interface of the server, or the machine that has it.
        server_port: Its port; 0 for a free one. Without it: 0 with the role ``both``, else 4747.
        token: What the two sides know of each other. Without it the role ``both`` draws one.
        main_process: What runs in the user's own process, with the store: the algorithm, or, to stop in a runner
            with a debugger, the runners; the algorithm then gets a process.
        start_method: How processes are started; see ``multiprocessing``.
        graceful_seconds: How long rollouts in hand may take to end once the run is over or Ctrl+C was pressed.
        terminate_seconds: How long a process may take to end after it was interrupted, and after SIGTERM.
        startup_seconds: How long a process may take to start, or the server of the other side to be there.
        max_restarts: How many runner processes are replaced within ten minutes, before that is an error.
        retry_seconds: How long the server may be out of reach before a runner leaves.

    Raises:
        ConfigurationError: If settings do not fit together.
    """

    def __init__(
        self,
        n_runners: int = 1,
        *,
        role: Role | None = None,
        server_host: str | None = None,
        server_port: int | None = None,
        token: str | None = None,
        main_process: Literal["algorithm", "runner"] = "algorithm",
        start_method: StartMethod = "spawn",
        graceful_seconds: float = 5.0,
        terminate_seconds: float = 5.0,
        startup_seconds: float = 120.0,
        max_restarts: int = 10,
        retry_seconds: float = 60.0,
    ) -> None:
        if n_runners < 1:
            raise ConfigurationError(f"n_runners must be at least 1, not {n_runners}")
        self.n_runners = n_runners
        self.role = _read_role(role)
        self.host = server_host or os.environ.get(_NEEDED["server_host"]) or "127.0.0.1"
        self.port = _read_port(server_port, self.role)
        self.token = token or os.environ.get(_NEEDED["token"]) or None
        if self.role != "both" and self.token is None:
            raise ConfigurationError(
                f"the role {self.role!r} needs a token that both sides know: give token=..., or set "
                f"{_NEEDED['token']}"
            )
        if main_process not in ("algorithm", "runner"):
            raise ConfigurationError(f"main_process must be 'algorithm' or 'runner', not {main_process!r}")
        if self.role != "both" and main_process != "algorithm":
            raise ConfigurationError(
                "main_process='runner' is for the role 'both', which has both sides here"
            )
        if start_method not in get_args(StartMethod):
            raise ConfigurationError(
                f"start_method must be one of {', '.join(get_args(StartMethod))}, not {start_method!r}"
            )
        self.main_process = main_process
        self.start_method: StartMethod = start_method
        self.patience = Patience(graceful_seconds, terminate_seconds)
        self.startup_seconds = startup_seconds
        self.max_restarts = max_restarts
        self.retry_seconds = retry_seconds
        self._client: WatchedClient | None = None
        self._lasting: ExitStack | None = None

    def remote_store(self) -> LightningStore | None:
        """A client of the other side's server, for the role ``runner``."""
        return self._remote() if self.role == "runner" else None

    @contextmanager
    def prepared(self) -> Generator[None]:
        """Refuse what the server or a child process could not do; see :meth:`ExecutionStrategy.prepared`.

        With the role ``algorithm``, the server stays until the runners' sides have seen how the run has ended.

        Raises:
            ConfigurationError: If the server may not listen there, or this is a child that runs its script again.
            StoreUnavailableError: If the port is taken or the interface does not exist.
        """
        refuse_entered_script()
        check_address(self.host, self.port, self.token)
        with ExitStack() as lasting:
            self._lasting = lasting
            try:
                yield
            finally:
                self._lasting = None

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run everything to the end; see :meth:`ExecutionStrategy.execute`."""
        refuse_entered_script()
        here = self.main_process
        if self.role == "both":
            travels = runner if here == "algorithm" else algorithm
            work = self._packed(travels)
        else:
            work = None
        with ExitStack() as briefly:
            server = LightningStoreServer(store, self.host, self.port, token=self.token)
            if self.role == "algorithm" and self._lasting is not None:
                self._lasting.enter_context(server)
                self._lasting.callback(server.see_off, _FAREWELL_SECONDS)
            else:
                briefly.enter_context(server)
            stop = StopEvent()

            def end() -> None:
                stop.set()
                server.announce_end()
                if self.role == "algorithm":
                    run_sync(quiet(store, server, self.patience.graceful))

            supervisor = Supervisor(self.patience, end)
            if self.role == "algorithm":
                logger.info("the algorithm waits for runners at %s", server.url)
            if here == "algorithm":
                supervisor.algorithm = ThreadPart(
                    "lightning-algorithm", lambda: algorithm(store, stop), supervisor.wake
                )
            if self.role == "both":
                client = WatchedClient(
                    server.url, token=server.token, nonce=server.nonce, retry_seconds=self.retry_seconds
                )
                if here == "algorithm":
                    restarts = Restarts(self.max_restarts)
                    supervisor.runners = [
                        self._process(
                            "runner", number, work, client, store, supervisor, restarts, server.port
                        )
                        for number in range(self.n_runners)
                    ]
                else:
                    supervisor.algorithm = self._process(
                        "algorithm", 0, work, client, store, supervisor, None, server.port
                    )
                    supervisor.runners = [
                        ThreadPart(
                            f"lightning-runner-{number}", _bind(runner, store, number, stop), supervisor.wake
                        )
                        for number in range(self.n_runners)
                    ]
            try:
                supervisor.run()
            finally:
                _adopt(algorithm, supervisor.algorithm)

    def execute_runners(self, runner: RunnerBundle) -> tuple[Run | None, StoreStatistics]:
        """Run runners for the server of the other side; see :meth:`ExecutionStrategy.execute_runners`."""
        refuse_entered_script()
        if self.role != "runner":
            raise ExecutionError(f"the role is {self.role!r}; only the role 'runner' has runners alone")
        work = self._packed(runner)
        store = self._remote()
        followed = FollowedRun(store.location, self.token)
        followed.begin(self.startup_seconds)
        supervisor = Supervisor(self.patience, lambda: None)
        restarts = Restarts(self.max_restarts)
        supervisor.runners = [
            self._process("runner", number, work, store, store, supervisor, restarts, None)
            for number in range(self.n_runners)
        ]
        try:
            supervisor.run()
            followed.see_end(self.retry_seconds)
        finally:
            followed.leave()
        return followed.run, followed.statistics

    def _remote(self) -> WatchedClient:
        if self._client is None:
            host = f"[{self.host}]" if ":" in self.host else self.host
            self._client = WatchedClient(
                f"http://{host}:{self.port}", token=self.token, retry_seconds=self.retry_seconds
            )
        return self._client

    def _packed(self, work: Any) -> Any:
        # A forked process has everything already, and what cannot be pickled too.
        return work if self.start_method == "fork" else pack(work)

    def _process(
        self,
        side: Literal["runner", "algorithm"],
        number: int,
        work: Any,
        client: WatchedClient,
        store: LightningStore,
        supervisor: Supervisor,
        restarts: Restarts | None,
        port: int | None,
    ) -> ProcessPart:
        async def report_death(workers: set[str], how: str, stopping: bool) -> None:
            if store is not client:
                await abandon(store, workers, how, cancelled=stopping)
                return
            # Over the network, briefly: the server may be gone for good, and the leases expire in any case.
            brief = WatchedClient(
                store.location, token=self.token, retry_seconds=min(2.0, self.retry_seconds)
            )
            try:
                await abandon(brief, workers, how, cancelled=stopping)
            finally:
                await brief.close()

        def on_death(workers: set[str], how: str, stopping: bool) -> None:
            run_sync(report_death(workers, how, stopping))

        return ProcessPart(
            f"lightning-runner-{number}" if side == "runner" else "lightning-algorithm",
            method=self.start_method,
            assignment=Assignment(
                side=side,
                number=number,
                work=work,
                store=client,
                parent=(os.getpid(), start_mark(os.getpid())),
                leave_seconds=self.patience.graceful,
                port=port,
                environment=dict(os.environ) if self.start_method == "forkserver" else {},
                log=LogSettings.of_this_process(),
            ),
            startup_seconds=self.startup_seconds,
            restarts=restarts,
            leaves_with_server=self.role == "runner",
            post=supervisor.post,
            siblings=supervisor.children,
            on_death=on_death,
        )


def _adopt(algorithm: AlgorithmBundle, part: Part | None) -> None:
    """Hand over what the algorithm has come to in another process."""
    adopt: Any = getattr(algorithm, "adopt", None)
    if isinstance(part, ProcessPart) and part.outcome is not None and adopt is not None:
        adopt(part.outcome)


def _bind(runner: RunnerBundle, store: LightningStore, number: int, stop: StopEvent) -> Any:
    return lambda: runner(store, number, stop)


def _read_role(given: Role | None) -> Role:
    role = given or os.environ.get(_NEEDED["role"]) or "both"
    if role not in get_args(Role):
        where = "role" if given else _NEEDED["role"]
        raise ConfigurationError(f"{where} must be one of {', '.join(get_args(Role))}, not {role!r}")
    return cast("Role", role)


def _read_port(given: int | None, role: Role) -> int:
    text = os.environ.get(_NEEDED["server_port"])
    if given is None and text:
        try:
            given = int(text)
        except ValueError:
            raise ConfigurationError(f"{_NEEDED['server_port']} is no number: {text!r}") from None
    if given is None:
        return 0 if role == "both" else DEFAULT_PORT
    if not 0 <= given <= 65535:
        raise ConfigurationError(f"server_port must be from 0 to 65535, not {given}")
    if given == 0 and role == "runner":
        raise ConfigurationError("the role 'runner' needs the port of the other side's server, not 0")
    return given
