"""CommandAgent: what a program gets, what of it is kept, where its reward comes from, and how it ends."""

import asyncio
import dataclasses
import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel, SecretStr

import lightning_core
import lightning_core.litagent
from lightning_core import LLM, AgentRunnerV2, CommandAgent, InMemoryLightningStore, PromptTemplate, ProxyLLM
from lightning_core.emitter import emit_message, find_final_reward
from lightning_core.errors import (
    CommandError,
    ConfigurationError,
    InvalidOutcomeError,
    NoResourcesError,
    UnserializableValueError,
)
from lightning_core.litagent.program import Program
from lightning_core.store import OtlpEndpoint
from lightning_core.tracer import DummyTracer
from lightning_core.types import Attempt, NamedResources, RolloutConfig, RolloutV2, Span

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

PATIENCE = 30.0
RESOURCES: NamedResources = {"llm": LLM(endpoint="http://localhost/v1", model="small", api_key="key-of-llm")}
# Shows what it was given, and then a reward.
SEE = """
import json, os, sys
print(json.dumps({"stdin": sys.stdin.read(), "arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}))
print(0.5)
"""
# Shows the number of a process that it has started, and waits for it.
WAIT = "sleep 1000 & echo $!; wait"


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def sh(code: str) -> list[str]:
    return ["/bin/sh", "-c", code]


class Store(InMemoryLightningStore):
    """A store that says that it is served over OTLP."""

    @property
    def otlp_endpoint(self) -> OtlpEndpoint:
        return OtlpEndpoint("http://store:4747", {"authorization": "Bearer token-of-store"})


async def run(
    agent: CommandAgent,
    task: Any = "a task",
    *,
    resources: NamedResources = RESOURCES,
    store: InMemoryLightningStore | None = None,
    config: RolloutConfig | None = None,
) -> tuple[Attempt, list[Span]]:
    """Run one task, and return how the attempt ended and its spans."""
    store = store or InMemoryLightningStore()
    await store.add_resources(resources)
    rollout = await store.enqueue_rollout(task, mode="val", config=config)
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), max_rollouts=1)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None
    return attempt, await store.query_spans(rollout.rollout_id)


async def call(agent: CommandAgent, task: Any = "a task", resources: NamedResources = RESOURCES) -> Any:
    """Call the agent without a runner."""
    rollout = await InMemoryLightningStore().start_rollout(task)
    return await agent.rollout_async(task, resources, rollout)


async def see(task: Any = "a task", /, **settings: Any) -> dict[str, Any]:
    """Run a program that shows what it was given, and return that."""
    run_with = {name: settings.pop(name) for name in ("resources", "store") if name in settings}
    attempt, spans = await run(CommandAgent(python(SEE), **settings), task, **run_with)
    assert attempt.status == "succeeded", attempt.metadata
    span = command_span(spans)
    return {**json.loads(str(span.attributes["lightning.command.stdout"]).split("\n")[0]), "span": span}


def command_span(spans: list[Span]) -> Span:
    [span] = [span for span in spans if span.name == "lightning.command"]
    return span


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in os.environ if name.startswith(("OPENAI_", "OTEL_", "LIGHTNING_", "TRACEPARENT"))
    ]:
        monkeypatch.delenv(name)


# What the program gets


@pytest.mark.parametrize("task", ["text", 3, None, [1, {"a": "é\u2028\ud800"}], {"question": "1 + 1?"}])
async def test_task_is_json_on_standard_input(task: Any) -> None:
    given = (await see(task))["stdin"]
    assert json.loads(given) == task
    assert given.isascii()
    assert given.endswith("\n")


@dataclasses.dataclass
class Point:
    x: int


class Item(BaseModel):
    point: Point
    path: Path


async def test_models_and_dataclasses_are_json() -> None:
    task = {"item": Item(point=Point(1), path=Path("a")), "points": (Point(2),)}
    assert json.loads((await see(task))["stdin"]) == {
        "item": {"point": {"x": 1}, "path": "a"},
        "points": [{"x": 2}],
    }


