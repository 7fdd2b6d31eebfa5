"""``LLMProxy``: the proxy as one object, which starts and stops its server in a thread."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pydantic import SecretStr, TypeAdapter, ValidationError

from lightning_core import LLM, LightningStore, ProxyLLM
from lightning_core.errors import ConfigurationError, EngineError
from lightning_core.serving import StartStop, bind, listening_problem

from .server import Server
from .settings import ANY_MODEL, Upstream

__all__ = ["LLMProxy"]

_START_SECONDS: Final = 60.0
_MIB: Final = 2**20
_UPSTREAMS: Final = TypeAdapter(list[Upstream])


class LLMProxy(StartStop):
    """Passes calls on to OpenAI-compatible endpoints, and records each call of a rollout as a span.

    It serves from a thread with an event loop of its own, and may be started and stopped any number of times; it keeps
    the port that it had the first time. ``with`` and ``async with`` do both::

        with LLMProxy([{"name": "qwen", "base_url": "http://127.0.0.1:8000/v1"}], store) as proxy:
            await store.add_resources({"main_llm": proxy.as_resource()})

    A copy in another process, such as that of an algorithm which was sent there, only knows where it serves; models are
    changed in the process that started it.

    Args:
        model_list: The upstream models: each an :class:`Upstream`, or a dict of its settings.
        store: Where spans go; :meth:`set_store` and :meth:`start` give one too.
        host: The interface to listen on. Any other than the loopback needs a ``token``.
        port: The port; 0 picks a free one.
        advertised_host: Where clients find the proxy; by default at ``host``.
        token: What clients must send as their API key.
        confirm_seconds: For how long the end of an answer may wait until its span is stored, in seconds.
        retry_seconds: For how long spans are tried again while the store is away, in seconds.
        max_waiting_mb: The most memory of spans that wait for the store, in MiB.
        max_body_mb: The largest request, in MiB.
        stop_seconds: How long :meth:`stop` waits for calls under way, and then for their spans, in seconds.

    Raises:
        ConfigurationError: If an upstream has wrong settings, or others could reach the proxy without a token.
    """

    def __init__(
        self,
        model_list: Iterable[Upstream | Mapping[str, Any]] = (),
        store: LightningStore | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        token: SecretStr | str | None = None,
        confirm_seconds: float = 2.0,
        retry_seconds: float = 300.0,
        max_waiting_mb: float = 256.0,
        max_body_mb: float = 64.0,
        stop_seconds: float = 5.0,
    ) -> None:
        secret = token.get_secret_value() if isinstance(token, SecretStr) else token
        if problem := listening_problem("a proxy", host, secret):
            raise ConfigurationError(problem)
        self._upstreams = _read_upstreams(model_list)
        self._store = store
        self._host = host
        self._port = port
        self._advertised_host = advertised_host
        self._token = SecretStr(secret) if secret is not None else None
        self._confirm_seconds = confirm_seconds
        self._retry_seconds = retry_seconds
        self._max_waiting = int(max_waiting_mb * _MIB)
        self._max_body = int(max_body_mb * _MIB)
        self._stop_seconds = stop_seconds
        self._nonce = secrets.token_hex(8)
        self._lock = threading.RLock()
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        # The process that serves.
        self._home: int | None = None

    def __repr__(self) -> str:
        names = ", ".join(sorted({upstream.name for upstream in self._upstreams}))
        return f"<LLMProxy for {names or 'no model'} at {self.url}>"

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets the settings, and not the server; of one that serves, not even the store, which it has.
        left_behind = dict.fromkeys(("_lock", "_server", "_thread", "_store" if self.running else "_home"))
        return {**vars(self), **left_behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    @property
    def model_list(self) -> list[Upstream]:
        """The upstream models."""
        return list(self._upstreams)

    @property
    def url(self) -> str:
        """The base URL for clients, without a rollout. Its port is 0 until one was picked."""
        host = self._advertised_host or self._host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._port}/v1"

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._elsewhere or (self._thread is not None and self._thread.is_alive())

    @property
    def _elsewhere(self) -> bool:
        """Whether it serves from another process, and this is a copy."""
        return self._home is not None and self._home != os.getpid()

    @property
    def written(self) -> int:
        """How many spans the store has taken since the start."""
        return self._server.recorder.written if self._server is not None else 0

    @property
    def lost(self) -> int:
        """How many spans have been lost since the start; each loss is logged too."""
        return self._server.recorder.lost if self._server is not None else 0

    def set_store(self, store: LightningStore) -> None:
        """Say where spans go, before or while it serves."""
        with self._lock:
            self._store = store
            if self._server is not None:
                self._server.recorder.store = store

    def update_model_list(self, model_list: Iterable[Upstream | Mapping[str, Any]]) -> None:
        """Use other upstream models from now on.

        Calls under way are finished where they are; those that wait for a place, and all that come when this has
        returned, go to the new ones. Upstreams whose settings are the same keep their limits.

        Raises:
            ConfigurationError: If one has wrong settings; nothing is changed then.
            EngineError: If it serves from another process.
        """
        upstreams = _read_upstreams(model_list)
        self._refuse_elsewhere("its models can be changed")
        with self._lock:
            self._upstreams = upstreams
            if self._server is not None and self.running:
                self._server.call(self._server.replace_upstreams(upstreams))

    def as_resource(
        self, model: str | None = None, *, sampling_parameters: Mapping[str, Any] | None = None
    ) -> ProxyLLM:
        """Return the resource by which agents find a model here.

        Args:
            model: What the proxy calls the model; by default the first one that has a name.
            sampling_parameters: What agents find as the endpoint's sampling parameters.

        Raises:
            ConfigurationError: If no model has a name and none is given, or the proxy has no port yet.
        """
        if model is None:
            named = [upstream.name for upstream in self._upstreams if upstream.name != ANY_MODEL]
            if not named:
                raise ConfigurationError(
                    "the LLM proxy knows no model by name: give model=…, or an upstream with a name"
                )
            model = named[0]
        if self._port == 0:
            raise ConfigurationError("the LLM proxy has no port yet: start it first")
        key = self._token.get_secret_value() if self._token is not None else "none"
        return ProxyLLM(
            endpoint=self.url, model=model, api_key=key, sampling_parameters=dict(sampling_parameters or {})
        )

    def start(self, store: LightningStore | None = None) -> ProxyLLM | None:
        """Start to serve, and return when the proxy can be reached. One that serves already stays as it is.

        Args:
            store: Where spans go, instead of what was given before.

        Returns:
            The resource of the first model, as :meth:`as_resource` gives it; ``None`` if no model has a name.

        Raises:
            EngineError: If the port is taken, the interface does not exist, or the server does not start.
        """
        with self._lock:
            if store is not None:
                self.set_store(store)
            # A copy has nothing to start.
            if not self.running:
                self._start()
            named = any(upstream.name != ANY_MODEL for upstream in self._upstreams)
            return self.as_resource() if named else None

    def _start(self) -> None:
        try:
            listener = bind(self._host, self._port)
        except OSError as error:
            raise EngineError(str(error)) from error
        self._port = listener.getsockname()[1]
        server = Server(
            listener,
            self._upstreams,
            self._store,
            token=self._token.get_secret_value() if self._token is not None else None,
            nonce=self._nonce,
            confirm_seconds=self._confirm_seconds,
            retry_seconds=self._retry_seconds,
            max_waiting=self._max_waiting,
            max_body=self._max_body,
            stop_seconds=self._stop_seconds,
        )
        self._server = server
        self._home = os.getpid()
        self._thread = threading.Thread(target=server.run, name="lightning-llm-proxy", daemon=True)
        self._thread.start()
        if not server.ready.wait(_START_SECONDS) or server.failure is not None:
            why = f": {server.failure}" if server.failure is not None else f" within {_START_SECONDS:g} s"
            self.stop()
            raise EngineError(f"the LLM proxy at {self.url} did not start{why}") from server.failure

    def stop(self) -> None:
        """Refuse new calls, let those under way end, write their spans, and stop. Does nothing if it does not serve."""
        with self._lock:
            thread, server = self._thread, self._server
            if thread is None or server is None or self._elsewhere:
                return
            server.stop()
            thread.join()
            self._thread = self._home = None

    @contextmanager
    def in_front_of(
        self, llms: Mapping[str, LLM], store: LightningStore | None = None
    ) -> Generator[dict[str, ProxyLLM]]:
        """Serve the models of resources too, while the block runs.

        ``Trainer.fit`` does that with the models that a run starts from. Those that an upstream with the same address
        serves already stay with its settings. If the proxy does not serve yet, it is started, and stopped at the end of
        the block. Its models are then those that it had before.

        Args:
            llms: Where models are, by the names of their resources.
            store: Where spans go, instead of what was given before.

        Yields:
            The resources by which agents find these models here, under the same names. Without ``llms`` it is the first
            model that the proxy knows by name, as ``main_llm``; nothing if there is none, and then nothing is started.

        Raises:
            ConfigurationError: If a resource has no address that could be passed on to.
            EngineError: If the proxy cannot start.
        """
        before = self._upstreams
        upstreams, names = _put_in(before, llms)
        if not names and all(upstream.name == ANY_MODEL for upstream in before):
            yield {}
            return
        if store is not None:
            self.set_store(store)
        self.update_model_list(upstreams)
        started = not self.running
        try:
            self.start()
            if names:
                yield {
                    resource: self.as_resource(name, sampling_parameters=llms[resource].sampling_parameters)
                    for resource, name in names.items()
                }
            else:
                yield {"main_llm": self.as_resource()}
        finally:
            if started:
                self.stop()
            self.update_model_list(before)

    async def flush(self) -> None:
        """Wait until the spans of all calls that have ended are stored.

        Raises:
            TraceError: If spans have been lost since the last flush.
            EngineError: If it serves from another process.
        """
        self._refuse_elsewhere("its spans can be waited for")
        server = self._server
        if server is not None and self.running:
            await asyncio.wrap_future(server.submit(server.recorder.flush()))

    def _refuse_elsewhere(self, what: str) -> None:
        if self._elsewhere:
            raise EngineError(
                f"the LLM proxy at {self.url} serves from process {self._home}, where alone {what}; the algorithm of a "
                "Trainer runs there unless its strategy has main_process='runner'"
            )


def _read_upstreams(model_list: Iterable[Upstream | Mapping[str, Any]]) -> list[Upstream]:
    try:
        upstreams = _UPSTREAMS.validate_python(list(model_list))
    except ValidationError as error:
        problems = "; ".join(
            f"model_list.{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        # Not `from error`: what was given, keys among it, would be in the traceback.
        raise ConfigurationError(problems) from None
    if len(set(upstreams)) != len(upstreams):
        raise ConfigurationError(
            "model_list: two upstreams are the same; give one of them a larger weight instead"
        )
    return upstreams


def _put_in(before: list[Upstream], llms: Mapping[str, LLM]) -> tuple[list[Upstream], dict[str, str]]:
    """Add the models of resources to upstreams.

    Returns:
        All upstreams, and what the model of each resource is called.
    """
    upstreams = list(before)
    names: dict[str, str] = {}
    for resource, llm in llms.items():
        upstream = _upstream_of(resource, llm)
        rivals = [each for each in upstreams if each.name == upstream.name]
        serving = rivals or [each for each in upstreams if each.name == ANY_MODEL]
        if upstream not in rivals and not any(
            each in before and each.base_url == upstream.base_url for each in serving
        ):
            if rivals:
                # Another model of that name: calls of the one must not reach the other.
                upstream = _upstream_of(resource, llm, name=f"{llm.model}@{resource}", model=llm.model)
            upstreams.append(upstream)
        names[resource] = upstream.name
    return upstreams, names


def _upstream_of(resource: str, llm: LLM, **settings: Any) -> Upstream:
    try:
        return Upstream.from_llm(llm, **settings)
    except ValidationError as error:
        problems = "; ".join(
            problem["msg"] for problem in error.errors(include_input=False, include_url=False)
        )
        # Not `from error`, as below.
        raise ConfigurationError(
            f"the LLM proxy cannot stand in front of the resource {resource!r}: {problems}"
        ) from None
