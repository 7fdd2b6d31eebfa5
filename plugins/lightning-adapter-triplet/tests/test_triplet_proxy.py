"""Triplets from a gateway's spans, which here are written by hand."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from lightning_adapter_triplet import LlmProxyTripletAdapter, RewardMatchPolicy, TraceTripletAdapter

from lightning_core import resolve
from lightning_core.errors import PluginSettingsError
from lightning_core.testing import AdapterConformance
from lightning_core.testing.adapter import make_trace
from lightning_core.types import Span, TraceStatus, Triplet


def recorded(
    question: str = "q",
    text: str = "a",
    *,
    ids: tuple[list[int] | None, list[int] | None] = ([1, 2], [3]),
    response_id: str = "chatcmpl-1",
    **facts: Any,
) -> tuple[str, dict[str, Any]]:
    """A chat completion as a gateway records it: the raw request and answer, scalars, and facts of its own."""
    prompt_ids, token_ids = ids
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "tool_calls": []},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": text, "logprob": -0.5, "bytes": [97], "top_logprobs": []}]},
    }
    answer: dict[str, Any] = {"id": response_id, "object": "chat.completion", "model": "answered"}
    if prompt_ids is not None:
        answer["prompt_token_ids"] = prompt_ids
    if token_ids is not None:
        choice["token_ids"] = token_ids
    answer |= {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    request = {"model": "asked", "messages": [{"role": "user", "content": question}], "temperature": 0.5}
    return "chat asked", {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(request),
        "output.value": json.dumps(answer),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "asked",
        "gen_ai.response.model": "answered",
        "gen_ai.response.id": response_id,
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "lightning.llm_proxy.upstream": "policy",
        "lightning.llm_proxy.status": 200,
        "lightning.llm_proxy.streamed": False,
        "lightning.llm_proxy.retries": 0,
        "lightning.llm_proxy.client_disconnected": False,
        "lightning.llm_proxy.total_seconds": 0.25,
        **{f"lightning.llm_proxy.{name}": value for name, value in facts.items()},
    }


def traced(question: str = "q", text: str = "a") -> tuple[str, dict[str, Any]]:
    """The same call as a tracer in the agent records it."""
    return "ChatCompletion", {
        "openinference.span.kind": "LLM",
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": question,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": text,
    }


def reward(value: float) -> tuple[str, dict[str, Any]]:
    return "lightning.reward", {"reward": value}


def told(triplets: list[Triplet]) -> list[tuple[str, float | None]]:
    return [(triplet.prompt["messages"][-1]["content"], triplet.reward) for triplet in triplets]


class TestConformance(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> LlmProxyTripletAdapter:
        return LlmProxyTripletAdapter()

    @pytest.fixture
    def trace(self) -> list[Span]:
        return make_trace([recorded("1"), reward(1.0), recorded("2", response_id="chatcmpl-2"), reward(0.0)])


class TestConformanceWithoutTokenIds(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> LlmProxyTripletAdapter:
        return LlmProxyTripletAdapter(llm_call_match="^chat", require_token_ids=False)

    @pytest.fixture
    def trace(self) -> list[Span]:
        return make_trace([recorded("1", ids=(None, None)), reward(1.0)])


def test_a_triplet_holds_what_the_engine_was_sent_and_gave_back() -> None:
    (triplet,) = LlmProxyTripletAdapter().adapt(make_trace([recorded(), reward(1)]))
    assert triplet.prompt == {
        "messages": [{"role": "user", "content": "q"}],
        "text": None,
        "tools": [],
        "token_ids": [1, 2],
    }
    assert triplet.response["token_ids"] == [3]
    assert triplet.response["logprobs"] == [-0.5]
    assert triplet.response["message"]["content"] == "a"
    assert triplet.response["finish_reason"] == "stop"
    assert triplet.reward == 1.0
    assert triplet.metadata["model"] == "answered"
    assert triplet.metadata["parameters"] == {"temperature": 0.5}
    assert triplet.metadata["token_ids"]["prompt"] == "prompt_token_ids of the raw answer"


def test_sequence_ids_alone_place_calls_and_rewards() -> None:
    """Trap 12: the gateway's machine has a clock of its own, and it is an hour ahead of the agent's."""
    spans = make_trace([recorded("1"), reward(1), recorded("2", response_id="chatcmpl-2"), reward(2)])
    for span in spans:
        if "input.value" in span.attributes:
            span.start_time, span.end_time = 1_700_003_600.0, 1_700_003_601.0
    assert told(LlmProxyTripletAdapter().adapt(spans[::-1])) == [("1", 1.0), ("2", 2.0)]


def test_what_a_tracer_recorded_of_the_same_calls_is_passed_over() -> None:
    """Trap 19."""
    spans = make_trace(
        [
            recorded("1"),
            traced("1"),
            reward(1),
            recorded("2", response_id="chatcmpl-2"),
            traced("2"),
            reward(2),
        ]
    )
    adapter = LlmProxyTripletAdapter()
    assert told(adapter.adapt(spans)) == [("1", 1.0), ("2", 2.0)]
    assert [call.span_id for call in adapter.explain(spans).calls] == [spans[0].span_id, spans[3].span_id]


def test_the_same_question_asked_twice_is_two_calls() -> None:
    """Some servers give every answer one id, and at temperature 0 answers are the same."""
    spans = make_trace([recorded(), recorded(), recorded(), reward(1)])
    assert told(LlmProxyTripletAdapter().adapt(spans)) == [("q", None), ("q", None), ("q", 1.0)]


@pytest.mark.parametrize(
    ("ids", "missing"),
    [
        ((None, [3]), "it has no token ids: the engine gave no prompt token ids"),
        (([1, 2], None), "it has no token ids: the engine gave no response token ids"),
        (
            (None, None),
            "it has no token ids: the engine gave no prompt token ids, the engine gave no response token ids",
        ),
    ],
)
def test_a_call_without_token_ids_is_left_out_and_reported(
    ids: tuple[list[int] | None, list[int] | None], missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Trap 20: it is never filled up from text, and never left out in silence."""
    spans = make_trace([recorded("1", ids=ids), recorded("2", response_id="chatcmpl-2"), reward(1)])
    adapter = LlmProxyTripletAdapter()
    with caplog.at_level(logging.WARNING):
        assert told(adapter.adapt(spans)) == [("2", 1.0)]
    assert (
        f"1 of 2 calls are left out, since they have no {missing.removeprefix('it has no ')}" in caplog.text
    )
    explanation = adapter.explain(spans)
    assert [call.excluded_because for call in explanation.calls] == [missing, None]
    assert "1 of 2 calls are left out" in str(explanation)