@pytest.mark.parametrize("task", [object(), {1, 2}, float("nan"), {(1, 2): 3}, b"bytes"])
async def test_task_that_is_no_json_is_refused(task: Any) -> None:
    with pytest.raises(
        UnserializableValueError, match="takes its task as JSON, and this one cannot be written so"
    ):
        await call(CommandAgent("true"), task)


async def test_text_is_given_as_it_is() -> None:
    assert (await see("é\n", stdin="text"))["stdin"] == "é\n"
    with pytest.raises(UnserializableValueError, match="the task is a dict; use stdin='task'"):
        await call(CommandAgent("true", stdin="text"), {})


async def test_nothing_is_given() -> None:
    assert (await see(stdin="none"))["stdin"] == ""


async def test_rollout_is_given_with_its_resources_and_without_keys() -> None:
    resources: NamedResources = {
        "llm": ProxyLLM(
            endpoint="http://proxy/v1",
            model="m",
            api_key="secret-key",
            sampling_parameters={"temperature": 0},
        ),
        "prompt": PromptTemplate(template="Answer {question}"),
    }
    seen = await see({"question": "?"}, stdin="rollout", resources=resources)
    given = json.loads(seen["stdin"])
    rollout_id, attempt_id = given["rollout_id"], given["attempt_id"]
    assert (seen["span"].rollout_id, seen["span"].attempt_id) == (rollout_id, attempt_id)
    assert (given["task"], given["mode"]) == ({"question": "?"}, "val")
    assert given["resources"]["prompt"]["template"] == "Answer {question}"
    assert given["resources"]["llm"]["sampling_parameters"] == {"temperature": 0}
    assert (
        given["resources"]["llm"]["endpoint"]
        == f"http://proxy/rollout/{rollout_id}/attempt/{attempt_id}/v1"
        == seen["env"]["OPENAI_BASE_URL"]
    )
    assert "api_key" not in given["resources"]["llm"]


