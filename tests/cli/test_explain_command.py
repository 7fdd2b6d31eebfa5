"""``lightning-core runs explain``: why a run gave what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightning_core import LLM, Trainer, resolve, rollout
from lightning_core.cli import explain, main
from lightning_core.cli.reading import explain_rollout
from lightning_core.testing.adapter import make_trace
from lightning_core.types import Attempt, RolloutV2, Span, TraceStatus

pytest.importorskip("lightning_store_sqlite", reason="stored runs need a durable store, which is a plugin")


def call(
    answer: str = "a", *, prompt_ids: list[int] | None = None, ids: list[int] | None = None, **more: Any
) -> tuple[str, dict[str, Any]]:
    """A span of a call with the raw answer of an engine."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": answer}, "token_ids": ids}
    raw = {
        "id": f"chatcmpl-{answer}",
        "model": "tiny",
        "prompt_token_ids": prompt_ids,
        "choices": [choice],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3},
    }
    return "ChatCompletion", {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "q"}]}),
        "output.value": json.dumps(raw),
        **more,
    }


def reward(value: Any = 1.0) -> tuple[str, dict[str, Any]]:
    return "lightning.reward", {"reward": value}


def with_ids(answer: str = "a") -> tuple[str, dict[str, Any]]:
    return call(answer, prompt_ids=[1, 2], ids=[3, 4, 5])


TRACES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "good": [with_ids("one"), with_ids("two"), reward(0.5)],
    "no ids": [call(), reward()],
    "no ids of the gateway": [call(**{"lightning.llm_proxy.upstream": "u"}), reward()],
    "reward first": [reward(), with_ids()],
    "no reward": [with_ids()],
    "no number": [with_ids(), reward("much")],
    "no calls": [("step", {}), reward()],
    "no spans": [],
    "call failed": [("ChatCompletion", {"openinference.span.kind": "LLM"}), reward()],
    "no answer": [("ChatCompletion", {"openinference.span.kind": "LLM"}), reward()],
}