def test_a_trace_without_any_token_ids_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 23."""
    spans = make_trace([recorded("1", ids=(None, None)), recorded("2", ids=(None, None))])
    adapter = LlmProxyTripletAdapter()
    assert adapter.adapt(spans) == []
    reason = adapter.explain(spans).empty_because
    assert reason is not None
    assert reason.startswith(
        "2 LLM calls, all left out: it has no token ids: the engine gave no prompt token ids"
    )
    assert reason in caplog.text


def test_calls_without_token_ids_are_kept_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    spans = make_trace([recorded(ids=(None, None)), reward(1)])
    adapter = LlmProxyTripletAdapter(require_token_ids=False)
    (triplet,) = adapter.adapt(spans)
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"], triplet.reward) == (None, None, 1.0)
    assert "the engine gave no prompt token ids" in str(adapter.explain(spans).calls[0])
    assert caplog.text == ""


def test_ids_that_a_stream_dropped_count_as_missing() -> None:
    """Trap 20: the answer of a stream was put together, and holds fewer ids than the engine counted."""
    name, attributes = recorded(streamed=True)
    whole = json.loads(attributes["output.value"])
    whole["usage"]["completion_tokens"] = 2
    attributes["output.value"] = json.dumps(whole)
    attributes["gen_ai.usage.output_tokens"] = 2
    spans = make_trace([(name, attributes)])
    assert LlmProxyTripletAdapter().adapt(spans) == []
    assert "the engine counted 2 response tokens, but token_ids holds 1 ids" in str(
        LlmProxyTripletAdapter().explain(spans)
    )


def test_calls_that_broke_off_are_left_out() -> None:
    """What there is of their answers is not what the model would have said."""
    spans = make_trace([recorded("1", client_disconnected=True), recorded("2"), recorded("3")])
    spans[1].status = TraceStatus(status_code="ERROR", description="upstream policy closed the connection")
    adapter = LlmProxyTripletAdapter()
    assert told(adapter.adapt(spans)) == [("3", None)]
    first, second, _ = adapter.explain(spans).calls
    assert first.excluded_because == "the client went away before the answer had ended"
    assert second.excluded_because == "it failed: upstream policy closed the connection"


def test_embeddings_are_no_calls() -> None:
    attributes = {
        "openinference.span.kind": "EMBEDDING",
        "input.value": '{"model": "m", "input": "text"}',
        "gen_ai.operation.name": "embeddings",
        "lightning.llm_proxy.status": 200,
    }
    spans = make_trace([("embeddings m", attributes), recorded()])
    assert told(LlmProxyTripletAdapter().adapt(spans)) == [("q", None)]
    assert len(LlmProxyTripletAdapter().explain(spans).calls) == 1


def test_some_of_the_gateways_calls() -> None:
    judge = recorded("how good?", response_id="chatcmpl-2")[1]
    spans = make_trace([recorded("1"), ("chat judge", judge), reward(1)])
    assert told(LlmProxyTripletAdapter(llm_call_match="asked").adapt(spans)) == [("1", 1.0)]
    none = LlmProxyTripletAdapter(llm_call_match="other").explain(spans)
    assert none.empty_because == "llm_call_match 'other' matches none of the 2 calls of a gateway"


def test_a_judge_whose_parent_is_known_is_left_out() -> None:
    judging = ("judge", {"agentops.entity.output": '{"type": "reward", "value": 0.5}'})
    spans = make_trace([recorded("task"), recorded("how good?"), judging], parents=[None, 2, None])
    assert told(LlmProxyTripletAdapter().adapt(spans)) == [("task", 0.5)]


def test_a_trace_without_a_gateway_says_what_to_do() -> None:
    assert "2 are LLM calls that a tracer recorded" in str(
        LlmProxyTripletAdapter().explain(make_trace([traced("1"), traced("2")])).empty_because
    )
    assert "none of the 1 spans is of a gateway" in str(
        LlmProxyTripletAdapter().explain(make_trace([reward(1)])).empty_because
    )


def test_the_other_adapter_makes_one_triplet_of_both_recordings() -> None:
    """Trap 19: and takes the token ids from the gateway's span, which the tracer's span of a stream lacks."""
    spans = make_trace([recorded("1"), traced("1"), ("root", {})], parents=[1, 2, None])
    (triplet,) = TraceTripletAdapter().adapt(spans)
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([1, 2], [3])


def test_it_is_selected_by_name_and_its_settings_are_checked() -> None:
    adapter = resolve(
        "adapter",
        {
            "type": "llm-proxy-triplet",
            "llm_call_match": "^chat",
            "reward_match": "first_sibling",
            "require_token_ids": False,
        },
    )
    assert isinstance(adapter, LlmProxyTripletAdapter)
    assert isinstance(adapter, TraceTripletAdapter)
    assert (adapter.llm_call_match, adapter.require_token_ids) == ("^chat", False)
    assert adapter.reward_match is RewardMatchPolicy.FIRST_SIBLING
    with pytest.raises(PluginSettingsError, match=r"adapter\.llm_call_match: .*no regular expression"):
        resolve("adapter", {"type": "llm-proxy-triplet", "llm_call_match": "("})
    with pytest.raises(ValueError, match="llm_call_match"):
        LlmProxyTripletAdapter(llm_call_match="(")


def test_the_reference_name_leads_here() -> None:
    import lightning_core.adapter as core

    assert core.LlmProxyTripletAdapter is LlmProxyTripletAdapter
