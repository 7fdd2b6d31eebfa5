"""A trainer puts the proxy in front of the models of its run by itself."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner
from lightning_llm_proxy import LLMProxy

from lightning_core import LLM, BaseEngine, CommandAgent, PromptTemplate, ProxyLLM, Trainer, algo, rollout
from lightning_core.bridge import run_sync
from lightning_core.cli import main
from lightning_core.errors import ConfigurationError, EngineError
from lightning_core.types import LLMCall, is_llm_call

from .upstream import FakeUpstream, always
from .wire import vllm_chat

IDS = [13048, 0, 151645]
SECRET = "sk-upstream-secret-12345"
TOKEN = "the-token-of-the-proxy"
AGENT = Path(__file__).parents[3] / "examples" / "command-agents" / "agent.py"


class Engine(BaseEngine):
    """Serves the model ``m`` from a thread, as an engine with a key would."""

    def __init__(self, answer=None) -> None:
        self.upstream = FakeUpstream(always(vllm_chat()) if answer is None else answer)
        self.starts = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> LLM:
        if self._loop is None:
            self.starts += 1
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self.upstream.__aenter__(), self._loop).result()
        return LLM(
            endpoint=self.upstream.url, model="m", api_key=SECRET, sampling_parameters={"temperature": 0.5}
        )

    def stop(self) -> None:
        if self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self.upstream.__aexit__(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.stop()


@rollout
def ask(task, llm: LLM):
    with openai.OpenAI(base_url=llm.endpoint, api_key=llm.api_key, max_retries=0) as api:
        answer = api.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": task}], **llm.sampling_parameters
        )
    return float(answer.choices[0].message.content == "Hi!")


def calls_of(store) -> list[list[LLMCall]]:
    """The recorded calls of each rollout."""

    async def read():
        spans = [await store.query_spans(each.rollout_id, "latest") for each in await store.query_rollouts()]
        return [
            [LLMCall.from_span(span) for span in of_one if is_llm_call(span.attributes)] for of_one in spans
        ]

    return run_sync(read())


def recorded_ids(store) -> list[list[list[int] | None]]:
    return [[call.response.token_ids.ids for call in calls] for calls in calls_of(store)]


def resources_of(store):
    return run_sync(store.get_latest_resources()).resources


CLIENT_SERVER = {"type": "client-server", "start_method": "spawn"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "strategy",
    ["shared-memory", CLIENT_SERVER, {**CLIENT_SERVER, "main_process": "runner"}],
    ids=["threads", "processes", "algorithm elsewhere"],
)
def test_agents_find_the_engines_model_behind_the_proxy(engine, strategy):
    if strategy != "shared-memory":
        pytest.importorskip("lightning_store_http")
    proxy = LLMProxy()
    trainer = Trainer(
        tracer="dummy", engine=engine, llm_proxy=proxy, algorithm="baseline", strategy=strategy, n_runners=2
    )
    tasks = [{"question": f"Number {number}?", "answer": "Hi!"} for number in range(4)]
    result = trainer.fit(CommandAgent([sys.executable, AGENT], timeout_seconds=60), tasks)
    assert result.status == "succeeded"
    assert result.metrics[0]["mean_reward"] == 1.0
    assert recorded_ids(trainer.store) == [[IDS]] * 4
    # Only the proxy has the key, and what it was given for the run is taken back.
    assert {request.headers["Authorization"] for request in engine.upstream.requests} == {f"Bearer {SECRET}"}
    llm = resources_of(trainer.store)["main_llm"]
    assert isinstance(llm, ProxyLLM)
    assert (llm.get_base_url(), llm.model, llm.api_key) == (proxy.url, "m", "none")
    assert llm.sampling_parameters == {"temperature": 0.5}
    assert not proxy.running
    assert proxy.model_list == []
    assert result.settings["llm_proxy"] == "LLMProxy"


def test_one_trainer_runs_twice(engine):
    trainer = Trainer(tracer="dummy", engine=engine, llm_proxy="gateway", algorithm="baseline")
    for number in (1, 2):
        assert trainer.fit(ask, ["a"]).metrics[0]["mean_reward"] == 1.0
        assert recorded_ids(trainer.store) == [[IDS]] * number
        assert engine.starts == number


def test_hot_swap_while_a_run_lasts(engine):
    other = Engine(always({**vllm_chat(), "model": "newer"}))

    @algo
    async def swap(*, store, train_dataset, llm_proxy):
        for number, task in enumerate(train_dataset):
            if number == 1:
                llm = other.start()
                llm_proxy.update_model_list([{"name": "m", "base_url": llm.endpoint, "api_key": SECRET}])
            queued = await store.enqueue_rollout(task)
            await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])

    trainer = Trainer(tracer="dummy", engine=engine, llm_proxy="gateway", algorithm=swap)
    try:
        assert trainer.fit(ask, ["a", "b"]).status == "succeeded"
    finally:
        other.stop()
    [[before], [after]] = calls_of(trainer.store)
    assert (before.model, after.model) == ("Qwen/Qwen2.5-0.5B-Instruct", "newer")
    assert before.response.token_ids.ids == after.response.token_ids.ids == IDS
    # The swap was this run's.
    assert trainer.llm_proxy.model_list == []


def test_an_algorithm_may_start_and_stop_it_as_well(engine):
    @algo
    async def own(*, store, train_dataset, llm_proxy):
        assert llm_proxy.running
        with llm_proxy:
            await store.add_resources({"llm": llm_proxy.as_resource()})
            queued = await store.enqueue_rollout(train_dataset[0])
            await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])
        assert not llm_proxy.running

    trainer = Trainer(tracer="dummy", engine=engine, llm_proxy="gateway", algorithm=own)
    assert trainer.fit(ask, ["a"]).status == "succeeded"
    assert recorded_ids(trainer.store) == [[IDS]]


def test_a_proxy_that_serves_already_goes_on(engine):
    with LLMProxy([{"name": "own", "base_url": "http://127.0.0.1:9"}]) as proxy:
        trainer = Trainer(tracer="dummy", engine=engine, llm_proxy=proxy, algorithm="baseline")
        assert trainer.fit(ask, ["a"]).metrics[0]["mean_reward"] == 1.0
        assert proxy.running
        assert [each.name for each in proxy.model_list] == ["own"]


def test_an_engine_that_fails_leaves_no_proxy_behind():
    class Broken(Engine):
        def start(self) -> LLM:
            raise EngineError("no such model")

    trainer = Trainer(tracer="dummy", engine=Broken(), llm_proxy="gateway", algorithm="baseline")
    with pytest.raises(EngineError, match="no such model"):
        trainer.fit(ask, ["a"])
    assert not trainer.llm_proxy.running


@pytest.mark.parametrize("resume", ["plain", "proxied"])
def test_a_resumed_run_finds_the_proxy_of_today(engine, tmp_path, resume):
    """Also one that was begun without a proxy, and what the algorithm has put there under a name of its own."""
    pytest.importorskip("lightning_store_sqlite")

    @algo
    async def learn(*, store, train_dataset, llm_proxy, algorithm, initial_resources):
        if algorithm.resumed_state is None:
            best = {"main_llm": initial_resources["main_llm"], "prompt": PromptTemplate(template="{q}")}
            if llm_proxy is not None:
                best["mine"] = llm_proxy.as_resource(sampling_parameters={"n": 1})
            await store.add_resources(best)
            algorithm.best_resources = best
            await algorithm.checkpoint({"step": 1})
            raise RuntimeError("a crash")
        queued = await store.enqueue_rollout(train_dataset[0])
        await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])

    def trainer(llm_proxy) -> Trainer:
        return Trainer(
            tracer="dummy",
            engine=engine,
            llm_proxy=llm_proxy,
            algorithm=learn,
            store=f"sqlite:///{tmp_path}/runs.db",
        )

    first = trainer(None if resume == "plain" else "gateway")
    with pytest.raises(RuntimeError, match="a crash"):
        first.fit(ask, ["a"])
    second = trainer("gateway")
    result = second.fit(ask, ["a"], resume=True)
    assert result.resumed == 1
    assert recorded_ids(second.store) == [[IDS]]
    for found in (result.best_resources, resources_of(second.store)):
        models = {name: each for name, each in found.items() if name != "prompt"}
        assert models.keys() == ({"main_llm"} if resume == "plain" else {"main_llm", "mine"})
        assert {type(each) for each in models.values()} == {ProxyLLM}
        assert {each.get_base_url() for each in models.values()} == {second.llm_proxy.url}
        assert {each.api_key for each in models.values()} == {"none"}
    run_sync(first.store.close())
    run_sync(second.store.close())


def test_models_of_initial_resources_are_behind_the_proxy_too(engine):
    llm, key = engine.start(), "sk-another-secret-12345"
    resources = {
        "main_llm": llm,
        "same": llm.model_copy(update={"sampling_parameters": {"n": 2}}),
        "judge": llm.model_copy(update={"api_key": key}),
        "remote": ProxyLLM(endpoint="http://elsewhere/v1", model="r"),
        "prompt": PromptTemplate(template="{q}"),
    }
    found = {}

    @algo
    async def use(*, store, train_dataset, initial_resources):
        found.update(initial_resources)
        for name in ("main_llm", "judge"):
            update = await store.add_resources({"llm": initial_resources[name]})
            queued = await store.enqueue_rollout(train_dataset[0], resources_id=update.resources_id)
            await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])

    proxy = {"type": "gateway", "token": TOKEN}
    Trainer(tracer="dummy", llm_proxy=proxy, algorithm=use, initial_resources=resources).fit(ask, ["a"])
    assert {name: type(each) for name, each in found.items()} == {
        "main_llm": ProxyLLM,
        "same": ProxyLLM,
        "judge": ProxyLLM,
        "remote": ProxyLLM,
        "prompt": PromptTemplate,
    }
    assert found["remote"] == resources["remote"]
    # Another key is another model, even where its name and its address are the same.
    assert {name: found[name].model for name in ("main_llm", "same", "judge")} == {
        "main_llm": "m",
        "same": "m",
        "judge": "m@judge",
    }
    assert found["same"].sampling_parameters == {"n": 2}
    assert {found[name].api_key for name in ("main_llm", "same", "judge")} == {TOKEN}
    assert [request.headers["Authorization"] for request in engine.upstream.requests] == [
        f"Bearer {SECRET}",
        f"Bearer {key}",
    ]
    assert [request.json["model"] for request in engine.upstream.requests] == ["m", "m"]


def test_an_upstream_of_the_same_address_keeps_its_settings(engine):
    llm = engine.start()
    settings = {"base_url": llm.endpoint, "api_key": SECRET, "max_concurrency": 1}
    for name in ("m", "*"):
        proxy = LLMProxy([{"name": name, **settings}])
        with proxy.in_front_of({"main_llm": llm}) as found:
            assert proxy.model_list[0].max_concurrency == 1
            assert len(proxy.model_list) == 1
            assert found["main_llm"].model == "m"


def test_a_model_of_the_same_name_at_another_address_stays_apart(engine):
    proxy = LLMProxy([{"name": "m", "base_url": "http://127.0.0.1:9/v1"}])
    with proxy.in_front_of({"main_llm": engine.start()}) as found:
        assert found["main_llm"].model == "m@main_llm"
        assert [(each.name, each.model) for each in proxy.model_list] == [("m", None), ("m@main_llm", "m")]


def test_models_of_the_proxys_own_are_the_main_model(engine):
    llm = engine.start()
    model = {"name": "mine", "model": "m", "base_url": llm.endpoint, "api_key": SECRET}
    trainer = Trainer(
        tracer="dummy", llm_proxy={"type": "gateway", "model_list": [model]}, algorithm="baseline"
    )
    assert trainer.fit(ask, ["a"]).metrics[0]["mean_reward"] == 1.0
    assert recorded_ids(trainer.store) == [[IDS]]
    assert resources_of(trainer.store)["main_llm"].model == "mine"


def test_a_proxy_without_any_model_is_left_alone():
    proxy = LLMProxy([{"base_url": "http://127.0.0.1:9"}])
    with proxy.in_front_of({}) as found:
        assert found == {}
        assert not proxy.running


def test_an_address_that_is_none_is_named():
    wrong = LLM(endpoint="localhost:8000", model="m", api_key=SECRET)
    with (
        pytest.raises(ConfigurationError, match=r"resource 'judge': .*give the whole address") as caught,
        LLMProxy().in_front_of({"judge": wrong}),
    ):
        pass
    assert caught.value.__cause__ is None
    assert SECRET not in str(caught.value)


def test_a_check_goes_the_same_way(engine):
    trainer = Trainer(tracer="dummy", engine=engine, llm_proxy="gateway", algorithm="baseline")
    report = trainer.check(ask, "a")
    assert report.status == "succeeded"
    assert [
        call.response.token_ids.ids for call in map(LLMCall.from_span, report.spans) if call.response
    ] == [IDS]
    assert not trainer.llm_proxy.running


AGENT_MODULE = """
import openai
from lightning_core import rollout

