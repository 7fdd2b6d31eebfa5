"""Properties of the pure rules: whatever happens, in whatever order, a rollout stays in a state that makes sense."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core.errors import ConfigurationError, FinalRolloutError, InvalidTransitionError
from lightning_core.store import lifecycle
from lightning_core.types import Attempt, FailureReason, RolloutConfig, RolloutV2

NOW = 1_000.0
FINAL = ["succeeded", "failed", "cancelled"]
ENDED = ["failed", "succeeded", "unresponsive", "timeout", "cancelled"]
ATTEMPT_STATUSES = ["preparing", "running", *ENDED]
REASONS = list(get_args(FailureReason))
ROLLOUT_STATUSES = ["queuing", "requeuing", "preparing", "running", *FINAL]

configs = st.builds(
    RolloutConfig,
    timeout_seconds=st.none() | st.floats(1, 1_000),
    unresponsive_seconds=st.none() | st.floats(1, 1_000),
    max_attempts=st.integers(1, 4),
    retry_condition=st.lists(st.sampled_from([*ENDED, "agent_error", "infrastructure"]), unique=True),
    max_losses=st.integers(0, 3),
)
seconds = st.floats(0, 2_000)
# What may happen, with the time that passes before it.
events = st.lists(
    st.tuples(
        seconds,
        st.one_of(
            st.just(("begin",)),
            st.just(("sign of life",)),
            st.tuples(st.just("attempt"), st.sampled_from(ATTEMPT_STATUSES)),
            st.tuples(st.just("rollout"), st.sampled_from(ROLLOUT_STATUSES)),
        ),
    ),
    max_size=25,
)


def rollout_of(config: RolloutConfig, status: str = "queuing") -> RolloutV2:
    return RolloutV2(rollout_id="ro", input=1, start_time=NOW, status=status, config=config)


def attempt_of(status: str, **fields) -> Attempt:
    return Attempt(rollout_id="ro", attempt_id="at", sequence_id=1, start_time=NOW, status=status, **fields)


def apply(rollout: RolloutV2, attempts: list[Attempt], event: tuple[str, ...], now: float) -> RolloutV2:
    """Apply an event as a store does: what is due expires first. ``attempts`` is changed."""
    if attempts and (change := lifecycle.expire(rollout, attempts[-1], now)) is not None:
        rollout, attempts[-1] = change
    latest = attempts[-1] if attempts else None
    try:
        if event[0] == "begin":
            change, superseded = lifecycle.begin_attempt(rollout, latest, f"at-{len(attempts)}", None, now)
            if superseded is not None:
                attempts[-1] = superseded
            attempts.append(change.attempt)
            return change.rollout
        if event[0] == "rollout":
            rollout, latest = lifecycle.report_rollout(rollout, latest, event[1], now)
        elif latest is not None and event[0] == "attempt":
            rollout, latest = lifecycle.report_attempt(rollout, latest, event[1], is_latest=True, now=now)
        elif latest is not None:
            rollout, latest = lifecycle.sign_of_life(rollout, latest, is_latest=True, now=now)
    except (FinalRolloutError, InvalidTransitionError):
        return rollout
    if latest is not None:
        attempts[-1] = latest
    return rollout


@given(config=configs, history=events)
def test_every_history_keeps_rollout_and_attempts_consistent(config, history):
    rollout, attempts, now = rollout_of(config), [], NOW
    for passed, event in history:
        now += passed
        before = rollout
        rollout = apply(rollout, attempts, event, now)
        live = [attempt for attempt in attempts if lifecycle.is_live(attempt)]
        # At most one attempt is live, it is the latest, and then the rollout is being worked on.
        assert live in ([], attempts[-1:])
        assert bool(live) == (rollout.status in ("preparing", "running"))
        assert rollout.is_final == (rollout.end_time is not None)
        assert all((attempt.end_time is None) == lifecycle.is_live(attempt) for attempt in attempts)
        # Every attempt that did not succeed says why.
        ended_badly = [a for a in attempts if not lifecycle.is_live(a) and a.status != "succeeded"]
        assert ended_badly == [a for a in attempts if a.reason is not None]
        assert [attempt.sequence_id for attempt in attempts] == list(range(1, len(attempts) + 1))
        if before.is_final:
            assert rollout == before


@given(config=configs, history=events)
def test_every_rollout_that_is_left_alone_ends_or_waits_in_the_queue(config, history):
    """Trap 3: whatever has happened, nobody's silence leaves a rollout stuck."""
    rollout, attempts, now = rollout_of(config), [], NOW
    for passed, event in history:
        now += passed
        rollout = apply(rollout, attempts, event, now)
    lease = config.unresponsive_seconds or lifecycle.DEFAULT_LEASE_SECONDS
    rollout = apply(rollout, attempts, ("rollout", rollout.status), now + lease)
    assert rollout.is_final or lifecycle.is_queued(rollout)