async def test_environment_names_model_rollout_and_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-user")
    seen = await see()
    env, span = seen["env"], seen["span"]
    assert env["KEPT"] == "yes"
    assert env["OPENAI_BASE_URL"] == env["OPENAI_API_BASE"] == "http://localhost/v1"
    assert env["OPENAI_MODEL"] == "small"
    assert (env["LIGHTNING_ROLLOUT_ID"], env["LIGHTNING_ATTEMPT_ID"]) == (span.rollout_id, span.attempt_id)
    assert env["TRACEPARENT"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert not [name for name in env if name.startswith("OTEL_")]
    assert "LIGHTNING_REWARD_FILE" not in env


async def test_key_of_the_model_is_in_the_environment_and_blotted_out_of_the_output() -> None:
    seen = await see()
    assert seen["env"]["OPENAI_API_KEY"] == "***"
    check = sh('test "$OPENAI_API_KEY" = key-of-llm && echo 1')
    assert await call(CommandAgent(check)) == 1.0


async def test_key_of_the_user_does_not_go_to_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-user")
    seen = await see(resources={"llm": LLM(endpoint="http://localhost/v1", model="m")})
    assert seen["env"]["OPENAI_API_KEY"] == "none"


async def test_without_a_model_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-user")
    env = (await see(resources={"prompt": PromptTemplate(template="")}))["env"]
    assert {name: value for name, value in env.items() if name.startswith("OPENAI_")} == {
        "OPENAI_API_KEY": "key-of-user"
    }


async def test_model_is_chosen_by_name(caplog: pytest.LogCaptureFixture) -> None:
    resources: NamedResources = {
        name: LLM(endpoint=f"http://{name}/v1", model=name) for name in ("first", "llm", "third")
    }
    assert (await see(resources=resources))["env"]["OPENAI_MODEL"] == "llm"
    assert (await see(resources=resources, llm="third"))["env"]["OPENAI_MODEL"] == "third"
    assert not caplog.records
    del resources["llm"]
    agent = CommandAgent(sh('test "$OPENAI_MODEL" = first && echo 1'))
    assert [await call(agent, resources=resources) for _ in range(2)] == [1.0, 1.0]
    assert len(caplog.records) == 1
    assert "several resources are models (first, third); taking the first, 'first'" in caplog.text
    with pytest.raises(
        NoResourcesError, match="needs the model 'other'; the models among the resources are: first"
    ):
        await call(CommandAgent("true", llm="other"), resources=resources)


async def test_variables_are_added_replaced_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    seen = await see(env={"ADDED": "2", "OPENAI_MODEL": "mine", "GONE": None, "NEVER": None})
    assert (seen["env"]["ADDED"], seen["env"]["OPENAI_MODEL"]) == ("2", "mine")
    assert not {"GONE", "NEVER"} & seen["env"].keys()


async def test_working_directory(tmp_path: Path) -> None:
    assert Path((await see(cwd=tmp_path))["cwd"]).name == tmp_path.name


async def test_string_is_split_as_a_shell_would_and_nothing_is_expanded() -> None:
    agent = CommandAgent(
        "printf '%s|' 'a b' $HOME *", reward=lambda task, output: float(output == "a b|$HOME|*|")
    )
    assert agent.command == ["printf", "%s|", "a b", "$HOME", "*"]
    assert await call(agent) == 1.0


async def test_paths_are_arguments(tmp_path: Path) -> None:
    script = tmp_path / "agent.sh"
    script.write_text("#!/bin/sh\necho $1\n")
    script.chmod(0o755)
    assert await call(CommandAgent([script, "0.25"])) == 0.25


async def test_served_store_is_reported_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    seen = await see(store=Store())
    env, span = seen["env"], seen["span"]
    assert env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://store:4747/v1/traces"
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://store:4747"
    assert env["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] == "authorization=Bearer%20***"
    assert env["OTEL_RESOURCE_ATTRIBUTES"] == (
        f"service.name=mine,lightning.rollout_id={span.rollout_id},lightning.attempt_id={span.attempt_id}"
    )


# What is kept of it


async def test_run_is_one_span() -> None:
    before = psutil.Process().pid
    attempt, spans = await run(CommandAgent(sh("echo out; echo err >&2; echo 1")))
    assert attempt.status == "succeeded"
    span = command_span(spans)
    assert span.attributes.pop("process.pid") != before
    assert span.attributes == {
        "process.command_args": ["/bin/sh", "-c", "echo out; echo err >&2; echo 1"],
        "process.exit.code": 0,
        "lightning.command.stdout": "out\n1\n",
        "lightning.command.stdout_bytes": 6,
        "lightning.command.stderr": "err\n",
        "lightning.command.stderr_bytes": 4,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time > span.start_time
    assert find_final_reward(spans) == 1.0
    assert [span.name for span in spans] == ["lightning.command", "lightning.reward"]


async def test_only_the_end_of_a_long_output_is_kept() -> None:
    agent = CommandAgent(sh("head -c 3000000 /dev/zero; echo; echo 0.5"), max_output_bytes=100)
    _, spans = await run(agent)
    attributes = command_span(spans).attributes
    assert attributes["lightning.command.stdout"] == "\0" * 95 + "\n0.5\n"
    assert attributes["lightning.command.stdout_bytes"] == 3_000_005
    assert find_final_reward(spans) == 0.5


async def test_output_that_is_not_utf8_is_kept() -> None:
    attempt, spans = await run(CommandAgent(sh(r"printf 'caf\351 \360\237\230\200\n1\n'")))
    assert command_span(spans).attributes["lightning.command.stdout"] == "caf\ufffd 😀\n1\n"
    assert attempt.status == "succeeded"


async def test_secrets_are_recorded_nowhere() -> None:
    env: Mapping[str, Any] = {
        "PASSWORD": SecretStr("hunter22!"),
        "PLAIN": "not-recorded",
        "SHORT": SecretStr("1"),
    }
    shout = (
        'echo "$PASSWORD $OPENAI_API_KEY $OTEL_EXPORTER_OTLP_TRACES_HEADERS $SHORT" | tee /dev/stderr; exit 1'
    )
    agent = CommandAgent(sh(shout), env=env)
    attempt, spans = await run(agent, store=Store())
    told = json.dumps([attempt.model_dump(), *(span.model_dump() for span in spans)], default=str) + repr(
        agent
    )
    assert "*** *** authorization=Bearer%20*** 1" in told
    for secret in ("hunter22!", "key-of-llm", "token-of-store", "not-recorded"):
        assert secret not in told


# Where the reward comes from


async def test_last_line_that_is_no_reward_is_an_error_that_shows_it() -> None:
    attempt, spans = await run(CommandAgent(sh("echo 0.5; echo all done")))
    assert (attempt.status, attempt.reason) == ("failed", "agent_error")
    assert "the last line of the standard output of agent" in attempt.metadata["error"]
    assert "it is 'all done'" in attempt.metadata["error"]
    assert command_span(spans).attributes["process.exit.code"] == 0
    with pytest.raises(InvalidOutcomeError):
        await call(CommandAgent("true"))


async def test_no_reward_may_be_said() -> None:
    attempt, spans = await run(CommandAgent(sh("""echo '{"reward": null}'""")))
    assert attempt.status == "succeeded"
    assert find_final_reward(spans) is None


async def test_reward_from_a_file_of_its_own() -> None:
    write = """echo '{"reward": 0.75}' > "$LIGHTNING_REWARD_FILE"; echo "$LIGHTNING_REWARD_FILE" """
    attempt, spans = await run(CommandAgent(sh(write), reward="file"))
    assert attempt.status == "succeeded"
    assert find_final_reward(spans) == 0.75
    file = Path(str(command_span(spans).attributes["lightning.command.stdout"]).strip())
    assert not file.parent.exists()


async def test_reward_file_that_is_missing_or_nonsense() -> None:
    with pytest.raises(
        InvalidOutcomeError, match="has not written the file that LIGHTNING_REWARD_FILE names"
    ):
        await call(CommandAgent("true", reward="file"))
    with pytest.raises(InvalidOutcomeError, match=r"the reward file of agent .* it is 'good'"):
        await call(CommandAgent(sh('echo good > "$LIGHTNING_REWARD_FILE"'), reward="file"))


async def test_function_judges_task_and_output_in_another_thread() -> None:
    threads: list[int] = []

    def score(task: Any, output: str) -> float:
        threads.append(threading.get_ident())
        emit_message("judged")
        return float(task["answer"] in output)

    attempt, spans = await run(CommandAgent("echo it is 4", reward=score), {"answer": "4"})
    assert attempt.status == "succeeded"
    assert threads[0] != threading.get_ident()
    assert find_final_reward(spans) == 1.0
    assert [span.name for span in spans] == ["lightning.command", "lightning.message", "lightning.reward"]


async def test_async_function_judges_on_the_loop() -> None:
    async def score(task: Any, output: str) -> float:
        await asyncio.sleep(0)
        return len(output)

    class Judge:
        async def __call__(self, task: Any, output: str) -> float:
            return await score(task, output)

    for judge in (score, Judge(), lambda task, output: score(task, output)):
        assert await call(CommandAgent("echo 123", reward=judge)) == 4


async def test_function_that_fails_fails_the_rollout() -> None:
    attempt, _ = await run(CommandAgent("true", reward=lambda task, output: 1 / 0))
    assert (attempt.status, attempt.reason) == ("failed", "agent_error")
    assert "ZeroDivisionError" in attempt.metadata["error"]


async def test_program_that_reports_itself_returns_nothing() -> None:
    assert await call(CommandAgent("echo nothing of interest", reward=None)) is None


# How it ends


async def test_exit_code_is_an_error_with_what_the_program_said() -> None:
    flood = "head -c 5000 /dev/zero | tr '\\0' x"
    code = f"(echo begin; {flood}; echo; echo cannot go on) >&2; echo 1; exit 3"
    attempt, spans = await run(CommandAgent(sh(code)))
    assert (attempt.status, attempt.reason) == ("failed", "agent_error")
    error = attempt.metadata["error"]
    assert "ended with exit code 3. The end of its standard error stream:\n" in error
    assert error.endswith("x\ncannot go on")
    assert "\nbegin" not in error
    span = command_span(spans)
    assert span.attributes["process.exit.code"] == 3
    assert span.status.status_code == "ERROR"
    assert find_final_reward(spans) is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("exit 2", "ended with exit code 2, and no error message$"),
        ("kill -KILL $$", "ended with signal SIGKILL, and no error message$"),
        ("kill -SEGV $$", "ended with signal SIGSEGV, and no error message$"),
    ],
)
async def test_way_of_ending_is_named(code: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        await call(CommandAgent(sh(code)))


async def test_why_it_cannot_be_started_is_said(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("no program")
    for agent, why in (
        (CommandAgent("no-such-program --flag"), "there is no program 'no-such-program' on its PATH"),
        (CommandAgent("true", cwd=tmp_path / "nowhere"), "its working directory '.*nowhere' does not exist"),
        (CommandAgent([plain]), "Permission denied"),
        (CommandAgent(["true", "nul\0"]), "null byte"),
    ):
        with pytest.raises(CommandError, match=f"cannot be started: .*{why}"):
            await call(agent)


async def test_own_time_limit_ends_it_with_all_that_it_has_started() -> None:
    attempt, spans = await run(CommandAgent(sh(WAIT), timeout_seconds=2.0))
    assert (attempt.status, attempt.reason) == ("timeout", "timeout")
    assert attempt.metadata["error"].endswith("ran longer than its timeout_seconds=2")
    attributes = command_span(spans).attributes
    assert attributes["process.exit.code"] == -signal.SIGTERM
    await until(lambda: not alive(int(str(attributes["lightning.command.stdout"]))))


async def test_time_limit_of_the_rollout_ends_it() -> None:
    attempt, spans = await run(CommandAgent(sh(WAIT)), config=RolloutConfig(timeout_seconds=2.0))
    assert (attempt.status, attempt.reason) == ("timeout", "timeout")
    attributes = command_span(spans).attributes
    assert attributes["process.exit.code"] == -signal.SIGTERM
    await until(lambda: not alive(int(str(attributes["lightning.command.stdout"]))))


async def test_cancelled_runner_ends_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Program] = []
    wait = Program.wait

    async def note(program: Program, seconds: float | None = None) -> bool:
        started.append(program)
        return await wait(program, seconds)

    monkeypatch.setattr(Program, "wait", note)
    store = InMemoryLightningStore()
    await store.add_resources(RESOURCES)
    rollouts = [await store.enqueue_rollout(str(tmp_path / str(number))) for number in range(3)]
    agent = CommandAgent(sh('read -r file; sleep 1000 & echo $! > "$file"; wait'), stdin="text")
    files = [Path(rollout.input) for rollout in rollouts]
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), concurrency=3)
    with runner.run_context(agent=agent, store=store):
        task = asyncio.create_task(runner.iter())
        await until(lambda: len(started) == 3)
        await until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for rollout, file in zip(rollouts, files, strict=True):
        await until(lambda file=file: not alive(int(file.read_text())))
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert attempt.status == "cancelled"
        span = command_span(await store.query_spans(rollout.rollout_id))
        assert span.attributes["process.exit.code"] == -signal.SIGTERM


