"""Agents from functions: signatures, resources, and the function that stays a function."""

import functools
import inspect
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_core.errors import ConfigurationError, LightningError, NoResourcesError
from lightning_core.litagent import FunctionalLitAgent, LitAgent, llm_rollout, prompt_rollout, rollout
from lightning_core.types import (
    LLM,
    Attempt,
    NamedResources,
    PromptTemplate,
    ProxyLLM,
    RolloutMode,
    RolloutV2,
)

PLAIN = RolloutV2(rollout_id="ro-1", input="task", start_time=0)
ATTEMPTED = PLAIN.with_attempt(Attempt(rollout_id="ro-1", attempt_id="at-1", sequence_id=1, start_time=0))
MODEL = LLM(endpoint="http://host/v1", model="m")
PROMPT = PromptTemplate(template="{q}")
BOTH: NamedResources = {"prompt": PROMPT, "model": MODEL}


async def run(agent: LitAgent[Any], resources: NamedResources = BOTH, rollout: RolloutV2 = ATTEMPTED) -> Any:
    if agent.is_async():
        return await agent.rollout_async("task", resources, rollout)
    return agent.rollout("task", resources, rollout)


def sync_llm(task, llm):
    return [task, llm]


def sync_llm_rollout(task, llm, rollout):
    return [task, llm, rollout]


def sync_prompt(task, prompt_template):
    return [task, prompt_template]


def sync_prompt_rollout(task, prompt_template, rollout):
    return [task, prompt_template, rollout]


async def async_llm(task, llm):
    return [task, llm]


async def async_llm_rollout(task, llm, rollout):
    return [task, llm, rollout]


async def async_prompt(task, prompt_template):
    return [task, prompt_template]


async def async_prompt_rollout(task, prompt_template, rollout):
    return [task, prompt_template, rollout]


def both(question, prompt_template, llm):
    return [question, prompt_template, llm]


async def both_reversed(question, llm, prompt_template, rollout):
    return [question, llm, prompt_template, rollout]


def everything(task, resources, rollout):
    return [task, resources, rollout]


def positional(task, llm, /, rollout):
    return [task, llm, rollout]


def keyword_only(task, *, llm, rollout):
    return [task, llm, rollout]


def with_defaults(task, llm, retries=3, *args, temperature=0.5, **kwargs):
    return [task, llm, retries, args, temperature, kwargs]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (sync_llm, ["task", MODEL]),
        (sync_llm_rollout, ["task", MODEL, ATTEMPTED]),
        (sync_prompt, ["task", PROMPT]),
        (sync_prompt_rollout, ["task", PROMPT, ATTEMPTED]),
        (async_llm, ["task", MODEL]),
        (async_llm_rollout, ["task", MODEL, ATTEMPTED]),
        (async_prompt, ["task", PROMPT]),
        (async_prompt_rollout, ["task", PROMPT, ATTEMPTED]),
        (both, ["task", PROMPT, MODEL]),
        (both_reversed, ["task", MODEL, PROMPT, ATTEMPTED]),
        (everything, ["task", BOTH, ATTEMPTED]),
        (positional, ["task", MODEL, ATTEMPTED]),
        (keyword_only, ["task", MODEL, ATTEMPTED]),
        (with_defaults, ["task", MODEL, 3, (), 0.5, {}]),
    ],
)
async def test_the_names_of_the_parameters_say_what_is_passed(
    function: Callable[..., Any], expected: list[Any]
):
    agent = rollout(function)
    assert isinstance(agent, FunctionalLitAgent)
    assert agent.is_async() is inspect.iscoroutinefunction(function)
    assert await run(agent) == expected


@pytest.mark.parametrize("mode", ["train", "val", "test"])
@pytest.mark.parametrize("function", [sync_llm, async_llm])
async def test_a_function_serves_every_mode(function: Callable[..., Any], mode: RolloutMode):
    validating = ATTEMPTED.model_copy(update={"mode": mode})
    assert await run(rollout(function), rollout=validating) == ["task", MODEL]


@pytest.mark.parametrize("function", [sync_llm, async_llm])
async def test_a_decorated_function_is_still_the_function(function: Callable[..., Any]):
    agent = rollout(function)
    result = agent("t", llm="any")
    assert (await result if inspect.isawaitable(result) else result) == ["t", "any"]
    assert agent.__name__ == function.__name__
    assert agent.__doc__ == function.__doc__
    assert agent.__wrapped__ is function
    assert inspect.signature(agent) == inspect.signature(function)
    assert function.__name__ in repr(agent)


async def test_a_sync_function_can_be_awaited_and_an_async_one_not_be_called():
    assert await rollout(sync_llm).rollout_async("task", BOTH, PLAIN) == ["task", MODEL]
    with pytest.raises(NotImplementedError, match="async_llm is async: await rollout_async"):
        rollout(async_llm).rollout("task", BOTH, PLAIN)


class Callables:
    def __call__(self, task, llm):
        return [task, llm]


class AsyncCallables:
    async def __call__(self, task, llm):
        return [task, llm]


@pytest.mark.parametrize(
    "function",
    [
        Callables(),
        AsyncCallables(),
        functools.partial(with_defaults, retries=3),
        lambda task, llm: [task, llm],
    ],
)
async def test_other_callables_can_be_agents(function: Callable[..., Any]):
    assert (await run(rollout(function)))[:2] == ["task", MODEL]


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda task: None,
        lambda task, rollout: None,
        lambda task, model: None,
        lambda task, llm, extra: None,
        lambda llm, task: None,
        lambda *args: None,
        lambda **kwargs: None,
        lambda *, task, llm: None,
        int,
    ],
)
def test_an_unknown_signature_is_refused_with_the_accepted_ones(function: Callable[..., Any]):
    with pytest.raises(NotImplementedError) as caught:
        rollout(function)
    message = str(caught.value)
    assert "cannot be an agent" in message
    for accepted in (
        "(task, llm[, rollout])",
        "(task, prompt_template[, rollout])",
        "(task, resources[, rollout])",
    ):
        assert accepted in message