@given(config=configs, history=events)
def test_failures_alone_end_after_max_attempts(config, history):
    rollout, attempts, now = rollout_of(config), [], NOW
    for passed, _ in history:
        now += passed
        if lifecycle.is_queued(rollout):
            rollout = apply(rollout, attempts, ("begin",), now)
        else:
            rollout = apply(rollout, attempts, ("attempt", "failed"), now)
    assert len(attempts) <= config.max_attempts
    if rollout.is_final:
        assert rollout.status == "failed"


@given(
    config=configs,
    endings=st.lists(
        st.tuples(st.sampled_from(["failed", "timeout", "unresponsive"]), st.sampled_from(REASONS))
    ),
)
def test_whatever_is_lost_the_number_of_attempts_has_an_end(config, endings):
    rollout, attempts = rollout_of(config), []
    for status, reason in endings:
        if rollout.is_final:
            break
        rollout = apply(rollout, attempts, ("begin",), NOW)
        lost = [attempt for attempt in attempts if attempt.reason in ("unresponsive", "infrastructure")]
        assert attempts[-1].lost_before == len(lost)
        rollout, attempts[-1] = lifecycle.report_attempt(
            rollout, attempts[-1], status, is_latest=True, now=NOW, reason=reason
        )
        if reason in ("unresponsive", "infrastructure") and len(lost) < config.max_losses:
            assert rollout.status == "requeuing"
        assert lifecycle.is_retried(config, attempts[-1]) == (rollout.status == "requeuing")
    own = [attempt for attempt in attempts if attempt.reason not in ("unresponsive", "infrastructure")]
    assert len(own) <= config.max_attempts
    assert len(attempts) <= config.max_attempts + config.max_losses


@pytest.mark.parametrize("final", FINAL)
@given(config=configs, status=st.sampled_from(ATTEMPT_STATUSES), known=st.sampled_from(ATTEMPT_STATUSES))
def test_final_rollouts_absorb_every_report(final, config, status, known):
    """Trap 4."""
    rollout, attempt = rollout_of(config, final), attempt_of(known)
    reported = lifecycle.report_attempt(rollout, attempt, status, is_latest=True, now=NOW + 1)
    assert reported.rollout == rollout
    for reported_status in ROLLOUT_STATUSES:
        assert lifecycle.report_rollout(rollout, attempt, reported_status, NOW) == (rollout, attempt)
    assert lifecycle.sign_of_life(rollout, attempt, is_latest=True, now=NOW + 1).rollout == rollout
    with pytest.raises(FinalRolloutError):
        lifecycle.begin_attempt(rollout, attempt, "new", None, NOW)


@given(
    config=configs,
    known=st.sampled_from(ATTEMPT_STATUSES),
    status=st.sampled_from(ATTEMPT_STATUSES),
    of=st.sampled_from(["queuing", "requeuing", "preparing", "running"]),
)
def test_a_superseded_attempt_never_changes_its_rollout(config, known, status, of):
    """Trap 5."""
    rollout, attempt = rollout_of(config, of), attempt_of(known)
    assert lifecycle.sign_of_life(rollout, attempt, is_latest=False, now=NOW + 1) == (rollout, attempt)
    change = lifecycle.report_attempt(
        rollout, attempt, status, is_latest=False, now=NOW + 1, reason="agent_error"
    )
    assert change == (rollout, attempt)


@pytest.mark.parametrize("ended", ENDED)
@pytest.mark.parametrize("of", [*FINAL, "requeuing"])
def test_only_an_unresponsive_attempt_of_an_open_rollout_comes_back_to_life(ended, of):
    """Trap 5."""
    change = lifecycle.sign_of_life(
        rollout_of(RolloutConfig(), of), attempt_of(ended, end_time=NOW), is_latest=True, now=NOW + 1
    )
    revived = ended == "unresponsive" and of == "requeuing"
    assert lifecycle.is_live(change.attempt) == revived
    assert change.rollout.status == ("running" if revived else of)


@given(config=configs, renewals=st.lists(seconds, max_size=10), wait=seconds)
def test_an_attempt_expires_at_its_deadline_and_not_before(config, renewals, wait):
    rollout, attempt, now = rollout_of(config, "running"), attempt_of("running"), NOW
    for passed in renewals:
        now += passed
        if lifecycle.expire(rollout, attempt, now) is None:
            attempt = lifecycle.sign_of_life(rollout, attempt, is_latest=True, now=now).attempt
    due, status = lifecycle.deadline(config, attempt)
    if config.timeout_seconds is not None:
        assert due <= attempt.start_time + config.timeout_seconds
    change = lifecycle.expire(rollout, attempt, due + wait)
    assert change is not None
    assert change.attempt.status == status
    assert change.attempt.reason == status
    assert change.attempt.metadata["detail"]
    assert lifecycle.expire(rollout, attempt, due - 0.001) is None