async def test_rollout_that_is_cancelled_in_the_store_ends_its_program(tmp_path: Path) -> None:
    store = InMemoryLightningStore()
    await store.add_resources(RESOURCES)
    file = tmp_path / "pid"
    rollout = await store.enqueue_rollout(None)
    agent = CommandAgent(sh(f"sleep 1000 & echo $! > {file}; wait"))
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), max_rollouts=1, heartbeat_interval=0.1)
    with runner.run_context(agent=agent, store=store):
        task = asyncio.create_task(runner.iter())
        await until(lambda: file.exists() and file.read_text().endswith("\n"))
        await store.update_rollout(rollout.rollout_id, status="cancelled")
        async with asyncio.timeout(PATIENCE):
            await task
    await until(lambda: not alive(int(file.read_text())))


# Many at a time, and other processes


async def test_100_at_a_time_stay_apart_and_leave_nothing() -> None:
    store = InMemoryLightningStore()
    await store.add_resources(RESOURCES)
    # The loop's own threads, descriptors and modules are there from the first rollout on.
    echo = sh('read -r task; echo "$task" > "$LIGHTNING_REWARD_FILE"; echo "$LIGHTNING_ROLLOUT_ID"')
    agent = CommandAgent(echo, stdin="text", reward="file")
    await run(agent, "1\n")
    before = left_over()
    rollouts = [await store.enqueue_rollout(f"{number}\n") for number in range(100)]
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), max_rollouts=100, concurrency=100)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    for number, rollout in enumerate(rollouts):
        spans = await store.query_spans(rollout.rollout_id)
        assert command_span(spans).attributes["lightning.command.stdout"] == f"{rollout.rollout_id}\n"
        assert find_final_reward(spans) == number
    await until(lambda: all(now <= then for now, then in zip(left_over(), before, strict=True)))


