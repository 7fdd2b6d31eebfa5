"""``CommandAgent``: any program, in any language, as the agent."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import logging
import math
import os
import shlex
import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from opentelemetry.trace import Span
from pydantic import BaseModel, SecretStr

from lightning_core.emitter import operation
from lightning_core.errors import (
    CommandError,
    ConfigurationError,
    InvalidOutcomeError,
    NoResourcesError,
    RolloutTimeoutError,
    UnserializableValueError,
)
from lightning_core.types import LLM, AttemptedRollout, NamedResources, RolloutV2, SpanNames

from .agent import LitAgent
from .printed import last_line, read_reward
from .program import Program, Tail, running
from .selection import attributed, choose

if TYPE_CHECKING:
    from lightning_core.store.otlp import OtlpEndpoint

__all__ = ["CommandAgent", "Score", "StandardInput"]

_logger = logging.getLogger(__name__)

Score: TypeAlias = Callable[[Any, str], float | Awaitable[float | None] | None]
"""Judges what a program has done: given the task and the end of its standard output, returns the reward."""

StandardInput = Literal["task", "rollout", "text", "none"]
"""What a program reads from its standard input; see :class:`CommandAgent`."""

_SHOWN_COMMAND = 60
_SHOWN_STDERR = 2000
_LONGEST_REWARD = 65_536
_SHORTEST_SECRET = 8
"""Blotting out anything shorter would spoil more than it hides."""


class CommandAgent(LitAgent[Any]):
    """Runs a program as the agent: it needs no change, and may be written in any language.

    The program gets the task as JSON on its standard input, and says the reward on the last line of its standard
    output. Its environment is the runner's, and in addition:

    * ``OPENAI_BASE_URL``, ``OPENAI_API_BASE``, ``OPENAI_API_KEY`` and ``OPENAI_MODEL``, if the resources hold an
      :class:`~lightning_core.types.LLM`; behind a proxy, the URL says which attempt calls;
    * ``LIGHTNING_ROLLOUT_ID`` and ``LIGHTNING_ATTEMPT_ID``;
    * ``OTEL_EXPORTER_OTLP_…`` and ``OTEL_RESOURCE_ATTRIBUTES``, if the store is behind a server, so that what it traces
      with any OpenTelemetry SDK becomes part of the rollout; and ``TRACEPARENT``;
    * ``LIGHTNING_REWARD_FILE``, with ``reward="file"``.

    What it writes is kept in a span ``lightning.command``, along with its exit code and the time it took. It runs in a
    process group of its own, which is ended with it: at its end, when it takes too long, when the rollout is cancelled,
    and when the runner ends or is killed.

    Example::

        trainer = Trainer(
            algorithm="baseline", initial_resources={"llm": LLM(endpoint=url, model="my-model")}
        )
        trainer.fit(CommandAgent("node agent.mjs", timeout_seconds=60), tasks)

    Args:
        command: The program and its arguments, as a list or as one string, which is split as a shell would. No shell
            runs it. It is recorded, so pass secrets in ``env``.
        reward: Where the reward comes from. ``"last-line"``: the last line of the standard output that is not blank, a
            number or a JSON object with ``"reward"``. ``"file"``: the same, in the file that LIGHTNING_REWARD_FILE
            names. A function, sync or async: called with the task and the standard output. ``None``: the program
            reports it itself, over OTLP.
        stdin: What it reads from its standard input. ``"task"``: the task as JSON. ``"rollout"``: a JSON object of
            ``task``, ``resources`` (by name, without keys), ``mode``, ``rollout_id`` and ``attempt_id``. ``"text"``:
            the task, a string, as it is. ``"none"``: nothing.
        cwd: Its working directory; by default the runner's.
        env: Variables to add to its environment, or with ``None`` to leave out. None of them is recorded; those given
            as ``SecretStr`` are blotted out of what the program writes too.
        llm: Name of the resource that is its model; by default ``llm``, or else the first that is an ``LLM``.
        timeout_seconds: How long it may run, in seconds; the rollout's own limit holds as well.
        terminate_seconds: How long it may take to end after SIGTERM, in seconds; then it gets SIGKILL.
        max_output_bytes: How much of its standard output, and of its standard error stream, is kept, in bytes: the end.

    Raises:
        ConfigurationError: If an argument is not as described, or the system has no process groups.
    """

    def __init__(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        reward: Literal["last-line", "file"] | Score | None = "last-line",
        stdin: StandardInput = "task",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | SecretStr | None] | None = None,
        llm: str | None = None,
        timeout_seconds: float | None = None,
        terminate_seconds: float = 2.0,
        max_output_bytes: int = 65_536,
    ) -> None:
        super().__init__()
        if not hasattr(os, "killpg"):
            raise ConfigurationError("CommandAgent needs process groups, which this operating system lacks")
        self.command = _split(command)
        if reward not in ("last-line", "file", None) and not callable(reward):
            raise ConfigurationError(
                f"reward must be 'last-line', 'file', a function of the task and the output, or None, not {reward!r}"
            )
        if stdin not in get_args(StandardInput):
            raise ConfigurationError(
                f"stdin must be one of {', '.join(get_args(StandardInput))}, not {stdin!r}"
            )
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise ConfigurationError(f"timeout_seconds must be above 0, not {timeout_seconds!r}")
        if not 0 <= terminate_seconds < math.inf:
            raise ConfigurationError(f"terminate_seconds must be 0 or more, not {terminate_seconds!r}")
        if max_output_bytes < 1:
            raise ConfigurationError(f"max_output_bytes must be at least 1, not {max_output_bytes}")
        self._reward: Literal["last-line", "file"] | Score | None = reward
        self._stdin: StandardInput = stdin
        self._cwd = None if cwd is None else os.fspath(cwd)
        self._env = _check_variables(env or {})
        self._llm = llm
        self._timeout = timeout_seconds
        self._terminate_seconds = terminate_seconds
        self._limit = max_output_bytes
        self._warned = False

    def __repr__(self) -> str:
        return f"<CommandAgent {shlex.join(self.command)}>"

    @property
    def _label(self) -> str:
        shown = shlex.join(self.command)
        return f"agent {shown if len(shown) <= _SHOWN_COMMAND else shown[: _SHOWN_COMMAND - 1] + '…'}"

    async def rollout_async(self, task: Any, resources: NamedResources, rollout: RolloutV2) -> float | None:
        """Run the program for one task, and return the reward.

        Raises:
            CommandError: If it cannot be started, or ends with an exit code other than 0.
            RolloutTimeoutError: If it runs longer than ``timeout_seconds``.
            InvalidOutcomeError: If there is no reward where it should be.
            NoResourcesError: If the resources do not hold the model that was asked for.
            UnserializableValueError: If the task cannot be written as JSON.
        """
        with ExitStack() as stack:
            file: Path | None = None
            if self._reward == "file":
                folder = tempfile.TemporaryDirectory(prefix="lightning-", ignore_cleanup_errors=True)
                file = Path(stack.enter_context(folder), "reward")
            given = self._input(task, resources, rollout)
            attributes = {"process.command_args": self.command}
            with operation(SpanNames.COMMAND.value, attributes) as span:
                environment, hidden = self._environment(resources, rollout, span, file)
                stdout, stderr = Tail(self._limit, hidden), Tail(self._limit, hidden)
                await self._run(given, environment, stdout, stderr, span)
            return await self._find_reward(task, stdout, file)

    async def _run(
        self, given: bytes | None, environment: Mapping[str, str], stdout: Tail, stderr: Tail, span: Span
    ) -> None:
        program: Program | None = None
        ended = False
        try:
            async with running(
                self.command,
                stdin=given,
                environment=environment,
                cwd=self._cwd,
                stdout=stdout,
                stderr=stderr,
                terminate_seconds=self._terminate_seconds,
            ) as program:
                ended = await program.wait(self._timeout)
        except (OSError, ValueError) as error:
            if program is not None:
                raise
            raise CommandError(f"{self._label} cannot be started: {self._why_not(error)}") from error
        finally:
            if program is not None:
                _record(program, span)
        assert program is not None
        if not ended:
            raise RolloutTimeoutError(f"{self._label} ran longer than its timeout_seconds={self._timeout:g}")
        if program.exit_code != 0:
            last = stderr.text().strip()[-_SHOWN_STDERR:]
            said = f". The end of its standard error stream:\n{last}" if last else ", and no error message"
            raise CommandError(f"{self._label} ended with {_name_of(program.exit_code)}{said}")

    def _why_not(self, error: Exception) -> str:
        if self._cwd is not None and not Path(self._cwd).is_dir():
            return f"its working directory {self._cwd!r} does not exist"
        if isinstance(error, FileNotFoundError):
            return (
                f"there is no program {self.command[0]!r} on its PATH, nor its interpreter; give full paths"
            )
        return str(error)

    # What the program gets

    def _input(self, task: Any, resources: NamedResources, rollout: RolloutV2) -> bytes | None:
        if self._stdin == "none":
            return None
        if self._stdin == "text":
            if not isinstance(task, str):
                raise UnserializableValueError(
                    f"{self._label} takes its task as text (stdin='text'), and the task is a "
                    f"{type(task).__name__}; use stdin='task' for JSON"
                )
            return task.encode("utf-8", "backslashreplace")
        if self._stdin == "task":
            return self._as_json(task)
        resources = {name: attributed(one, rollout, self._label) for name, one in resources.items()}
        return self._as_json(
            {
                "task": task,
                "resources": {
                    name: one.model_dump(mode="json", exclude={"api_key"}) for name, one in resources.items()
                },
                "mode": rollout.mode,
                "rollout_id": rollout.rollout_id,
                "attempt_id": _attempt_id(rollout),
            }
        )

    def _as_json(self, value: Any) -> bytes:
        try:
            # ASCII, which programs of any locale read.
            return json.dumps(value, default=_plain, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise UnserializableValueError(
                f"{self._label} takes its task as JSON, and this one cannot be written so: {error}"
            ) from error

    def _environment(
        self, resources: NamedResources, rollout: RolloutV2, span: Span, reward_file: Path | None
    ) -> tuple[dict[str, str], list[bytes]]:
        """Return the program's environment, and the secrets in it."""
        environment = dict(os.environ)
        secrets: list[str | None] = []
        llm = self._find_llm(resources)
        if llm is not None:
            url = attributed(llm, rollout, self._label).get_base_url()
            # A key of the user's own that is meant for another endpoint must not go to this one.
            key = llm.api_key or "none"
            environment |= {
                "OPENAI_BASE_URL": url,
                "OPENAI_API_BASE": url,
                "OPENAI_API_KEY": key,
                "OPENAI_MODEL": llm.model,
            }
            secrets.append(key)
        attempt_id = _attempt_id(rollout)
        environment["LIGHTNING_ROLLOUT_ID"] = rollout.rollout_id
        if attempt_id is not None:
            environment["LIGHTNING_ATTEMPT_ID"] = attempt_id
        if reward_file is not None:
            environment["LIGHTNING_REWARD_FILE"] = str(reward_file)
        endpoint = self._otlp_endpoint()
        if endpoint is not None:
            environment |= endpoint.variables(rollout.rollout_id, attempt_id, environment)
            secrets += [value.rpartition(" ")[2] for value in endpoint.headers.values()]
        context = span.get_span_context()
        environment["TRACEPARENT"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        for name, value in self._env.items():
            if value is None:
                environment.pop(name, None)
            elif isinstance(value, SecretStr):
                environment[name] = value.get_secret_value()
                secrets.append(environment[name])
            else:
                environment[name] = value
        hidden = {secret.encode() for secret in secrets if secret and len(secret) >= _SHORTEST_SECRET}
        return environment, sorted(hidden, key=len, reverse=True)

    def _find_llm(self, resources: NamedResources) -> LLM | None:
        name, fitting = choose(resources, LLM, self._llm or "llm")
        if self._llm is not None and name != self._llm:
            raise NoResourcesError(
                f"{self._label} needs the model {self._llm!r}; the models among the resources are: "
                f"{', '.join(fitting) or 'none'}. Give Trainer(initial_resources=...) or another llm=..."
            )
        if name is None:
            return None
        if len(fitting) > 1 and name != (self._llm or "llm") and not self._warned:
            self._warned = True
            _logger.warning(
                "%s: several resources are models (%s); taking the first, %r. Choose with llm=...",
                *(self._label, ", ".join(fitting), name),
            )
        return cast(LLM, resources[name])

    def _otlp_endpoint(self) -> OtlpEndpoint | None:
        """Where spans of the program reach the runner's store, if they can."""
        try:
            get_store: Callable[[], Any] | None = getattr(self.get_runner(), "get_store", None)
            store = get_store() if get_store is not None else None
        except ConfigurationError:
            # It is called by something else than a runner.
            return None
        return getattr(store, "otlp_endpoint", None)

    # What it gives back

    async def _find_reward(self, task: Any, stdout: Tail, file: Path | None) -> float | None:
        if self._reward is None:
            return None
        if callable(self._reward):
            return await _score(self._reward, task, stdout.text())
        if file is not None:
            return read_reward(self._read_file(file), place="the reward file", label=self._label)
        line = last_line(stdout.text(), cut=stdout.cut, label=self._label)
        return read_reward(line, place="the last line of the standard output", label=self._label)

    def _read_file(self, file: Path) -> str:
        try:
            with file.open("rb") as opened:
                return opened.read(_LONGEST_REWARD).decode("utf-8", "replace")
        except FileNotFoundError:
            raise InvalidOutcomeError(
                f"{self._label} has not written the file that LIGHTNING_REWARD_FILE names; write the reward to it, or "
                "choose another reward=..."
            ) from None


def _split(command: str | Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(command, str):
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise ConfigurationError(f"the command {command!r} cannot be split: {error}") from None
    else:
        parts = [os.fspath(part) for part in command]
    if not parts or not parts[0]:
        raise ConfigurationError("the command is empty; give a program, such as 'python my_agent.py'")
    return parts


def _check_variables(
    env: Mapping[str, str | SecretStr | None],
) -> dict[str, str | SecretStr | None]:
    for name, value in env.items():
        if not isinstance(value, str | SecretStr | None):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
            raise ConfigurationError(
                f"env[{name!r}] must be a string, a SecretStr or None, not a {type(value).__name__}"
            )
    return dict(env)


def _attempt_id(rollout: RolloutV2) -> str | None:
    return rollout.attempt.attempt_id if isinstance(rollout, AttemptedRollout) else None


def _plain(value: Any) -> Any:
    """Turn what is no JSON value into one, if it says how."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"it holds a {type(value).__name__}")


def _record(program: Program, span: Span) -> None:
    span.set_attribute("process.pid", program.pid)
    if program.exit_code is not None:
        span.set_attribute("process.exit.code", program.exit_code)
    for name, tail in (("stdout", program.stdout), ("stderr", program.stderr)):
        span.set_attribute(f"lightning.command.{name}", tail.text())
        span.set_attribute(f"lightning.command.{name}_bytes", tail.total)


def _name_of(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


async def _score(score: Score, task: Any, output: str) -> float | None:
    if inspect.iscoroutinefunction(score) or inspect.iscoroutinefunction(type(score).__call__):
        result = score(task, output)
    else:
        # It may take its time, and other rollouts run on this thread.
        result = await asyncio.to_thread(score, task, output)
    return await result if inspect.isawaitable(result) else result
