"""Store tests: the steps that random histories are made of."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lightning_core.types import AttemptStatus, FailureReason, RolloutConfig, RolloutStatus

from ._store_history import History

__all__ = ["StoreMachine"]

_CONFIGS = [
    RolloutConfig(),
    RolloutConfig(max_attempts=3, unresponsive_seconds=10, max_losses=0),
    RolloutConfig(max_attempts=2, unresponsive_seconds=30, timeout_seconds=40, max_losses=1),
    RolloutConfig(max_attempts=3, unresponsive_seconds=10, retry_condition=["unresponsive"], max_losses=2),
    RolloutConfig(max_attempts=4, retry_condition=["infrastructure", "timeout"], max_losses=0),
    RolloutConfig(max_attempts=3, retry_condition=["agent_error", "cancelled"]),
]
# Drawn numbers count from the newest rollout or attempt, which is where things happen.
_WHICH = st.integers(0, 6)
_WORKERS = st.sampled_from(["w0", "w1", "w2"])
_REQUESTS = st.sampled_from([None, "r", "r-1", "s"])
_KEYS = st.sampled_from([None, None, "k0", "k1", "k2"])
_REASONS = st.none() | st.sampled_from(get_args(FailureReason))
# The answer to a call may be lost, and the call made again.
_TIMES = st.sampled_from([1, 1, 1, 2])


class StoreMachine(RuleBasedStateMachine):
    """Takes a store and its model through random steps."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history

    @rule(wanted=st.lists(st.tuples(st.sampled_from(_CONFIGS), _KEYS), min_size=1, max_size=3), times=_TIMES)
    def enqueue(self, wanted: list[tuple[RolloutConfig, str | None]], times: int) -> None:
        for _ in range(times):
            self.history.enqueue(wanted)

    @rule(config=st.sampled_from(_CONFIGS), key=_KEYS, worker=_WORKERS, times=_TIMES)
    def start_rollout(self, config: RolloutConfig, key: str | None, worker: str, times: int) -> None:
        for _ in range(times):
            self.history.start_rollout(config, key, worker)

    @rule(
        limit=st.integers(1, 3),
        worker=_WORKERS,
        request=_REQUESTS,
        times=_TIMES,
    )
    def dequeue(self, limit: int, worker: str, request: str | None, times: int) -> None:
        for _ in range(times):
            self.history.dequeue(limit, worker, request)

    @rule(number=_WHICH, worker=st.none() | _WORKERS, request=_REQUESTS, times=_TIMES)
    def start_attempt(self, number: int, worker: str | None, request: str | None, times: int) -> None:
        if rollout := self.history.pick(number):
            for _ in range(times):
                self.history.start_attempt(rollout, worker, request)

    @rule(
        number=_WHICH,
        times=_TIMES,
        repeat=st.booleans(),
        explicit=st.sampled_from([0, 0, 0, 2, 5]),
        plain=st.booleans(),
    )
    def write_span(self, number: int, times: int, repeat: bool, explicit: int, plain: bool) -> None:
        if pair := self.history.pick_attempt(number):
            self.history.write(*pair, times, repeat, explicit, plain)

    @rule(number=_WHICH)
    def reserve(self, number: int) -> None:
        if pair := self.history.pick_attempt(number):
            self.history.reserve(*pair)

    @rule(numbers=st.lists(_WHICH, max_size=3, unique=True), worker=_WORKERS, times=_TIMES)
    def renew(self, numbers: list[int], worker: str, times: int) -> None:
        pairs = {pair[1].attempt_id: pair for n in numbers if (pair := self.history.pick_attempt(n))}
        for _ in range(times):
            self.history.renew(list(pairs.values()), worker)

    @rule(number=_WHICH, skew=st.sampled_from([0, 3, 1_000, -3, -1_000]), times=_TIMES)
    def heartbeat(self, number: int, skew: float, times: int) -> None:
        if pair := self.history.pick_attempt(number):
            for _ in range(times):
                self.history.heartbeat(*pair, skew)

    @rule(number=_WHICH, status=st.sampled_from(get_args(AttemptStatus)), reason=_REASONS, times=_TIMES)
    def report(self, number: int, status: AttemptStatus, reason: FailureReason | None, times: int) -> None:
        if pair := self.history.pick_attempt(number):
            for _ in range(times):
                self.history.report(*pair, status, reason)

    @rule(number=_WHICH, status=st.sampled_from(get_args(RolloutStatus)), times=_TIMES)
    def set_rollout(self, number: int, status: RolloutStatus, times: int) -> None:
        if rollout := self.history.pick(number):
            for _ in range(times):
                self.history.set_rollout(rollout, status)

    @rule(numbers=st.lists(_WHICH, max_size=6), quorum=st.sampled_from([1.0, 0.5, 0.25]))
    def wait(self, numbers: list[int], quorum: float) -> None:
        rollouts = [rollout for number in numbers if (rollout := self.history.pick(number))]
        self.history.wait(rollouts, quorum)

    @rule(run_id=st.sampled_from(["a", "b"]), number=st.integers(0, 9), times=_TIMES)
    def save_state(self, run_id: str, number: int, times: int) -> None:
        for _ in range(times):
            self.history.save_state(run_id, number)

    @rule(seconds=st.sampled_from([-1, 5, 30, 100]), times=_TIMES)
    def vacuum(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.history.vacuum(seconds)

    @rule(seconds=st.sampled_from([1, 5, 11, 31, 61, -7, -100]))
    def advance(self, seconds: int) -> None:
        self.history.clock.advance(seconds)

    @invariant()
    def agrees(self) -> None:
        self.history.check()

    def teardown(self) -> None:
        self.history.close()
