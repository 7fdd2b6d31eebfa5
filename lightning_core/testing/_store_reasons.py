"""Store tests: why an attempt did not succeed, and what follows from that."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from lightning_core.errors import ConfigurationError
from lightning_core.store.base import LightningStore
from lightning_core.types import (
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    RolloutConfig,
    RolloutStatus,
)

from ._store_setup import FakeClock, make_span, status_of, take

_REASONS: tuple[FailureReason, ...] = get_args(FailureReason)
_USUAL: list[tuple[AttemptStatus, FailureReason | None]] = [
    ("succeeded", None),
    ("failed", "agent_error"),
    ("timeout", "timeout"),
    ("unresponsive", "unresponsive"),
    ("cancelled", "cancelled"),
]
_OF_ROLLOUT: list[tuple[RolloutStatus, FailureReason | None]] = [
    ("succeeded", None),
    ("failed", "agent_error"),
    ("cancelled", "cancelled"),
]


class ReasonTests:
    """Every attempt that did not succeed has a typed reason, and ``retry_condition`` may name it."""

    @pytest.mark.parametrize(("status", "reason"), _USUAL)
    async def test_an_ending_without_a_reason_gets_the_usual_one(
        self, store: LightningStore, status: AttemptStatus, reason: FailureReason | None
    ) -> None:
        """What the reporter does not say is what the status makes likely."""
        rollout = await take(store)
        assert rollout.attempt.reason is None
        reported = await store.update_attempt(rollout.rollout_id, "latest", status=status)
        assert reported.reason == reason
        assert await _reason(store, rollout) == reason

    @pytest.mark.parametrize("reason", _REASONS)
    async def test_a_given_reason_is_kept(self, store: LightningStore, reason: FailureReason) -> None:
        """Any reason goes with any ending but success, which has none."""
        for status in ("failed", "cancelled", "timeout"):
            rollout = await take(store)
            attempt_id = rollout.attempt.attempt_id
            reported = await store.update_attempt(
                rollout.rollout_id, attempt_id, status=status, metadata={"detail": "why"}, reason=reason
            )
            assert (reported.status, reported.reason, reported.metadata) == (
                status,
                reason,
                {"detail": "why"},
            )
            assert await _reason(store, rollout) == reason
        rollout = await take(store)
        reported = await store.update_attempt(rollout.rollout_id, "latest", status="succeeded", reason=reason)
        assert reported.reason is None

    async def test_an_expired_attempt_says_which_limit_it_met(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """And the metadata say it in words."""
        silent = await take(store, unresponsive_seconds=10)
        slow = await take(store, timeout_seconds=5)
        clock.advance(11)
        for rollout, reason in ((silent, "unresponsive"), (slow, "timeout")):
            [attempt] = await store.query_attempts(rollout.rollout_id)
            assert (attempt.status, attempt.reason, attempt.end_time) == (reason, reason, clock.now)
            assert attempt.metadata["detail"]

    async def test_superseded_and_requeued_attempts_are_cancelled_and_say_so(
        self, store: LightningStore
    ) -> None:
        """Nobody reported their end, so the store says why."""
        rollout = await take(store)
        await store.start_attempt(rollout.rollout_id)
        await store.update_rollout(rollout.rollout_id, status="requeuing")
        attempts = await store.query_attempts(rollout.rollout_id)
        assert [(a.status, a.reason, a.metadata.get("detail")) for a in attempts] == [
            ("cancelled", "cancelled", "superseded"),
            ("cancelled", "cancelled", "requeued"),
        ]

    @pytest.mark.parametrize(("status", "reason"), _OF_ROLLOUT)
    async def test_the_end_of_a_rollout_gives_its_attempt_a_reason(
        self, store: LightningStore, status: RolloutStatus, reason: FailureReason | None
    ) -> None:
        """Also when it is the rollout whose end is reported."""
        rollout = await take(store)
        await store.update_rollout(rollout.rollout_id, status=status)
        assert await _reason(store, rollout) == reason

    async def test_late_reports_do_not_change_a_reason(self, store: LightningStore, clock: FakeClock) -> None:
        """Neither that of an attempt that has ended, nor that of a superseded one."""
        ended = await take(store)
        await store.update_attempt(ended.rollout_id, "latest", status="failed", reason="infrastructure")
        superseded = await take(store, unresponsive_seconds=10, max_attempts=2)
        clock.advance(11)
        again = await store.dequeue_rollout()
        assert again is not None
        assert again.rollout_id == superseded.rollout_id
        for rollout, reason in ((ended, "infrastructure"), (superseded, "unresponsive")):
            key = rollout.rollout_id, rollout.attempt.attempt_id
            for status in ("failed", "succeeded", "cancelled"):
                late = await store.update_attempt(*key, status=status, reason="no_resources")
                assert late.reason == reason
            assert await _reason(store, rollout) == reason

    async def test_an_attempt_that_comes_back_to_life_has_no_reason(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Until it ends again."""
        rollout = await take(store, unresponsive_seconds=10, max_attempts=2)
        clock.advance(11)
        assert await _reason(store, rollout) == "unresponsive"
        await store.add_span(make_span(rollout, "1"))
        assert await _reason(store, rollout) is None
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert await _reason(store, rollout) == "agent_error"

    async def test_an_unknown_reason_is_refused(self, store: LightningStore) -> None:
        """And the report changes nothing."""
        rollout = await take(store)
        wrong: Any = "bad_luck"
        with pytest.raises(ConfigurationError, match="bad_luck"):
            await store.update_attempt(
                rollout.rollout_id, "latest", status="failed", reason=wrong, metadata={"a": 1}
            )
        [attempt] = await store.query_attempts(rollout.rollout_id)
        assert (attempt.status, attempt.reason, attempt.metadata) == ("preparing", None, {})

    @pytest.mark.parametrize(
        ("condition", "status", "reason", "retried"),
        [
            (["infrastructure"], "failed", "infrastructure", True),
            (["infrastructure"], "failed", "agent_error", False),
            (["infrastructure"], "failed", None, False),
            (["agent_error"], "failed", None, True),
            (["failed"], "failed", "no_resources", True),
            (["no_resources", "timeout"], "failed", "timeout", True),
            (["timeout"], "timeout", "infrastructure", True),
            (["unresponsive"], "failed", "unresponsive", True),
            (["infrastructure"], "unresponsive", "infrastructure", True),
            (["infrastructure"], "unresponsive", None, False),
            (["cancelled", "infrastructure"], "cancelled", "infrastructure", False),
            ([], "failed", "infrastructure", False),
        ],
    )
    async def test_retries_are_by_status_or_reason(
        self,
        store: LightningStore,
        condition: list[AttemptStatus | FailureReason],
        status: AttemptStatus,
        reason: FailureReason | None,
        retried: bool,
    ) -> None:
        """``retry_condition`` names either; a cancelled attempt is never retried."""
        rollout = await take(store, max_attempts=2, retry_condition=condition)
        await store.update_attempt(rollout.rollout_id, "latest", status=status, reason=reason)
        end = "cancelled" if status == "cancelled" else "failed"
        assert (await status_of(store, rollout.rollout_id))[0] == ("requeuing" if retried else end)
        assert (await store.dequeue_rollout() is not None) == retried

    async def test_a_retry_by_reason_ends_with_the_attempts(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """What is worth a retry differs from attempt to attempt; ``max_attempts`` counts all of them."""
        rollout = await take(
            store, max_attempts=3, unresponsive_seconds=10, retry_condition=["unresponsive", "infrastructure"]
        )
        await store.update_attempt(rollout.rollout_id, "latest", status="failed", reason="infrastructure")
        assert await store.dequeue_rollout() is not None
        clock.advance(11)
        assert await store.dequeue_rollout() is not None
        await store.update_attempt(rollout.rollout_id, "latest", status="failed", reason="infrastructure")
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"
        attempts = await store.query_attempts(rollout.rollout_id)
        assert [a.reason for a in attempts] == ["infrastructure", "unresponsive", "infrastructure"]

    # Losses

    async def test_a_lost_attempt_is_followed_by_another_one_though_one_is_all_there_may_be(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 3: a killed runner costs no rollout; what loses its attempt every time fails in the end."""
        config = RolloutConfig(unresponsive_seconds=10)
        assert (config.max_attempts, config.max_losses) == (1, 3)
        rollout = await store.enqueue_rollout(1, config=config)
        for number in range(4):
            assert (await status_of(store, rollout.rollout_id))[0] == ("requeuing" if number else "queuing")
            taken = await store.dequeue_rollout("w")
            assert taken is not None
            assert taken.attempt.lost_before == number
            if number % 2:
                key = rollout.rollout_id, taken.attempt.attempt_id
                await store.update_attempt(*key, status="failed", reason="infrastructure")
            else:
                clock.advance(11)
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"
        attempts = await store.query_attempts(rollout.rollout_id)
        assert [(a.reason, a.lost_before) for a in attempts] == [
            ("unresponsive", 0),
            ("infrastructure", 1),
            ("unresponsive", 2),
            ("infrastructure", 3),
        ]

    @pytest.mark.parametrize(
        ("max_attempts", "reasons"),
        [
            (1, ["infrastructure", "infrastructure", "agent_error"]),
            (2, ["infrastructure", "agent_error", "infrastructure", "agent_error"]),
            (2, ["agent_error", "timeout"]),
            (2, ["agent_error", "infrastructure", "unresponsive", "infrastructure"]),
            (2, ["infrastructure", "infrastructure", "infrastructure", "agent_error"]),
        ],
    )
    async def test_lost_attempts_do_not_count(
        self, store: LightningStore, max_attempts: int, reasons: list[FailureReason]
    ) -> None:
        """Two of them, here: a third one counts like any other ending."""
        config = RolloutConfig(max_attempts=max_attempts, max_losses=2)
        rollout = await store.enqueue_rollout(1, config=config)
        for reason in reasons:
            taken = await store.dequeue_rollout("w")
            assert taken is not None, f"no attempt was left for {reason}"
            key = rollout.rollout_id, taken.attempt.attempt_id
            await store.update_attempt(*key, status="failed", reason=reason)
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    async def test_what_supersedes_an_attempt_does_not_make_it_lost(self, store: LightningStore) -> None:
        """Somebody wanted it so; nor is one lost that came back to life."""
        rollout = await store.enqueue_rollout(1, config=RolloutConfig(retry_condition=[], max_losses=1))
        await store.start_attempt(rollout.rollout_id)
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        assert (await status_of(store, rollout.rollout_id))[0] == "requeuing"
        await store.update_attempt(rollout.rollout_id, "latest", status="running")
        second = await store.start_attempt(rollout.rollout_id)
        assert second.attempt.lost_before == 0
        await store.update_attempt(rollout.rollout_id, "latest", status="failed", reason="infrastructure")
        third = await store.dequeue_rollout()
        assert third is not None
        assert (third.attempt.sequence_id, third.attempt.lost_before) == (3, 1)
        await store.update_attempt(rollout.rollout_id, "latest", status="failed", reason="infrastructure")
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"


async def _reason(store: LightningStore, rollout: AttemptedRollout) -> FailureReason | None:
    """Return the stored reason of this attempt."""
    attempts = await store.query_attempts(rollout.rollout_id)
    [attempt] = [a for a in attempts if a.attempt_id == rollout.attempt.attempt_id]
    return attempt.reason
