"""``lightning-core run``: a whole training, as a configuration file describes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from lightning_core.cli.loading import import_from_here, load_agent, load_data
from lightning_core.cli.results import counts_text, print_fields, print_outcome
from lightning_core.errors import ConfigurationError
from lightning_core.types import NamedResources

if TYPE_CHECKING:
    from lightning_core.trainer import TrainingResult

__all__ = ["TrainingJob", "run"]


class TrainingJob:
    """What is trained, and on what.

    Args:
        agent: The agent: module:name, looked for in the working folder too.
        train_data: Tasks to learn from: a file of JSON Lines (.jsonl), JSON (.json), CSV (.csv) or Parquet (.parquet);
            module:name of a dataset, or of a function that makes one; or a list of tasks.
        val_data: Held-out tasks, in one of the same forms.
        resources: What the run starts from, by name, such as prompt templates and models. Each has a resource_type.
        resume: Go on with a run: its id, true for the newest that has not succeeded, or auto for that if there is one.
    """

    def __init__(
        self,
        agent: str,
        train_data: list[Any] | str | None = None,
        val_data: list[Any] | str | None = None,
        resources: NamedResources | None = None,
        resume: bool | str | None = None,
    ) -> None:
        self.agent = load_agent(agent)
        self.train_data = _named("train_data", train_data)
        self.val_data = _named("val_data", val_data)
        self.resources = resources
        # As the variable LIGHTNING_CORE_RESUME has it elsewhere.
        self.resume = {"1": True, "0": False, "": None}.get(str(resume), resume)

    def with_resources(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a trainer with these resources too.

        Raises:
            ConfigurationError: If both have one of the same name.
        """
        if not self.resources:
            return settings
        initial: NamedResources = settings.get("initial_resources") or {}
        both = sorted({*self.resources} & {*initial})
        if both:
            raise ConfigurationError(
                f"{', '.join(both)} is both in resources and in trainer.initial_resources; leave one of them out"
            )
        return {**settings, "initial_resources": {**initial, **self.resources}}


def _named(name: str, spec: Any) -> Any:
    try:
        return load_data(spec)
    except (ConfigurationError, ValueError) as error:
        raise ConfigurationError(f"{name}: {error}") from error


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG ...")
@click.pass_context
def run(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run a whole training, as a file of YAML, TOML or JSON describes it.

    Options override the file, and have the names of its keys: --trainer.store sqlite --trainer.store.path runs.db. Run
    with --help to see all of them, and with --print-config to get a file with every key and its meaning. Exits with 2
    if the configuration is wrong, with 1 if the training fails, and with 130 after Ctrl+C.
    """
    from lightning_core.config.command_line import CommandLine, Section
    from lightning_core.trainer import Trainer

    logger = logging.getLogger("lightning_core")
    if logger.getEffectiveLevel() > logging.WARNING:
        # How to go on after Ctrl+C, and what was not stored.
        logger.setLevel(logging.WARNING)
    import_from_here()
    sections = Section("", TrainingJob), Section("trainer", Trainer)
    line = CommandLine(
        sections,
        prog="lightning-core run",
        description="Run a whole training, as a configuration file describes it; options override the file.",
        files_by_position=True,
    )
    with line.errors():
        job_settings, trainer_settings = line.parse(arguments)
        job: TrainingJob = line.make(sections[0], job_settings)
        trainer: Trainer = line.make(sections[1], job.with_resources(trainer_settings))
    result = trainer.fit(job.agent, job.train_data, val_data=job.val_data, resume=job.resume)
    _print(result)
    if result.status != "succeeded":
        ctx.exit(1)


def _print(result: TrainingResult) -> None:
    known = result.without_keys().model_dump(mode="json")
    print_fields(
        [
            ("run", result.run_id),
            ("status", result.status),
            ("took", f"{result.end_time - result.start_time:.1f} s"),
            ("rollouts", counts_text(result.rollouts)),
        ]
    )
    print_outcome(known["best_resources"] or {}, known["metrics"])
    if result.store != "memory":
        click.echo(
            f"\nTo see this run again: lightning-core runs show {result.run_id} --store {result.store}"
        )
