"""Rollouts, attempts and their configuration."""

from typing import get_args

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lightning_core.types import (
    FINAL_ROLLOUT_STATUSES,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Hook,
    ParallelWorkerBase,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutRawResult,
    RolloutRawResultV2,
    RolloutStatus,
    RolloutV2,
    Run,
    Span,
    Task,
    Triplet,
    Worker,
)


def make_rollout(rollout_id: str = "ro-1", **changes: object) -> RolloutV2:
    return RolloutV2(rollout_id=rollout_id, input={"question": "1+1"}, start_time=1.5, **changes)


def make_attempt(rollout_id: str = "ro-1") -> Attempt:
    return Attempt(rollout_id=rollout_id, attempt_id="at-1", sequence_id=1, start_time=2.0)


def test_the_statuses_and_modes_are_those_of_the_api():
    assert get_args(RolloutMode) == ("train", "val", "test")
    assert set(get_args(RolloutStatus)) == {
        *("queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing")
    }
    assert set(get_args(AttemptStatus)) == {
        *("preparing", "running", "failed", "succeeded", "unresponsive", "timeout", "cancelled")
    }
    assert set(get_args(RolloutStatus)) >= FINAL_ROLLOUT_STATUSES


@pytest.mark.parametrize("status", get_args(RolloutStatus))
def test_a_rollout_knows_whether_it_has_ended(status: RolloutStatus):
    assert make_rollout(status=status).is_final == (status in {"succeeded", "failed", "cancelled"})


def test_an_unknown_status_or_mode_is_refused():
    with pytest.raises(ValidationError, match="status"):
        make_rollout(status="done")
    with pytest.raises(ValidationError, match="mode"):
        make_rollout(mode="eval")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_losses": -1},
        {"timeout_seconds": 0},
        {"timeout_seconds": -1.0},
        {"timeout_seconds": float("nan")},
        {"unresponsive_seconds": 0},
        {"retry_condition": ["exploded"]},
        {"timeout": 3},
    ],
)
def test_a_rollout_config_that_makes_no_sense_is_refused(settings: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        RolloutConfig(**settings)


def test_a_rollout_config_allows_one_attempt_without_limits_by_default():
    config = RolloutConfig()
    assert (config.max_attempts, config.timeout_seconds, config.unresponsive_seconds) == (1, None, None)
    assert config.max_losses == 3
    assert RolloutConfig(max_attempts=1, timeout_seconds=0.1, unresponsive_seconds=0.1).max_attempts == 1


def test_two_configs_share_no_retry_condition():
    RolloutConfig().retry_condition.clear()
    assert RolloutConfig().retry_condition


def test_an_attempted_rollout_refuses_an_attempt_of_another_rollout():
    with pytest.raises(ValidationError, match="belongs to rollout 'ro-2', not to 'ro-1'"):
        AttemptedRollout(rollout_id="ro-1", input=1, start_time=0, attempt=make_attempt("ro-2"))
    with pytest.raises(ValueError, match="belongs to rollout 'ro-2', not to 'ro-1'"):
        make_rollout().with_attempt(make_attempt("ro-2"))


def test_an_attempted_rollout_is_read_back_from_json():
    attempted = make_rollout(mode="val", metadata={"a": [1, None]}).with_attempt(make_attempt())
    again = AttemptedRollout.model_validate_json(attempted.model_dump_json())
    assert again == attempted
    assert again.attempt.attempt_id == "at-1"


def test_detached_copies_share_nothing_that_can_change():
    attempt = make_attempt()
    rollout = make_rollout(metadata={"tags": ["a"]})
    attempted = rollout.with_attempt(attempt)
    copies = [rollout.detached(), attempted]
    rollout.input["question"] = "changed"
    rollout.metadata["tags"].append("b")
    rollout.config.retry_condition.clear()
    attempt.metadata["late"] = True
    for copy in copies:
        assert copy.input == {"question": "1+1"}
        assert copy.metadata == {"tags": ["a"]}
        assert copy.config.retry_condition
    assert attempted.attempt.metadata == {}


def test_v0_1_reports_and_requests_are_read_back_from_json():
    report = Rollout(
        rollout_id="ro-1",
        task=Task(rollout_id="ro-1", input="q", mode="train", num_claims=1),
        final_reward=0.5,
        triplets=[Triplet(prompt=[1], response=[2], reward=None)],
        trace=[{"name": "span"}],
        logs=["done"],
    )
    assert Rollout.model_validate_json(report.model_dump_json()) == report


def test_raw_results_are_annotations_that_pydantic_understands():
    span = Span.from_attributes(attributes={})
    lenient = ConfigDict(arbitrary_types_allowed=True)
    assert TypeAdapter(RolloutRawResultV2, config=lenient).validate_python([span]) == [span]
    assert TypeAdapter(RolloutRawResult, config=lenient).validate_python(0.5) == 0.5


def test_runs_have_ids_of_their_own_and_workers_start_unknown():
    assert Run().run_id != Run().run_id
    assert Run().status == "running"
    assert Worker(worker_id="w").status == "unknown"


def test_the_worker_life_does_nothing_by_default_and_keeps_the_number():
    worker = ParallelWorkerBase()
    worker.init()
    worker.init_worker(3)
    assert worker.worker_id == 3
    assert worker.run() is None
    worker.teardown_worker(3)
    worker.teardown()


async def test_every_event_of_a_hook_does_nothing_by_default():
    hook = Hook()
    nobody: dict[str, object] = {"agent": None, "runner": None, "rollout": make_rollout()}
    assert await hook.on_rollout_start(**nobody) is None
    assert await hook.on_trace_start(**nobody, tracer=None) is None
    assert await hook.on_trace_end(**nobody, tracer=None) is None
    assert await hook.on_rollout_end(**nobody, spans=[]) is None
