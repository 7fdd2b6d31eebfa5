"""``SearchAlgorithm``: tries candidates on ever more tasks, and keeps those that do well."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_core import BaseAlgorithm
from lightning_core.algorithm import Need
from lightning_core.errors import ConfigurationError
from lightning_core.types import Dataset, PromptTemplate, RolloutConfig

from . import halving
from .candidates import Candidate, make_candidates
from .intervals import Interval, mean_interval, paired_interval
from .progress import Progress
from .report import Comparison, final_text, table
from .trials import Record, run_trials

__all__ = ["SearchAlgorithm"]

_logger = logging.getLogger(__name__)

_ROLLOUTS_PER_CANDIDATE = 16


class SearchAlgorithm(BaseAlgorithm):
    """Finds the best of several prompt templates and sampling settings by successive halving.

    In each rung all candidates that are left run the same new training tasks; then the worse ones go out, by their
    mean reward over all tasks so far (see :func:`.halving.survivors`). Every rung may cost as much as the first
    one, so those that are left get more tasks each time. The search ends with one candidate, or when every
    training task has been used. If there is a validation set, the winner and the first candidate run all of it,
    and the paired difference is reported with its confidence interval; the winner was chosen without these tasks,
    so the interval is an honest one.

    Metrics: one entry per rung (``event="rung"``) and one at the end (``event="result"``) with ``winner``,
    ``first``, ``train``, ``val``, ``difference`` and the ``report`` as text. ``best_resources`` are those of the
    leader, and those of the winner are the latest resources of the store when the search ends. A resumed run goes on
    after its last whole rung, and comes to the same result as if it had not been interrupted.

    The parameters are those of ``SearchConfig``.
    """

    needs: frozenset[Need] = frozenset({"rewards"})
    # An agent may leave the reward out where it fails; of so many in a row, hardly one that can do anything.
    needs_within = _ROLLOUTS_PER_CANDIDATE

    def __init__(
        self,
        templates: Sequence[str | PromptTemplate] | Mapping[str, str | PromptTemplate] | None = None,
        *,
        sampling: Sequence[Mapping[str, Any]] | None = None,
        temperatures: Sequence[float] | None = None,
        rollouts_per_candidate: int | None = None,
        budget: int | None = None,
        eta: int = 3,
        confidence: float = 0.95,
        without_reward: Literal["zero", "exclude"] = "zero",
        seed: int = 0,
        prompt: str | None = None,
        llm: str | None = None,
        max_attempts: int = 1,
        timeout_seconds: float | None = None,
        report: bool = True,
    ) -> None:
        if rollouts_per_candidate is not None and budget is not None:
            raise ConfigurationError("search: give rollouts_per_candidate or budget, not both")
        if eta < 2 or not 0 < confidence < 1:
            raise ConfigurationError(
                f"search: eta must be at least 2 and confidence between 0 and 1, not {eta} and {confidence}"
            )
        self._templates = templates
        self._sampling = sampling
        self._temperatures = temperatures
        self._rollouts_per_candidate = rollouts_per_candidate
        self._budget = budget
        self._eta = eta
        self._confidence = confidence
        self._without_reward: Literal["zero", "exclude"] = without_reward
        self._seed = seed
        self._prompt = prompt
        self._llm = llm
        self._config = RolloutConfig(max_attempts=max_attempts, timeout_seconds=timeout_seconds)
        self._report = report
        self._progress: Progress | None = None

    async def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Search on the training set, and compare winner and first candidate on the validation set.

        Raises:
            ConfigurationError: If there is no training set, or there are no two candidates to compare.
            ExecutionError: If no rollout gives a reward; the message says why most of them gave none.
        """
        if train_dataset is None or not len(train_dataset):
            raise ConfigurationError("search: a training set is needed to compare candidates; give fit one")
        candidates = await self._candidates()
        store = self.get_store()
        by_name = {candidate.name: candidate for candidate in candidates}
        progress = self._progress or Progress.start(by_name, self._plan(len(train_dataset)))
        self._progress = progress
        progress.require_same(by_name, self._plan(len(train_dataset)))
        resources_ids = progress.resources_ids
        for name, candidate in by_name.items():
            # A resumed search has them already; its model may have got another address.
            known = resources_ids.get(name)
            resources_ids[name] = (
                await store.add_resources(candidate.resources)
                if known is None
                else await store.update_resources(known, candidate.resources)
            ).resources_id
        await self._search(train_dataset, by_name, progress)
        records, rungs = progress.records, progress.rungs
        order = sorted(
            halving.rank({name: record.rewards for name, record in records.items()}),
            key=lambda name: -rungs[name],
        )
        winner, first = order[0], candidates[0].name
        self.best_resources = by_name[winner].resources
        await store.update_resources(resources_ids[winner], by_name[winner].resources)
        comparison: Comparison | None = None
        val: dict[str, Record] = {}
        if val_dataset is not None and len(val_dataset):
            comparison, val = await self._validate(val_dataset, winner, first, resources_ids)
        text = final_text(
            table(records, rungs, order, self._confidence), winner, first, comparison, self._confidence
        )
        self.log_metrics(
            event="result",
            winner=winner,
            first=first,
            train={name: self._described(record) for name, record in records.items()},
            val={name: self._described(record) for name, record in val.items()},
            difference=_described(comparison.difference) if comparison else None,
            confidence=self._confidence,
            report=text,
        )
        _logger.info("search has ended\n%s", text)
        if self._report:
            sys.stdout.write(f"\n{text}\n")
            sys.stdout.flush()

    async def _candidates(self) -> list[Candidate]:
        initial = self.get_initial_resources()
        if initial is None:
            latest = await self.get_store().get_latest_resources()
            initial = latest.resources if latest is not None else {}
        return make_candidates(
            initial, self._templates, self._sampling, self._temperatures, self._prompt, self._llm
        )

    def reset(self) -> None:
        """Forget the last search."""
        super().reset()
        self._progress = None

    def state_dict(self) -> dict[str, Any]:
        """Return how far the search has come: candidates that are left, and what became of all rollouts."""
        return self._progress.to_state() if self._progress is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last rung that was completed."""
        self._progress = Progress.from_state(state)

    def _plan(self, tasks: int) -> dict[str, Any]:
        """What decides, along with the candidates, how a search goes on."""
        return {
            "tasks": tasks,
            "seed": self._seed,
            "eta": self._eta,
            "confidence": self._confidence,
            "without_reward": self._without_reward,
            "rollouts_per_candidate": self._rollouts_per_candidate,
            "budget": self._budget,
        }

    async def _search(
        self, dataset: Dataset[Any], candidates: Mapping[str, Candidate], progress: Progress
    ) -> None:
        """Run the rungs that are left, and keep track of them in ``progress``."""
        budget = self._rung_budget(len(candidates))
        tasks = list(range(len(dataset)))
        random.Random(self._seed).shuffle(tasks)
        records = progress.records
        while len(progress.left) > 1:
            left = progress.left
            remaining = tasks[progress.tasks_used :]
            count = halving.new_tasks(budget, len(left), len(remaining))
            if count == 0:
                _logger.warning(
                    "search: all %d training tasks are used with %d candidates left; the one with the highest "
                    "mean wins. More tasks would tell them apart",
                    *(len(dataset), len(left)),
                )
                break
            rung = max(progress.rungs.values()) + 1
            await run_trials(
                self.get_store(),
                dataset,
                remaining[:count],
                {name: progress.resources_ids[name] for name in left},
                records,
                mode="train",
                config=self._config,
                without_reward=self._without_reward,
                label={"rung": rung},
            )
            for name in left:
                progress.rungs[name] += 1
            kept = halving.survivors(
                {name: records[name].rewards for name in left}, self._eta, self._confidence
            )
            self.best_resources = candidates[kept[0]].resources
            self._log_rung(rung, count, left, kept, records)
            progress.left = kept
            progress.tasks_used += count
            await self.checkpoint()

    def _rung_budget(self, candidates: int) -> int:
        """How many rollouts a rung may cost."""
        if self._budget is None:
            return candidates * (self._rollouts_per_candidate or _ROLLOUTS_PER_CANDIDATE)
        budget = self._budget // halving.most_rungs(candidates)
        if budget < 2 * candidates:
            raise ConfigurationError(
                f"search: a budget of {self._budget} rollouts is too small for {candidates} candidates; "
                f"give at least {2 * candidates * halving.most_rungs(candidates)}"
            )
        return budget

    def _log_rung(
        self, rung: int, tasks: int, left: list[str], kept: list[str], records: Mapping[str, Record]
    ) -> None:
        self.log_metrics(
            event="rung",
            rung=rung,
            tasks=tasks,
            leader=kept[0],
            kept=kept,
            candidates={name: self._described(records[name]) for name in left},
        )
        _logger.info(
            "search: rung %d, %d tasks: %d of %d candidates go on; %r leads with a mean reward of %s",
            *(rung, tasks, len(kept), len(left), kept[0], self._interval(records[kept[0]])),
        )
        for name in left:
            record = records[name]
            if record.problems:
                problem, count = record.problems.most_common(1)[0]
                _logger.warning(
                    "search: %d of %d rollouts of %r gave no reward and count %s; most often (%d times): %s",
                    *(record.rollouts - record.rewarded, record.rollouts, name),
                    *("as 0" if self._without_reward == "zero" else "nothing", count, problem),
                )

    async def _validate(
        self, dataset: Dataset[Any], winner: str, first: str, resources_ids: Mapping[str, str]
    ) -> tuple[Comparison, dict[str, Record]]:
        names = dict.fromkeys([winner, first])
        records = {name: Record() for name in names}
        await run_trials(
            self.get_store(),
            dataset,
            range(len(dataset)),
            {name: resources_ids[name] for name in names},
            records,
            mode="val",
            config=self._config,
            without_reward=self._without_reward,
            label={"rung": "final"},
        )
        own, other = self._interval(records[winner]), self._interval(records[first])
        if winner == first:
            return Comparison(own), records
        difference = paired_interval(records[winner].rewards, records[first].rewards, self._confidence)
        return Comparison(own, other, difference), records

    def _interval(self, record: Record) -> Interval | None:
        return mean_interval(list(record.rewards.values()), self._confidence) if record.rewards else None

    def _described(self, record: Record) -> dict[str, Any]:
        return {
            "rollouts": record.rollouts,
            "failed": record.failed,
            "without_reward": record.unrewarded,
            **(_described(self._interval(record)) or {"mean": None, "interval": None, "count": 0}),
        }


def _described(interval: Interval | None) -> dict[str, Any] | None:
    """Return an interval as JSON holds it, which has no infinity."""
    if interval is None:
        return None
    bounds = [interval.low, interval.high] if interval.count > 1 else None
    return {"mean": interval.mean, "interval": bounds, "count": interval.count}