@rollout
def ask(task, llm):
    with openai.OpenAI(base_url=llm.endpoint, api_key=llm.api_key or "none", max_retries=0) as api:
        api.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}])
    return 1.0
"""


@pytest.mark.parametrize("more", [[], ["--llm-proxy", "gateway"]], ids=["without", "with"])
def test_doctor_run_tells_what_the_gateway_brings(engine, tmp_path, monkeypatch, more):
    (tmp_path / "asking_agent.py").write_text(AGENT_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "asking_agent", raising=False)
    command = ["doctor", "run", "asking_agent:ask", "--data", '"a"', "--tracer", "dummy", "--json"]
    result = CliRunner().invoke(main, [*command, "--endpoint", engine.start().endpoint, *more])
    points = {each["name"]: each["level"] for each in json.loads(result.stdout)["points"]}
    # Without it, nothing records the calls of this agent.
    assert points.get("token ids") == ("ok" if more else None)


COPY = """
import json, pickle, sys
from lightning_core.errors import EngineError
proxy = pickle.load(sys.stdin.buffer)
refused = []
for change in (lambda: proxy.update_model_list([]), lambda: proxy.flush().send(None)):
    try:
        change()
    except EngineError as error:
        refused.append(str(error))
with proxy:
    found = [proxy.running, proxy.start().endpoint, refused]
