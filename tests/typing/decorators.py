"""What type checkers see of the decorators. `nox -s types` checks this with pyright and mypy; it is never run.

A comment that ignores an error must be needed, so a wrong use that is not found is an error as well.
"""

from collections.abc import Callable
from typing import Any, TypedDict, assert_type

from lightning_core import LLM, LitAgent, PromptTemplate, algo, llm_rollout, prompt_rollout, reward, rollout
from lightning_core.algorithm import BaseAlgorithm, FunctionalAlgorithm
from lightning_core.litagent import FunctionalLitAgent
from lightning_core.store import LightningStore
from lightning_core.types import Dataset, NamedResources, RolloutRawResultV2, RolloutV2


class Question(TypedDict):
    text: str


MODEL = LLM(endpoint="http://localhost:8080", model="llama3")
PROMPT = PromptTemplate(template="You are a helpful assistant.", engine="f-string")
QUESTION: Question = {"text": "2 + 2?"}


# @rollout


@rollout
def plain(task: Question, llm: LLM) -> float:
    return float(len(task["text"]))


@rollout
async def asynchronous(task: Question, prompt_template: PromptTemplate, rollout: RolloutV2) -> float | None:
    return None


async def a_decorated_function_is_called_as_it_was_written(live: RolloutV2) -> None:
    assert_type(plain(QUESTION, MODEL), float)
    assert_type(plain(task=QUESTION, llm=MODEL), float)
    assert_type(await asynchronous(QUESTION, PROMPT, live), float | None)
    plain("2 + 2?", MODEL)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain(QUESTION, model=MODEL)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await asynchronous(QUESTION, PROMPT)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_decorated_function_is_an_agent(live: RolloutV2, resources: NamedResources) -> None:
    agents: list[LitAgent[Question]] = [plain, asynchronous]
    assert_type(agents[0].rollout(QUESTION, resources, live), RolloutRawResultV2)
    assert_type(plain.is_async(), bool)
    plain.rollout(QUESTION, MODEL, live)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    rollout(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# @llm_rollout and @prompt_rollout, with and without arguments


@llm_rollout
def with_model(task: Question, llm: LLM) -> float:
    return 1.0


@llm_rollout(strip_proxy=False)
async def with_proxy(task: Question, llm: LLM) -> float:
    return 1.0


@prompt_rollout
def with_prompt(task: Question, prompt_template: PromptTemplate) -> None: ...


@prompt_rollout()
def with_prompt_too(task: Question, prompt: PromptTemplate) -> int:
    return 1


async def a_decorator_with_arguments_keeps_the_signature_too() -> None:
    agents: list[FunctionalLitAgent[..., Any]] = [with_model, with_proxy, with_prompt, with_prompt_too]
    assert agents
    assert_type(with_model(QUESTION, MODEL), float)
    assert_type(await with_proxy(QUESTION, llm=MODEL), float)
    assert_type(with_prompt_too(QUESTION, PROMPT), int)
    with_model(QUESTION, PROMPT)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await with_proxy(QUESTION, PROMPT)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with_prompt(QUESTION, MODEL)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with_prompt_too(QUESTION, MODEL)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# @reward


@reward
def score(answer: str, *, weight: float = 1.0) -> float:
    return weight


@reward
async def slow_score(answer: str) -> int:
    return 1


async def a_reward_function_stays_as_it_was() -> None:
    assert_type(score("4", weight=0.5), float)
    assert_type(await slow_score("4"), int)
    score(4)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    reward("4")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


# @algo


@algo
async def once(*, store: LightningStore, train_dataset: Dataset[Question]) -> NamedResources:
    return {"llm": MODEL}


@algo(needs={"rewards", "token_ids"})
def demanding(store: LightningStore) -> None: ...


async def a_function_becomes_an_algorithm(store: LightningStore) -> None:
    algorithms: list[BaseAlgorithm] = [once, demanding]
    assert algorithms
    functional: FunctionalAlgorithm[[LightningStore], None] = demanding
    assert functional
    assert_type(await once(store=store, train_dataset=[QUESTION]), NamedResources)
    await once(store=store)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    algo(needs={"reward"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


keep: Callable[[str], float] = score
