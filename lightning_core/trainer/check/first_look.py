"""The first look of ``fit``: ends a run whose first rollouts succeed and lack what the algorithm needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from lightning_core.errors import CaptureError
from lightning_core.trainer.check.evidence import Evidence
from lightning_core.types import RolloutV2

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm, Need
    from lightning_core.trainer.scope import RunStore

__all__ = ["FirstLook"]

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0
"""How long spans may come after the end of their rollout, from a proxy or a program that exports them by itself, before
they are missed."""
AT_ONCE = 32
"""How many rollouts are waited for at the same time."""
MOST_ROLLOUTS = 1000
"""How many rollouts are looked at in all, if none succeeds."""


class FirstLook:
    """Looks at the first training rollouts of a run that succeed, until all that the algorithm needs was found once.

    It costs a wait and a query for each of these few rollouts, and nothing afterwards. A rollout that does not succeed
    says nothing: it is passed over. Rollouts that a resumed run finds finished are passed over as well, since the agent
    may have been mended.

    Args:
        algorithm: Whose needs are looked for.
        scope: The algorithm's view of the store.
        tracer: What the tracer of the run is called, for the error.
    """

    def __init__(self, algorithm: BaseAlgorithm, scope: RunStore, tracer: str | None = None) -> None:
        self._name: str = getattr(algorithm, "__name__", type(algorithm).__name__)
        self._scope = scope
        self._tracer = tracer
        self._within = algorithm.needs_within
        self._lacking: dict[Need, dict[str, str]] = {need: {} for need in sorted(algorithm.needs)}
        self._pending: list[str] = []
        self._noted = 0
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._error: CaptureError | None = None

    @asynccontextmanager
    async def beside(self) -> AsyncGenerator[None]:
        """Look while the block runs the algorithm, and cancel the block when it is certain that something is missing.

        Raises:
            CaptureError: In place of that cancellation.
        """
        running = asyncio.current_task()
        assert running is not None
        self._scope.on_new = self._note
        looking = asyncio.create_task(self._run(running))
        try:
            yield
        except asyncio.CancelledError:
            # Somebody else may have cancelled it too.
            if self._error is None or running.uncancel() > 0:
                raise
            raise self._error from None
        finally:
            self._scope.on_new = None
            looking.cancel()
        if self._error is not None:
            raise self._error

    def _note(self, rollouts: Sequence[RolloutV2]) -> None:
        """Remember rollouts that the algorithm has just put in, from whichever thread it does that."""
        names = [
            rollout.rollout_id
            for rollout in rollouts[:MOST_ROLLOUTS]
            if rollout.mode in (None, "train") and not rollout.is_final
        ]
        if names:
            with suppress(RuntimeError):  # the loop has ended, and the algorithm with it
                self._loop.call_soon_threadsafe(self._add, names)

    def _add(self, names: list[str]) -> None:
        added = names[: MOST_ROLLOUTS - self._noted]
        self._noted += len(added)
        self._pending += added
        if self._noted >= MOST_ROLLOUTS:
            self._scope.on_new = None
        self._more.set()

    async def _run(self, algorithm: asyncio.Task[object]) -> None:
        try:
            await self._look()
        except CaptureError as error:
            self._error = error
            algorithm.cancel()
        except Exception as error:
            # What is wrong with the store, the run itself will tell.
            logger.warning("the first rollouts of the run could not be looked at: %s", error)
        finally:
            self._scope.on_new = None

    async def _look(self) -> None:
        while self._lacking and (self._pending or self._noted < MOST_ROLLOUTS):
            for rollout in await self._ended():
                self._pending.remove(rollout.rollout_id)
                if rollout.status == "succeeded":
                    await self._read(rollout.rollout_id)

    async def _ended(self) -> list[RolloutV2]:
        """Wait until one of the first rollouts ends."""
        while True:
            self._more.clear()
            more = asyncio.create_task(self._more.wait())
            waited: list[asyncio.Task[object]] = [more]
            ended: asyncio.Task[list[RolloutV2]] | None = None
            if batch := self._pending[:AT_ONCE]:
                ended = asyncio.create_task(
                    self._scope.wait_for_rollouts(rollout_ids=batch, quorum=1 / len(batch))
                )
                # A full batch need not be made anew for those that come later.
                waited = [ended] if len(batch) == AT_ONCE else [more, ended]
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                more.cancel()
                if ended is not None and not ended.done():
                    ended.cancel()
            if ended is not None and ended.done():
                return ended.result()

    async def _read(self, rollout_id: str) -> None:
        evidence = Evidence.of(await self._scope.query_spans(rollout_id, "latest"))
        for need, lacking in list(self._lacking.items()):
            reason = evidence.lack(need)
            if reason is None:
                del self._lacking[need]
                continue
            lacking[rollout_id] = reason
            if len(lacking) == 1:
                logger.warning(
                    "%s needs %s, and rollout %s, which succeeded, has none: %s",
                    *(self._name, _named(need), rollout_id, reason),
                )
            if len(lacking) >= self._within:
                await self._make_certain(need)

    async def _make_certain(self, need: Need) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        remedy = ""
        for rollout_id in self._lacking[need]:
            evidence = Evidence.of(await self._scope.query_spans(rollout_id, "latest"))
            if evidence.lack(need) is None:
                del self._lacking[need]
                return
            remedy = evidence.remedy(need)
        names = list(self._lacking[need])
        first = "the first rollout" if len(names) == 1 else f"each of the first {len(names)} rollouts"
        reason = self._lacking[need][names[-1]]
        tracer = f" (the tracer is {self._tracer})" if need == "llm_calls" and self._tracer else ""
        raise CaptureError(
            f"{self._name} needs {_named(need)}, and {first} that succeeded has none: {reason}{tracer}. To put it "
            f"right: {remedy}. Trainer.check(agent, task) and `lightning-core doctor run` show what one "
            f"rollout holds; looked at were {', '.join(names)}"
        )


def _named(need: Need) -> str:
    return {
        "rewards": "rewards",
        "llm_calls": "calls of a language model",
        "token_ids": "token ids",
        "logprobs": "log-probabilities",
    }[need]
