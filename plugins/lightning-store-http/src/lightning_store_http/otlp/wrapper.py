"""A store that forwards what is written to another one."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Sequence
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.store.base import LightningStore
from lightning_core.store.encoding import EncodedSpan
from lightning_core.store.otlp import OtlpEndpoint
from lightning_core.types import Span

from .forwarder import Forwarder

__all__ = ["forwarding"]


def forwarding(store: LightningStore, forwarder: Forwarder) -> LightningStore:
    """Return a store that is ``store``, and offers every span that is stored through it to ``forwarder``.

    Of a call of which some spans were stored before, all are forwarded again; of one that brings nothing new, none
    is. A forwarder without a store of its own reads from ``store`` what it has to. Closing the new store closes
    ``store`` and leaves the forwarder as it is.
    """
    if forwarder.store is None:
        forwarder.store = store
    # The methods that the contract asks for are added below.
    make = cast("type[Any]", _ForwardingStore)
    return cast("LightningStore", make(store, forwarder))


class _ForwardingStore(LightningStore):
    def __init__(self, store: LightningStore, forwarder: Forwarder) -> None:
        self._store = store
        self._forwarder = forwarder
        # A class variable of other stores; here it depends on what is wrapped.
        setattr(self, "capabilities", store.capabilities)  # noqa: B010

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._store, name)

    @property
    def location(self) -> str:
        return self._store.location

    @property
    def otlp_endpoint(self) -> OtlpEndpoint | None:
        return self._store.otlp_endpoint

    async def add_span(self, span: Span) -> Span:
        stored = await self._store.add_span(span)
        self._forwarder.offer([stored])
        return stored

    async def add_spans(self, spans: Sequence[Span]) -> int:
        new = await self._store.add_spans(spans)
        if new:
            self._forwarder.offer(spans)
        return new

    async def add_encoded_spans(self, spans: Sequence[EncodedSpan]) -> int:
        new = await self._store.add_encoded_spans(spans)
        if new:
            self._forwarder.offer(spans)
        return new

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span:
        stored = await self._store.add_otel_span(rollout_id, attempt_id, readable_span, sequence_id)
        self._forwarder.offer([stored])
        return stored


def _pass_on(name: str) -> Any:
    # Without the function's own attributes, one of which says that it is abstract.
    @functools.wraps(getattr(LightningStore, name), updated=())
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._store, name)(*args, **kwargs)

    return method


for _name, _member in vars(LightningStore).items():
    if inspect.iscoroutinefunction(_member) and _name not in vars(_ForwardingStore):
        setattr(_ForwardingStore, _name, _pass_on(_name))
abc.update_abstractmethods(_ForwardingStore)
