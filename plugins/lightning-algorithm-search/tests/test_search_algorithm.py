"""The search, with a fake model: through the store alone, and in a trainer."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from lightning_algorithm_search import SearchAlgorithm

from lightning_core import InMemoryLightningStore, Trainer, resolve, rollout
from lightning_core.errors import ConfigurationError, ExecutionError, PluginSettingsError
from lightning_core.testing import PluginPackageConformance
from lightning_core.types import LLM, AttemptedRollout, PromptTemplate, Span, SpanNames

MODEL = LLM(endpoint="http://127.0.0.1:1/v1", model="fake")
SKILL = {"bad": 0.05, "fair": 0.4, "good": 0.8, "best": 0.95}

Answer = Callable[[AttemptedRollout, str, dict[str, Any]], float | None]


class TestPackage(PluginPackageConformance):
    distribution = "lightning-algorithm-search"
    settings: ClassVar[dict[str, Any]] = {"algorithm.search": {"templates": ["a", "b"]}}


def skilful(rollout: AttemptedRollout, template: str, sampling: dict[str, Any]) -> float:
    """Right as often as the template is good, always the same for a task."""
    skill = SKILL[template] - 0.3 * sampling.get("temperature", 0)
    return float(random.Random(f"{template}{rollout.input}").random() < skill)


@asynccontextmanager
async def answering(store: InMemoryLightningStore, answer: Answer):
    """Run rollouts as they come; an answer that raises fails its rollout."""

    async def work() -> None:
        while True:
            for each in await store.dequeue_rollouts(10, wait=60):
                ids = each.rollout_id, each.attempt.attempt_id
                update = await store.get_resources_by_id(each.resources_id)
                llm, template = update.resources["llm"], update.resources["prompt_template"]
                try:
                    reward = answer(each, template.template, llm.sampling_parameters)
                except RuntimeError as error:
                    await store.update_attempt(*ids, status="failed", metadata={"error": str(error)})
                    continue
                if reward is not None:
                    await store.add_span(
                        Span.from_attributes(
                            rollout_id=ids[0],
                            attempt_id=ids[1],
                            name=SpanNames.REWARD.value,
                            attributes={"reward": reward},
                        )
                    )
                await store.update_attempt(*ids, status="succeeded")

    worker = asyncio.create_task(work())
    try:
        yield
    finally:
        worker.cancel()


async def search(
    answer: Answer = skilful, train: Any = range(200), val: Any = None, **settings: Any
) -> tuple[SearchAlgorithm, InMemoryLightningStore]:
    settings = {"templates": {name: name for name in SKILL}, "report": False, **settings}
    algorithm, store = SearchAlgorithm(**settings), InMemoryLightningStore()
    algorithm.set_store(store)
    algorithm.set_initial_resources({"llm": MODEL})
    async with answering(store, answer):
        await asyncio.wait_for(algorithm.run(train, val), 30)
    return algorithm, store


def final(algorithm: SearchAlgorithm) -> dict[str, Any]:
    [entry] = [entry for entry in algorithm.metrics_history if entry["event"] == "result"]
    return entry


def rungs(algorithm: SearchAlgorithm) -> list[dict[str, Any]]:
    return [entry for entry in algorithm.metrics_history if entry["event"] == "rung"]


async def test_the_best_candidate_wins_and_beats_the_first_on_held_out_tasks():
    algorithm, store = await search(val=range(1000, 1060), temperatures=[0.0, 1.0])
    result = final(algorithm)
    assert (result["winner"], result["first"]) == ("best, temperature=0.0", "bad, temperature=0.0")
    assert result["val"]["best, temperature=0.0"]["mean"] > 0.8
    low, high = result["difference"]["interval"]
    assert 0.6 < low < result["difference"]["mean"] < high < 1.0
    assert result["difference"]["count"] == 60
    best = algorithm.best_resources
    assert best["prompt_template"] == PromptTemplate(template="best")
    assert best["llm"].sampling_parameters == {"temperature": 0.0}
    latest = await store.get_latest_resources()
    assert latest.resources == best


async def test_every_candidate_of_a_rung_runs_the_same_new_tasks():
    _, store = await search(val=range(1000, 1010), rollouts_per_candidate=8, seed=3)
    tasks: dict[Any, dict[str, list[int]]] = {}
    for each in await store.query_rollouts(mode="train"):
        note = each.metadata["search"]
        assert each.input == note["task"]
        tasks.setdefault(note["rung"], {}).setdefault(note["candidate"], []).append(each.input)
    assert [len(set(map(tuple, each.values()))) for each in tasks.values()] == [1] * len(tasks)
    assert set(tasks[1]) == set(SKILL)
    used = Counter(task for each in tasks.values() for task in next(iter(each.values())))
    assert max(used.values()) == 1
    assert len(next(iter(tasks[1].values()))) == 8
    for rung in tasks.values():
        assert sum(map(len, rung.values())) <= 8 * len(SKILL)
    assert {each.mode for each in await store.query_rollouts()} == {"train", "val"}


async def test_the_same_seed_makes_the_same_search():
    histories = []
    for _ in range(2):
        algorithm, _ = await search(seed=5)
        histories.append([{**entry, "time": 0} for entry in algorithm.metrics_history])
    assert histories[0] == histories[1]


async def test_a_budget_is_kept():
    algorithm, store = await search(budget=60)
    rollouts = await store.query_rollouts()
    assert 30 < len(rollouts) <= 60
    assert sum(each["rollouts"] for each in final(algorithm)["train"].values()) == len(rollouts)
    with pytest.raises(ConfigurationError, match=r"budget of 15 rollouts is too small .* at least 16"):
        await search(budget=15)


async def test_when_the_tasks_are_used_up_the_highest_mean_wins_with_a_warning(
    caplog: pytest.LogCaptureFixture,
):
    algorithm, store = await search(
        lambda rollout, template, _: {"good": 0.9, "best": 0.8}.get(template, 0.0) + rollout.input % 2,
        train=range(6),
    )
    assert final(algorithm)["winner"] == "good"
    assert len(await store.query_rollouts()) == 24
    assert "all 6 training tasks are used with 2 candidates left" in caplog.text


async def test_without_a_validation_set_the_report_says_what_its_means_are_worth():
    algorithm, _ = await search()
    result = final(algorithm)
    assert (result["val"], result["difference"]) == ({}, None)
    assert "No validation set was given" in result["report"]


async def test_a_first_candidate_that_wins_is_validated_alone():
    algorithm, store = await search(templates={"best": "best", "bad": "bad"}, val=range(500, 510))
    result = final(algorithm)
    assert result["winner"] == result["first"] == "best"
    assert list(result["val"]) == ["best"]
    assert result["difference"] is None
    assert "the first candidate itself has won" in result["report"]
    assert len(await store.query_rollouts(mode="val")) == 10


async def test_failures_count_as_zero_and_are_reported(caplog: pytest.LogCaptureFixture):
    def answer(rollout: AttemptedRollout, template: str, sampling: dict[str, Any]) -> float | None:
        if template == "good" and rollout.input % 2:
            raise RuntimeError("the template lacks {question}")
        return None if template == "fair" else skilful(rollout, template, sampling)

    algorithm, _ = await search(answer)
    first = rungs(algorithm)[0]["candidates"]
    failed = first["good"]["failed"]
    assert failed > 0
    assert first["good"]["mean"] <= 1 - failed / 16
    assert first["good"]["count"] == 16
    assert (first["fair"]["without_reward"], first["fair"]["mean"]) == (16, 0.0)
    assert f"{failed} of 16 rollouts of 'good' gave no reward and count as 0" in caplog.text
    assert "the template lacks {question}" in caplog.text
    good = next(line for line in final(algorithm)["report"].splitlines() if line.startswith("good"))
    assert good.split()[-2:] == [str(final(algorithm)["train"]["good"]["failed"]), "0"]


async def test_failures_can_be_left_out():
    def answer(rollout: AttemptedRollout, template: str, sampling: dict[str, Any]) -> float | None:
        if template == "fair" or (template == "best" and rollout.input % 2):
            raise RuntimeError("flaky endpoint")
        return skilful(rollout, template, sampling)

    algorithm, _ = await search(answer, without_reward="exclude", val=range(600, 640))
    first = rungs(algorithm)[0]["candidates"]
    assert first["best"]["count"] == 16 - first["best"]["failed"] > 0
    assert (first["fair"]["mean"], first["fair"]["count"], first["fair"]["interval"]) == (None, 0, None)
    assert "fair" not in rungs(algorithm)[0]["kept"]
    assert final(algorithm)["winner"] == "best"
    assert final(algorithm)["difference"]["count"] == 20


@pytest.mark.parametrize("without_reward", ["zero", "exclude"])
async def test_when_nothing_gives_a_reward_the_most_frequent_reason_is_raised(without_reward: str):
    def answer(rollout: AttemptedRollout, template: str, sampling: dict[str, Any]) -> float | None:
        if template == "bad":
            return None
        raise RuntimeError("connection refused by 127.0.0.1:1")

    with pytest.raises(
        ExecutionError, match=r"none of 64 train rollouts gave a reward.*\(48 times\).*refused"
    ):
        await search(answer, without_reward=without_reward)
    with pytest.raises(ExecutionError, match="it gave no reward: return one from the agent"):
        await search(lambda *_: None)


async def test_retries_and_time_limits_are_passed_on():
    _, store = await search(max_attempts=3, timeout_seconds=7.0)
    config = (await store.query_rollouts(limit=1))[0].config
    assert (config.max_attempts, config.timeout_seconds) == (3, 7.0)


@pytest.mark.parametrize("train", [None, []])
async def test_a_training_set_is_needed(train: Any):
    with pytest.raises(ConfigurationError, match="a training set is needed"):
        await search(train=train)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigurationError, match="not both"):
        SearchAlgorithm(["a", "b"], budget=10, rollouts_per_candidate=4)
    with pytest.raises(ConfigurationError, match="eta must be at least 2"):
        SearchAlgorithm(["a", "b"], eta=1)


async def test_the_table_goes_to_the_standard_output(capsys: pytest.CaptureFixture[str]):
    algorithm, _ = await search(report=True, val=range(900, 920))
    shown = capsys.readouterr().out
    assert final(algorithm)["report"] in shown
    lines = shown.strip().splitlines()
    assert lines[0].split()[:4] == ["candidate", "rungs", "rollouts", "mean"]
    assert lines[2].startswith("best")
    assert "winner: best" in lines
    assert lines[-1].startswith("difference: +")


def test_it_is_selected_by_name_with_checked_settings():
    spec = {"type": "search", "templates": ["a", {"template": "b", "engine": "jinja"}], "temperatures": [0]}
    assert isinstance(resolve("algorithm", spec), SearchAlgorithm)
    for wrong in (
        {"eta": 1},
        {"confidence": 1},
        {"without_reward": "guess"},
        {"templates": [{"engine": "jinja"}]},
    ):
        with pytest.raises(PluginSettingsError, match=next(iter(wrong))):
            resolve("algorithm", {"type": "search", **wrong})


def test_a_trainer_runs_it():
    @rollout
    async def agent(task: int, llm: LLM, prompt_template: PromptTemplate) -> float:
        await asyncio.sleep(0)
        text = prompt_template.format(q=task)
        skill = 0.9 if text.startswith("think") else 0.2
        return float(random.Random(text).random() < skill - 0.1 * llm.sampling_parameters["temperature"])

    trainer = Trainer(
        tracer="dummy",
        algorithm={
            "type": "search",
            "templates": {"plain": "{q}", "steps": "think: {q}"},
            "temperatures": [0.0, 1.0],
            "report": False,
        },
        initial_resources={"llm": MODEL},
        n_runners=2,
    )
    result = trainer.fit(agent, list(range(100)), val_data=list(range(100, 140)))
    last = result.metrics[-1]
    assert last["winner"].startswith("steps")
    assert last["difference"]["interval"][0] > 0.3
    assert result.best_resources["prompt_template"] == PromptTemplate(template="think: {q}")
    assert set(result.rollouts) == {"succeeded"}
    assert result.rollouts["succeeded"] == sum(
        each["rollouts"] for part in ("train", "val") for each in last[part].values()
    )


def test_a_trainer_passes_the_reason_on_when_every_rollout_fails():
    @rollout
    def agent(task: int, llm: LLM, prompt_template: PromptTemplate) -> float:
        prompt_template.format(question=task)
        return 1.0

    trainer = Trainer(
        tracer="dummy",
        algorithm={"type": "search", "templates": ["{q}", "{r}"]},
        initial_resources={"llm": MODEL},
    )
    with pytest.raises(ExecutionError, match=r"no value for \{[qr]\}; given: question"):
        trainer.fit(agent, list(range(10)))
