"""The examples in the docstrings of Agent Lightning's API run here, with nothing changed but the import."""

# ruff: noqa: RET504 - the examples are as they are

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core import emit_reward
from lightning_core.litagent import LitAgent, llm_rollout, prompt_rollout, rollout
from lightning_core.runner import AgentRunnerV2
from lightning_core.store import InMemoryLightningStore
from lightning_core.tracer import BaseTracer, DummyTracer
from lightning_core.types import (
    LLM,
    Attempt,
    AttemptedRollout,
    Hook,
    NamedResources,
    PromptTemplate,
    ProxyLLM,
    RolloutV2,
    Task,
)

task = Task(rollout_id="rollout-1", input="What is 2 + 2?")
live = RolloutV2(rollout_id="rollout-1", input=task, start_time=0.0).with_attempt(
    Attempt(rollout_id="rollout-1", attempt_id="attempt-1", sequence_id=1, start_time=0.0)
)


@pytest.fixture
def llm(model_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> LLM:
    pytest.importorskip("openai")
    # The examples give no key, so the client looks for one here.
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return LLM(endpoint=model_endpoint, model="llama3")


def ask(llm: LLM) -> str:
    from openai import OpenAI

    with OpenAI(base_url=llm.get_base_url(), max_retries=0) as client:
        response = client.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": task.input}]
        )
    return response.choices[0].message.content or ""


# agentlightning.litagent


def test_llm_rollout() -> None:
    @llm_rollout
    def my_agent(task, llm):
        # Agent logic here
        response = (task.input, llm.model)
        return response

    @llm_rollout(strip_proxy=False)
    def my_agent_no_strip(task, llm):
        # Agent logic here
        response = type(llm)
        return response

    llm = LLM(endpoint="http://localhost:8080", model="llama3")
    resources: NamedResources = {"main_llm": ProxyLLM(endpoint="http://localhost:8080/v1", model="proxied")}
    rollout = live

    # Function is still callable with original behavior
    result = my_agent(task, llm)
    assert result == ("What is 2 + 2?", "llama3")
    assert my_agent_no_strip(task, llm) is LLM

    # Agent methods are also available
    result = my_agent.rollout(task, resources, rollout)
    assert result == ("What is 2 + 2?", "proxied")
    assert my_agent_no_strip.rollout(task, resources, rollout) is ProxyLLM


def test_prompt_rollout() -> None:
    @prompt_rollout
    def my_agent(task, prompt_template):
        # Use the prompt template to generate a response
        messages = prompt_template.format(task=task.input)
        # ... perform rollout with the formatted prompt
        response = messages.upper()
        return response

    prompt_template = PromptTemplate(template="Answer this: {task}", engine="f-string")
    resources: NamedResources = {"prompt": prompt_template}
    rollout = live

    # Function is still callable with original behavior
    result = my_agent(task, prompt_template)
    assert result == "ANSWER THIS: WHAT IS 2 + 2?"

    # Agent methods are also available
    result = my_agent.rollout(task, resources, rollout)
    assert result == "ANSWER THIS: WHAT IS 2 + 2?"


def test_rollout_of_a_function_with_a_model(llm: LLM) -> None:
    from openai import OpenAI

    @rollout
    def my_llm_agent(task, llm):
        client = OpenAI(base_url=llm.endpoint)
        response = client.chat.completions.create(
            model=llm.model,
            messages=[{"role": "user", "content": task.input}],
        )
        client.close()
        return response

    resources: NamedResources = {"main_llm": llm}

    # Function is still callable with original behavior
    result = my_llm_agent(task, llm)
    assert (result.model, result.choices[0].message.content) == ("llama3", "4")

    # Agent methods are also available
    result = my_llm_agent.rollout(task, resources, live)
    assert result.choices[0].message.content == "4"


def test_rollout_of_a_function_with_a_prompt_template() -> None:
    @rollout
    def my_prompt_agent(task, prompt_template):
        messages = prompt_template.format(task=task.input)
        # ... perform rollout with the formatted prompt
        response = len(messages)
        return response

    prompt_template = PromptTemplate(template="{task}!", engine="f-string")
    assert my_prompt_agent(task, prompt_template) == 15
    assert my_prompt_agent.rollout(task, {"prompt": prompt_template}, live) == 15


