"""The fast path: many operations in one request, in msgpack, carried out at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from pydantic import Field

from lightning_core.errors import LightningError, UnserializableValueError
from lightning_core.types import AttemptedRollout

from .answers import Answer, Peer
from .arguments import Arguments
from .bodies import Disconnected, content_type, read_body
from .failures import RequestError, describe
from .operations import OPERATIONS
from .service import Service
from .wire import JSON, MSGPACK, WireError, pack, pack_json, unpack

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Envelope", "answer_batch"]

_WITHDRAW: Final = "withdraw"
_FOLLOW: Final = "follow"
Number = Annotated[int, Field(ge=1)]


class Envelope(Arguments):
    """The body of a batch.

    Attributes:
        operations: Each the name of an operation and its arguments.
        client: Random name of the client, along with ``number``.
        number: The request's number among the client's, from 1. A request that comes again with the same number gets
            the same answer, and is not carried out again.
        below: The client has had the answers to all of its requests below this number.
    """

    operations: list[tuple[str, dict[str, Any]]]
    client: Annotated[str, Field(min_length=8, max_length=64)] | None = None
    number: Number | None = None
    below: Number = 1


class Withdraw(Arguments):
    """Arguments of ``withdraw``: the client does not want the answer to a request any more."""

    client: str
    number: Number


class Follow(Arguments):
    """Arguments of ``follow``: somebody wants to see how the run ends, or does not any more."""

    follower: Annotated[str, Field(min_length=8, max_length=64)]
    leaves: bool = False


async def answer_batch(service: Service, scope: Scope, receive: Receive) -> Answer:
    """Answer a batch.

    Each operation has a pair in the answer: ``[true, result]``, or ``[false, {"type": …, "message": …}]``. The result
    of an operation that waits is a pair itself: whether there is nothing more to wait for, and the result proper.

    Raises:
        RequestError, ValidationError: If it is none.
        Disconnected: If the client went away while it waited.
    """
    kind = content_type(scope)
    if kind not in (MSGPACK, JSON):
        raise RequestError(415, f"a batch is {MSGPACK} or {JSON}")
    body = await read_body(scope, receive, service.limits.max_body_bytes)
    try:
        envelope = Envelope.model_validate(unpack(kind, body))
    except WireError as error:
        raise RequestError(400, str(error)) from None
    service.limit(len(envelope.operations), "operations")
    if envelope.client is None or envelope.number is None:
        return await _carry_out(service, envelope.operations, kind, receive)
    peer = service.answers.of(envelope.client)
    number = envelope.number
    peer.acknowledge(envelope.below)
    peer.check(number)
    while number not in peer.answered:
        running = peer.running.get(number)
        begun = running is None
        if running is None:
            running = asyncio.create_task(_carry_out(service, envelope.operations, kind, receive))
            peer.begin(number, running)
            running.add_done_callback(lambda task: _keep(peer, number, task))
        # What has begun is carried to its end, though this connection may break: its client will ask again.
        try:
            return await asyncio.shield(running)
        except Disconnected:
            # If it was the connection of an earlier try that broke, and ended the wait, it begins again.
            if begun:
                raise
        except asyncio.CancelledError:
            if running.cancelled():
                raise RequestError(409, f"request {number} has been withdrawn") from None
            raise
    return peer.answered[number]


def _keep(peer: Peer, number: int, task: asyncio.Task[Answer]) -> None:
    peer.running.pop(number, None)
    if not task.cancelled() and task.exception() is None:
        peer.keep(number, task.result())


async def _carry_out(
    service: Service, operations: Sequence[tuple[str, dict[str, Any]]], kind: str, receive: Receive
) -> Answer:
    if len(operations) == 1:
        results = [await _perform(service, *operations[0], receive)]
    else:
        results = await asyncio.gather(*(_perform(service, name, given) for name, given in operations))
    try:
        return Answer(*_write(results, kind), results)
    except (TypeError, ValueError, OverflowError, RecursionError):
        checked = [await _writable(service, result) for result in results]
        return Answer(*_write(checked, kind), checked)


async def _perform(
    service: Service, name: str, given: dict[str, Any], receive: Receive | None = None
) -> tuple[bool, Any]:
    try:
        if name == _WITHDRAW:
            return True, await _withdraw(service, Withdraw.model_validate(given))
        if name == _FOLLOW:
            follow = Follow.model_validate(given)
            return True, service.follow(follow.follower, leaves=follow.leaves)
        operation = OPERATIONS.get(name)
        if operation is None:
            raise RequestError(422, f"there is no operation {name[:100]!r}")
        outcome = await service.perform(operation, operation.arguments.model_validate(given), receive)
        return True, outcome.result if operation.waits is None else (outcome.complete, outcome.result)
    except Disconnected:
        raise
    except Exception as error:
        return False, describe(error)


def _write(results: Sequence[tuple[bool, Any]], kind: str) -> tuple[str, bytes]:
    if kind == MSGPACK:
        try:
            return MSGPACK, pack(results)
        except (ValueError, OverflowError):
            # Such as an integer of more than 64 bits.
            pass
    return JSON, pack_json(results)


async def _writable(service: Service, result: tuple[bool, Any]) -> tuple[bool, Any]:
    """Replace a result that holds what no network can carry by an error that says so."""
    try:
        _write([result], JSON)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        for rollout in _taken(result):
            await _refuse(service, rollout, error)
        return False, describe(
            UnserializableValueError(f"the store holds what the network cannot carry: {error}")
        )
    return result


async def _refuse(service: Service, rollout: AttemptedRollout, error: Exception) -> None:
    """End a rollout whose attempt cannot be handed out, nor any other."""
    try:
        await service.store.update_attempt(
            rollout.rollout_id, rollout.attempt.attempt_id, status="failed", reason="infrastructure",
            metadata={"error": f"its input cannot go over the network: {error}"},
        )  # fmt: skip
        await service.store.update_rollout(rollout.rollout_id, status="failed")
    except LightningError as failure:
        describe(failure)


async def _withdraw(service: Service, given: Withdraw) -> None:
    """Undo what a dequeue has taken whose caller was cancelled, wherever the request is by now."""
    peer = service.answers.of(given.client)
    number = given.number
    peer.withdrawn.add(number)
    running = peer.running.get(number)
    if running is not None:
        running.cancel()
        await asyncio.wait({running})
        if running.cancelled() or running.exception() is not None:
            return
        answer = running.result()
    elif number in peer.answered:
        answer = peer.answered.pop(number)
        peer.size -= len(answer.body)
    else:
        return
    for result in answer.results:
        for rollout in _taken(result):
            await _give_back(service, rollout)


def _taken(result: tuple[bool, Any]) -> list[AttemptedRollout]:
    """Return what a dequeue took, given its part of an answer."""
    good, value = result
    if not good or not isinstance(value, tuple):
        return []
    _, rollouts = cast("tuple[bool, list[Any]]", value)
    return [rollout for rollout in rollouts if isinstance(rollout, AttemptedRollout)]


async def _give_back(service: Service, rollout: AttemptedRollout) -> None:
    latest = await service.store.get_latest_attempt(rollout.rollout_id)
    if latest is None or latest.attempt_id != rollout.attempt.attempt_id or latest.status != "preparing":
        return
    await service.store.update_rollout(rollout.rollout_id, status="requeuing")
