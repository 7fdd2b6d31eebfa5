"""Store tests: the steps that random histories are made of."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lightning_core.types import AttemptStatus, RolloutConfig, RolloutStatus

from ._store_history import ATTEMPT_STATUSES, CONFIGS, ROLLOUT_STATUSES, History

__all__ = ["StoreMachine"]

# Drawn numbers count from the newest rollout or attempt, which is where things happen.
_WHICH = st.integers(0, 6)
_WORKERS = st.integers(0, 3)


class StoreMachine(RuleBasedStateMachine):
    """Takes a store and its model through random steps."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history

    @rule(configs=st.lists(st.sampled_from(CONFIGS), min_size=1, max_size=3))
    def enqueue(self, configs: list[RolloutConfig]) -> None:
        self.history.enqueue(configs)

    @rule(limit=st.integers(1, 3), worker=_WORKERS)
    def dequeue(self, limit: int, worker: int) -> None:
        self.history.dequeue(limit, worker)

    @rule(number=_WHICH)
    def start_attempt(self, number: int) -> None:
        if rollout := self.history.pick(number):
            self.history.start_attempt(rollout)

    @rule(number=_WHICH, repeat=st.booleans(), explicit=st.sampled_from([0, 0, 0, 2, 5]))
    def write_span(self, number: int, repeat: bool, explicit: int) -> None:
        if pair := self.history.pick_attempt(number):
            self.history.write(*pair, repeat, explicit)

    @rule(number=_WHICH)
    def reserve(self, number: int) -> None:
        if pair := self.history.pick_attempt(number):
            self.history.reserve(*pair)

    @rule(numbers=st.lists(_WHICH, max_size=3, unique=True), worker=_WORKERS)
    def renew(self, numbers: list[int], worker: int) -> None:
        pairs = {id(pair[1]): pair for n in numbers if (pair := self.history.pick_attempt(n))}
        self.history.renew(list(pairs.values()), worker)

    @rule(number=_WHICH, status=st.sampled_from(ATTEMPT_STATUSES))
    def report(self, number: int, status: AttemptStatus) -> None:
        if pair := self.history.pick_attempt(number):
            self.history.report(*pair, status)

    @rule(number=_WHICH, status=st.sampled_from(ROLLOUT_STATUSES))
    def set_rollout(self, number: int, status: RolloutStatus) -> None:
        if rollout := self.history.pick(number):
            self.history.set_rollout(rollout, status)

    @rule(seconds=st.sampled_from([1, 5, 11, 31, 61]))
    def advance(self, seconds: int) -> None:
        self.history.clock.advance(seconds)

    @invariant()
    def agrees(self) -> None:
        self.history.check()

    def teardown(self) -> None:
        self.history.close()