@given(
    times=st.lists(st.tuples(st.floats(-100, 100), st.floats(-1e9, 1e9) | st.none()), min_size=1, max_size=10)
)
def test_no_clock_that_jumps_or_is_wrong_shortens_a_lease_or_lengthens_it_beyond_now(times):
    rollout, attempt = rollout_of(RolloutConfig()), attempt_of("preparing")
    due, _ = lifecycle.deadline(rollout.config, attempt)
    latest = NOW
    for time, reported in times:
        latest = max(latest, NOW + time)
        if reported is None:
            attempt = lifecycle.sign_of_life(rollout, attempt, is_latest=True, now=NOW + time).attempt
        else:
            attempt = lifecycle.heartbeat(
                rollout, attempt, NOW + reported, is_latest=True, now=NOW + time
            ).attempt
        later, _ = lifecycle.deadline(rollout.config, attempt)
        assert later <= latest + lifecycle.DEFAULT_LEASE_SECONDS
        assert later >= due
        due = later


@given(
    config=configs,
    status=st.sampled_from(["failed", "timeout", "unresponsive"]),
    reason=st.sampled_from(REASONS),
    number=st.integers(1, 4),
)
def test_a_failure_is_retried_if_the_condition_names_it_and_an_attempt_is_left(
    config, status, reason, number
):
    config = config.replace(max_losses=0)
    attempt = attempt_of("running").replace(sequence_id=number)
    change = lifecycle.report_attempt(
        rollout_of(config, "running"), attempt, status, is_latest=True, now=NOW, reason=reason
    )
    named = status in config.retry_condition or reason in config.retry_condition
    assert change.rollout.status == ("requeuing" if named and number < config.max_attempts else "failed")
    assert change.attempt.reason == reason


@given(number=st.integers(0, 10_000), quorum=st.floats(0, 1, exclude_min=True))
def test_a_quorum_leaves_out_as_many_as_it_may_and_never_all(number, quorum):
    pending = lifecycle.allowed_pending(number, quorum)
    assert 0 <= pending <= max(number - 1, 0)
    assert number - pending >= quorum * number - 1e-6
    assert number - pending <= max(quorum * number + 1 + 1e-6, 1)


@given(number=st.integers(1, 2_000), data=st.data())
def test_a_quorum_that_is_a_whole_number_is_that_number(number, data):
    needed = data.draw(st.integers(1, number))
    assert lifecycle.allowed_pending(number, needed / number) == number - needed


@pytest.mark.parametrize("quorum", [0, -1, 1.5, float("nan"), float("inf")])
def test_a_quorum_out_of_range_is_refused(quorum):
    with pytest.raises(ConfigurationError, match="quorum must be above 0"):
        lifecycle.allowed_pending(1, quorum)


def test_a_heartbeat_of_no_time_at_all_counts_as_now():
    rollout, attempt = rollout_of(RolloutConfig()), attempt_of("running")
    for reported in (float("nan"), float("inf")):
        change = lifecycle.heartbeat(rollout, attempt, reported, is_latest=True, now=NOW + 5)
        assert change.attempt.last_heartbeat_time == NOW + 5
    change = lifecycle.heartbeat(rollout, attempt, float("-inf"), is_latest=True, now=NOW + 5)
    assert change.attempt.last_heartbeat_time == NOW


@pytest.mark.parametrize("status", ["succeeded", "cancelled"])
@given(config=configs)
def test_success_and_cancellation_are_never_retried(status, config):
    """Trap 1: a cancelled attempt ends its rollout cancelled."""
    change = lifecycle.report_attempt(
        rollout_of(config, "running"), attempt_of("running"), status, is_latest=True, now=NOW
    )
    assert (change.rollout.status, change.attempt.status) == (status, status)


@given(config=configs, status=st.sampled_from(ATTEMPT_STATUSES), known=st.sampled_from(ATTEMPT_STATUSES))
def test_rules_change_nothing_they_are_given(config, status, known):
    rollout, attempt = rollout_of(config, "running"), attempt_of(known, metadata={"a": 1})
    before = rollout.model_copy(deep=True), attempt.model_copy(deep=True)
    lifecycle.report_attempt(rollout, attempt, status, is_latest=True, now=NOW + 1, reason="timeout")
    lifecycle.expire(rollout, attempt, NOW + 10_000)
    lifecycle.begin_attempt(rollout, attempt, "new", "w", NOW + 1)
    lifecycle.report_rollout(rollout, attempt, "failed", NOW + 1)
    lifecycle.report_rollout(rollout, attempt, "queuing", NOW + 1)
    assert (rollout, attempt) == before