def test_rollout_of_a_function_that_matches_no_pattern() -> None:
    with pytest.raises(NotImplementedError, match="Accepted signatures"):

        @rollout
        def my_agent(something, unknown): ...


# agentlightning.tracer


@pytest.fixture(params=["lightning_tracer_otel.OtelTracer", "lightning_tracer_agentops.AgentOpsTracer"])
def your_tracer(request: pytest.FixtureRequest) -> Iterator[Callable[[], BaseTracer]]:
    """A tracer that sees the calls of the model, and leaves the process as it was."""
    package, _, name = request.param.partition(".")
    tracer: BaseTracer = getattr(pytest.importorskip(package), name)()
    yield lambda: tracer
    tracer.teardown()


def test_the_typical_workflow_of_a_tracer(llm: LLM, your_tracer: Callable[[], BaseTracer]) -> None:
    pytest.importorskip("lightning_adapter_triplet")
    from lightning_core.adapter import TraceTripletAdapter

    YourTracerImplementation = your_tracer  # noqa: N806 - as in the example

    def run_my_agent_logic() -> None:
        emit_reward(1.0 if ask(llm) == "4" else 0.0)

    tracer = YourTracerImplementation()

    try:
        with tracer.trace_context(name="my_traced_task"):
            # ... code to be traced ...
            run_my_agent_logic()
    except Exception as e:
        print(f"An error occurred: {e}")
        raise

    # Retrieve the trace data after the context block
    spans: list[ReadableSpan] = tracer.get_last_trace()

    # Process the trace data
    assert spans
    rl_triplets = TraceTripletAdapter().adapt(spans)
    [triplet] = rl_triplets
    assert triplet.reward == 1.0
    assert "2 + 2" in str(triplet.prompt)
    assert "4" in str(triplet.response)
    assert "my_traced_task" in [span.name for span in spans]


def test_the_trace_of_what_failed_can_be_retrieved() -> None:
    tracer = DummyTracer()
    try:
        with tracer.trace_context(name="my_traced_task"):
            emit_reward(0.25)
            raise RuntimeError("the agent fails")
    except Exception as e:
        error = str(e)
    assert error == "the agent fails"
    assert len(tracer.get_last_trace()) == 1


# agentlightning.types


def test_named_resources() -> None:
    resources: NamedResources = {
        "main_llm": LLM(
            endpoint="http://localhost:8080",
            model="llama3",
            sampling_parameters={"temperature": 0.7, "max_tokens": 100},
        ),
        "system_prompt": PromptTemplate(template="You are a helpful assistant.", engine="f-string"),
    }
    main_llm, system_prompt = resources["main_llm"], resources["system_prompt"]
    assert isinstance(main_llm, LLM)
    assert main_llm.get_base_url() == "http://localhost:8080"
    assert main_llm.sampling_parameters == {"temperature": 0.7, "max_tokens": 100}
    assert isinstance(system_prompt, PromptTemplate)
    assert system_prompt.format() == "You are a helpful assistant."


# agentlightning.runner


class Answering(LitAgent[str]):
    def rollout(self, task: str, resources: NamedResources, rollout: RolloutV2) -> float:
        assert isinstance(rollout, AttemptedRollout)
        return float(len(task))


async def test_run_context_sets_a_runner_up_without_a_trainer() -> None:
    class Seen(Hook):
        events: list[str]

        def __init__(self) -> None:
            self.events = []

        async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
            self.events.append(f"start {rollout.input}")

        async def on_rollout_end(self, *, agent: Any, runner: Any, rollout: Any, spans: Any) -> None:
            self.events.append(f"end {rollout.input}")

    agent, store, hook = Answering(), InMemoryLightningStore(), Seen()
    runner: AgentRunnerV2[str] = AgentRunnerV2(tracer=DummyTracer())
    resources: NamedResources = {"prompt": PromptTemplate(template="{task}")}
    with runner.run_context(agent=agent, store=store, hooks=[hook]) as ready:
        assert ready is runner
        assert agent.get_runner() is runner
        done = await runner.step("four", resources=resources)
    assert done.status == "succeeded"
    assert hook.events == ["start four", "end four"]
    with pytest.raises(ValueError, match="init"):
        runner.get_agent()
    with pytest.raises(ValueError, match="init_worker"):
        runner.get_store()
    await store.close()