def left_over() -> tuple[int, int, int]:
    descriptors = Path("/proc/self/fd")
    return (
        len(list(descriptors.iterdir())) if descriptors.exists() else 0,
        threading.active_count(),
        len(psutil.Process().children(recursive=True)),
    )


async def test_agent_can_be_pickled() -> None:
    agent = CommandAgent(
        sh('test "$A" = secret-value && echo 1'), env={"A": SecretStr("secret-value")}, cwd="/"
    )
    other = pickle.loads(pickle.dumps(agent))
    assert repr(other) == repr(agent)
    assert await call(other) == 1.0


async def test_rollout_without_attempt_will_do_where_no_proxy_must_know_it() -> None:
    rollout = RolloutV2(rollout_id="ro-1", input="task", start_time=0)
    agent = CommandAgent(
        sh('test "$LIGHTNING_ROLLOUT_ID" = ro-1 && test -z "$LIGHTNING_ATTEMPT_ID" && echo 1')
    )
    assert await agent.rollout_async("task", RESOURCES, rollout) == 1.0
    with pytest.raises(ConfigurationError, match="pass an AttemptedRollout"):
        await agent.rollout_async("task", {"llm": ProxyLLM(endpoint="http://p/v1", model="m")}, rollout)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ("", {}, "the command is empty"),
        ([], {}, "the command is empty"),
        ("echo 'a", {}, "cannot be split: No closing quotation"),
        ("true", {"reward": "stdout"}, "reward must be 'last-line', 'file', a function"),
        ("true", {"stdin": "json"}, "stdin must be one of task, rollout, text, none, not 'json'"),
        ("true", {"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        ("true", {"timeout_seconds": float("nan")}, "timeout_seconds must be above 0"),
        ("true", {"terminate_seconds": -1}, "terminate_seconds must be 0 or more"),
        ("true", {"terminate_seconds": float("inf")}, "terminate_seconds must be 0 or more"),
        ("true", {"max_output_bytes": 0}, "max_output_bytes must be at least 1"),
        ("true", {"env": {"A": 1}}, r"env\['A'\] must be a string, a SecretStr or None, not a int"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        CommandAgent(arguments, **settings)


def test_system_without_process_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(ConfigurationError, match="process groups, which this operating system lacks"):
        CommandAgent("true")


def test_long_command_is_shortened_in_messages() -> None:
    assert CommandAgent(["x" * 100])._label == f"agent {'x' * 59}…"
    assert repr(CommandAgent("a 'b c'")) == "<CommandAgent a 'b c'>"


def test_names_are_found_where_users_look() -> None:
    assert lightning_core.CommandAgent is CommandAgent is lightning_core.litagent.CommandAgent
    assert CommandAgent("true").is_async()