# The explicit decorators


async def test_explicit_decorators_go_by_position_too():
    assert await run(llm_rollout(lambda task, model: [task, model])) == ["task", MODEL]
    assert await run(llm_rollout(lambda task, model, r: [task, model, r])) == ["task", MODEL, ATTEMPTED]
    assert await run(prompt_rollout(lambda task, prompt: [task, prompt])) == ["task", PROMPT]
    assert await run(prompt_rollout(lambda task, prompt, r: [task, prompt, r])) == ["task", PROMPT, ATTEMPTED]
    assert await run(llm_rollout(both)) == ["task", PROMPT, MODEL]


async def test_explicit_decorators_work_with_and_without_parentheses():
    for agent in (llm_rollout(sync_llm), llm_rollout()(sync_llm), llm_rollout(strip_proxy=True)(sync_llm)):
        assert await run(agent) == ["task", MODEL]
    for agent in (prompt_rollout(sync_prompt), prompt_rollout()(sync_prompt)):
        assert await run(agent) == ["task", PROMPT]


@pytest.mark.parametrize(
    ("decorator", "function"),
    [
        (llm_rollout, sync_prompt),
        (prompt_rollout, sync_llm),
        (llm_rollout, lambda task: None),
        (llm_rollout, lambda task, llm, rollout, more: None),
        (llm_rollout, lambda task, model, r, more: None),
    ],
)
def test_explicit_decorators_refuse_what_is_not_theirs(decorator: Any, function: Callable[..., Any]):
    with pytest.raises(NotImplementedError, match="Accepted signatures"):
        decorator(function)


# Resources


@pytest.mark.parametrize(
    ("function", "resources", "message"),
    [
        (sync_llm, {"prompt": PROMPT}, r"needs a resource of kind LLM .* hold: prompt \(PromptTemplate\)"),
        (sync_prompt, {"model": MODEL}, r"kind PromptTemplate .* hold: model \(LLM\)"),
        (sync_llm, {}, "hold: nothing"),
    ],
)
async def test_a_missing_resource_is_an_error_that_names_what_is_there(
    function: Callable[..., Any], resources: NamedResources, message: str
):
    with pytest.raises(NoResourcesError, match=message):
        await run(rollout(function), resources)
    assert issubclass(NoResourcesError, LightningError)


async def test_of_several_resources_the_one_with_the_parameters_name_is_taken(
    caplog: pytest.LogCaptureFixture,
):
    other = LLM(endpoint="http://other/v1", model="judge")
    assert await run(rollout(sync_llm), {"judge": other, "llm": MODEL}) == ["task", MODEL]
    assert await run(llm_rollout(lambda task, judge: judge), {"main": MODEL, "judge": other}) == other
    assert not caplog.records


async def test_of_several_others_the_first_is_taken_with_one_warning(caplog: pytest.LogCaptureFixture):
    other = LLM(endpoint="http://other/v1", model="judge")
    agent = rollout(sync_llm)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await run(agent, {"main": MODEL, "judge": other}) == ["task", MODEL]
    [record] = caplog.records
    assert "main, judge" in record.getMessage()
    assert "taking the first, 'main'" in record.getMessage()


async def test_a_proxy_is_replaced_by_a_plain_llm_that_knows_the_attempt():
    proxy = ProxyLLM(endpoint="http://proxy/v1", model="m")
    url = "http://proxy/rollout/ro-1/attempt/at-1/v1"
    for agent in (rollout(sync_llm), llm_rollout(sync_llm)):
        _, llm = await run(agent, {"proxy": proxy})
        assert type(llm) is LLM
        assert llm.endpoint == url
    _, resources, _ = await run(rollout(everything), {"proxy": proxy, "prompt": PROMPT})
    assert resources["proxy"].get_base_url() == url
    assert resources["prompt"] is PROMPT


async def test_a_proxy_is_kept_when_asked_and_without_an_attempt_refused():
    proxy = ProxyLLM(endpoint="http://proxy/v1", model="m")
    assert (await run(llm_rollout(strip_proxy=False)(sync_llm), {"proxy": proxy}, PLAIN))[1] is proxy
    with pytest.raises(ConfigurationError, match=r"'ro-1' without its attempt.* pass an AttemptedRollout"):
        await run(rollout(sync_llm), {"proxy": proxy}, PLAIN)


# Other processes


def test_an_agent_is_pickled_by_reference(tmp_path: Path):
    module = tmp_path / "agents.py"
    module.write_text(
        "from lightning_core.litagent import llm_rollout, rollout\n"
        "@rollout\ndef decorated(task, llm):\n    return 1.0\n"
        "def plain(task, llm):\n    return 2.0\n"
        "wrapped = llm_rollout(plain, strip_proxy=False)\n"
    )
    script = (
        "import agents, copy, pickle\n"
        "assert pickle.loads(pickle.dumps(agents.decorated)) is agents.decorated\n"
        "assert copy.deepcopy(agents.decorated) is agents.decorated\n"
        "again = pickle.loads(pickle.dumps(agents.wrapped))\n"
        "assert again is not agents.wrapped and again(None, None) == 2.0\n"
        "assert again._strip_proxy is False\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)


def test_a_local_agent_says_why_it_cannot_be_pickled():
    @rollout
    def local(task, llm):
        return None

    with pytest.raises(pickle.PicklingError, match="local cannot be sent to another process"):
        pickle.dumps(local)