@rollout
async def agent(task: str, llm: LLM) -> list[Span]:
    if task == "failed":
        raise ValueError("this task is impossible")
    if task == "judge":
        return make_trace([call(), reward()], parents=[1, None])
    spans = make_trace(TRACES[task])
    if task == "call failed":
        spans[0].status = TraceStatus(status_code="ERROR", description="503")
    return spans


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture(params=["core alone", "triplet"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads the traces: the core, or the adapter that knows more."""
    if request.param == "triplet":
        pytest.importorskip("lightning_adapter_triplet", reason="the adapter is a plugin")
    else:
        monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "adapter.*")
    return request.param


def fit(store: str, *tasks: str, **settings: Any) -> str:
    llm = LLM(endpoint="http://localhost/v1", model="tiny")
    trainer = Trainer(
        tracer="dummy", algorithm="baseline", store=store, initial_resources={"llm": llm}, **settings
    )
    return trainer.fit(agent, list(tasks)).run_id


def run(store: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["runs", "explain", *arguments, "--store", store])
    assert result.exit_code == 0, result.output
    return result.output


def records(store: str, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rollouts, summary = [json.loads(line) for line in run(store, *arguments, "--json").splitlines()]
    assert summary["type"] == "summary"
    return rollouts, summary


def test_calls_rewards_and_matches_are_shown(store: str, reader: str):
    text = run(store, fit(store, "good"))
    first, second, last = [line for line in text.splitlines() if line.startswith("#")]
    assert first.split()[:6] == ["#0", "ChatCompletion", "[0000000000000001]", "call", "tiny", "12+3"]
    assert "prompt and answer" in first
    assert " ".join(second.split()[6:]) == "prompt and answer 0.5 first_occurrence: the last call before it"
    assert "reward" in last
    assert " ".join(last.split()[3:]) == "reward 0.5 landed: first_occurrence: the last call before it"
    assert "problem" not in text
    assert "1 of 2 calls, in 1 of 1 rollouts, can be trained on" in text


def test_json_says_the_same(store: str, reader: str):
    (found,), summary = records(store, fit(store, "good"))
    assert found["status"] == "succeeded"
    assert [one["reward"] for one in found["calls"]] == [None, 0.5]
    assert found["calls"][0]["prompt_ids"] == "prompt_token_ids of the raw answer"
    assert [(one["value"], one["landed"]) for one in found["rewards"]] == [(0.5, True)]
    assert (found["usable_calls"], found["problems"]) == (1, [])
    assert (summary["calls"], summary["with_token_ids"], summary["usable_rollouts"]) == (2, 2, 1)


def problems(store: str, task: str) -> tuple[list[dict[str, Any]], str]:
    (found,), summary = records(store, fit(store, task))
    return found["problems"], summary["verdict"]


def test_trap_23_missing_token_ids_come_with_what_to_do(store: str, reader: str):
    (problem,), verdict = problems(store, "no ids")
    missing = "the engine gave no prompt token ids, the engine gave no response token ids"
    assert problem["text"] == f"1 of 1 calls: {missing}"
    assert 'Trainer(llm_proxy="gateway")' in problem["fix"]
    assert verdict.startswith("nothing to train on")
    assert "1 of 1 succeeded with a reward" in verdict


def test_missing_token_ids_of_the_gateway_are_the_engines_fault(store: str, reader: str):
    (problem,), _ = problems(store, "no ids of the gateway")
    assert "the gateway got none" in problem["fix"]


def test_trap_19_a_reward_that_landed_nowhere_is_named(store: str, reader: str):
    (problem,), verdict = problems(store, "reward first")
    assert "none of 1 rewards landed on one of 1 calls; the last: no call comes before it" in problem["text"]
    assert "'final'" in problem["fix"]
    assert verdict.startswith("nothing to train on")


@pytest.mark.parametrize(
    ("task", "kind", "fix"),
    [
        ("no reward", "there is no reward", "emit_reward"),
        ("no number", "rewards hold no finite number", "emit_reward"),
        ("no calls", "no LLM call was found", "instrument"),
        ("no spans", "no span was recorded", "tracer"),
        ("failed", "the rollout failed", "max_attempts"),
    ],
)
def test_trap_23_what_gives_nothing_says_why(store: str, reader: str, task: str, kind: str, fix: str):
    (problem,), verdict = problems(store, task)
    assert kind in problem["kind"]
    assert fix in problem["fix"]
    assert verdict.startswith("nothing to")


def test_a_call_without_an_answer_is_named(store: str, reader: str):
    (problem,), verdict = problems(store, "no answer")
    assert "holds no answer" in problem["text"]
    assert "read streams to their end" in problem["fix"]
    assert verdict.startswith("nothing to train on")


def test_a_call_that_failed_is_named_with_its_error(store: str, reader: str):
    (problem,), _ = problems(store, "call failed")
    assert "it failed: 503" in problem["text"] or "the call failed: 503" in problem["text"]
    assert "what serves the model" in problem["fix"]


def test_only_calls_of_a_judge_are_no_calls_of_the_agent(store: str, reader: str):
    (problem,), _ = problems(store, "judge")
    assert "made by the reward function" in problem["text"]
    assert "let the agent itself call" in problem["fix"]


def test_trap_23_a_run_of_failed_rollouts_says_so_with_their_errors(store: str, reader: str):
    text = run(store, fit(store, "failed", "failed"))
    assert text.count("agent_error: ValueError: this task is impossible") == 2
    assert "problem    2 rollouts: the rollout failed" in text
    assert "nothing to learn from: no rollout succeeded with a reward" in text


def test_trap_23_calls_of_a_failed_rollout_are_not_to_be_trained_on():
    summary = explain.Summary()
    spans = make_trace(TRACES["good"])
    for status, attempt in (("succeeded", "succeeded"), ("failed", "timeout")):
        failed = RolloutV2(rollout_id="ro", input=0, start_time=0.0, status=status)
        attempts = [Attempt(rollout_id="ro", attempt_id="at", sequence_id=1, start_time=0.0, status=attempt)]
        summary.add(explain_rollout(failed, attempts, spans, resolve("credit", "final"), None))
    assert (summary.calls, summary.with_reward) == (4, 4)
    assert (summary.usable, summary.usable_rollouts, summary.rewarded_rollouts) == (2, 1, 1)
    assert "2 of 4 calls, in 1 of 2 rollouts, can be trained on" in summary.verdict()


def test_the_summary_counts_each_problem_once_a_rollout(store: str):
    _, summary = records(store, fit(store, "no ids", "no ids", "good", "no reward"))
    counts = {problem["kind"]: problem["rollouts"] for problem in summary["problems"]}
    assert counts["the engine gave no prompt token ids, the engine gave no response token ids"] == 2
    assert counts["there is no reward"] == 1
    assert (summary["rollouts"], summary["rewarded_rollouts"]) == ({"succeeded": 4}, 3)


def test_another_credit_may_be_asked_for(store: str, reader: str):
    (found,), summary = records(store, fit(store, "good"), "--credit", "final")
    assert [one["reward"] for one in found["calls"]] == [0.5, 0.5]
    assert summary["usable_calls"] == 2


def test_one_rollout_may_be_asked_for(store: str):
    run_id = fit(store, "good", "failed")
    every, _ = records(store, run_id)
    wanted = every[1]["rollout_id"]
    (found,), summary = records(store, run_id, "--rollout", wanted)
    assert found["rollout_id"] == wanted
    assert sum(summary["rollouts"].values()) == 1


def test_only_rollouts_with_problems_may_be_asked_for(store: str):
    found, summary = records(store, fit(store, "good", "no reward", "good"), "--problems")
    assert [one["problems"][0]["kind"] for one in found] == ["there is no reward"]
    assert summary["rollouts"] == {"succeeded": 3}


def test_rollouts_are_read_page_by_page(store: str, monkeypatch: pytest.MonkeyPatch):
    run_id = fit(store, *["good"] * 5)
    monkeypatch.setattr(explain, "_PAGE", 2)
    found, summary = records(store, run_id)
    assert len({one["rollout_id"] for one in found}) == 5
    assert summary["rollouts"] == {"succeeded": 5}


def test_the_adapter_knows_spans_of_one_call(store: str):
    pytest.importorskip("lightning_adapter_triplet", reason="the adapter is a plugin")
    TRACES["twice"] = [with_ids(), call(), reward()]
    found, _ = records(store, fit(store, "twice"))
    (only,) = found[0]["calls"]
    assert "the same call as #1 ChatCompletion" in only["reason"]


def test_the_adapter_of_the_run_is_the_one_that_reads_it(store: str):
    pytest.importorskip("lightning_adapter_triplet", reason="the adapter is a plugin")
    run_id = fit(store, "good", adapter="llm-proxy-triplet")
    (found,), _ = records(store, run_id)
    assert found["calls"] == []
    assert "no span is of a gateway, but 2 are LLM calls" in found["problems"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run-unknown"], 1, "no run 'run-unknown'"),
        (["RUN", "--rollout", "ro-unknown"], 1, "has no rollout 'ro-unknown'"),
        (["RUN", "--credit", "finl"], 1, "did you mean 'final'"),
        (["RUN", "--credit", "group-relative"], 2, "compares rollouts"),
    ],
)
def test_bad_input_is_answered_in_one_line(store: str, arguments: list[str], code: int, message: str):
    run_id = fit(store, "good")
    given = [run_id if argument == "RUN" else argument for argument in arguments]
    result = CliRunner().invoke(main, ["runs", "explain", *given, "--store", store])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