print(json.dumps([*found, proxy.running]))
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_in_another_process_does_not_serve_again(engine):
    proxy = LLMProxy()
    with proxy.in_front_of({"main_llm": engine.start()}):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COPY],
            input=pickle.dumps(proxy),
            capture_output=True,
            timeout=60,
            check=True,
        )
        running, endpoint, refused, still = json.loads(done.stdout)
        assert (running, endpoint, still) == (True, proxy.url, True)
        assert len(refused) == 2
        assert all("main_process" in text for text in refused)


def test_keys_are_seen_nowhere_in_a_whole_run(engine, caplog, capfd, tmp_path):
    """In no log, span, run or resource; the token only where agents find it, and not where that is printed."""
    pytest.importorskip("lightning_store_sqlite")
    caplog.set_level(logging.DEBUG)
    logging.getLogger().setLevel(logging.DEBUG)
    file = tmp_path / "runs.db"
    proxy = LLMProxy(token=TOKEN)

    @rollout
    def twice(task, llm: LLM):
        with openai.OpenAI(base_url=llm.endpoint, api_key=llm.api_key, max_retries=0) as api:
            messages = [{"role": "user", "content": task}]
            api.chat.completions.create(model=llm.model, messages=messages)
            with pytest.raises(openai.NotFoundError) as caught:
                api.chat.completions.create(model="other", messages=messages)
            assert SECRET not in str(caught.value)
        return 1.0

    trainer = Trainer(
        tracer="dummy", engine=engine, llm_proxy=proxy, algorithm="baseline", store=f"sqlite:///{file}"
    )
    result = trainer.fit(twice, ["a", "b"])
    assert result.rollouts["succeeded"] == 2
    store = trainer.store
    rollouts = run_sync(store.query_rollouts())
    spans = [run_sync(store.query_spans(each.rollout_id)) for each in rollouts]
    assert sum(map(len, spans)) > 4
    run_sync(store.close())
    out = capfd.readouterr()
    shown = f"{caplog.text} {out} {spans!r} {result!r} {resources_text(result)} {proxy!r} {vars(proxy)!r} {trainer!r}"
    assert "Hi!" in shown
    assert SECRET not in shown
    assert TOKEN not in shown
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"151645" in written
    assert SECRET.encode() not in written


def resources_text(result) -> str:
    return result.without_keys().model_dump_json()
