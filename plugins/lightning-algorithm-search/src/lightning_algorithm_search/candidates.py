"""Candidates: a prompt template with sampling parameters, and the resources that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lightning_core.errors import ConfigurationError
from lightning_core.types import LLM, NamedResources, PromptTemplate

__all__ = ["Candidate", "make_candidates"]

Templates = Sequence[str | PromptTemplate] | Mapping[str, str | PromptTemplate]


@dataclass(frozen=True)
class Candidate:
    """One thing to try.

    Attributes:
        name: What reports call it.
        resources: All resources that its rollouts get, by name.
        template: The prompt template, or ``None`` if templates are not searched.
        sampling: The sampling parameters that it sets.
    """

    name: str
    resources: NamedResources
    template: PromptTemplate | None = None
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])


def make_candidates(
    initial: NamedResources,
    templates: Templates | None,
    sampling: Sequence[Mapping[str, Any]] | None,
    temperatures: Sequence[float] | None,
    prompt: str | None,
    llm: str | None,
) -> list[Candidate]:
    """Combine every template with every entry of ``sampling`` and every temperature, in that order.

    Args:
        initial: The resources to start from; what is not searched stays as it is.
        templates: See ``SearchConfig``, as the others.
        sampling: Sampling parameters; they are laid over those of the model.
        temperatures: Temperatures.
        prompt: Name of the prompt resource, or ``None``.
        llm: Name of the model resource, or ``None``.

    Raises:
        ConfigurationError: If there are fewer than two candidates, two are the same, or a resource that they need
            is missing or not clearly one.
    """
    named = _name_templates(templates)
    settings = _combine_sampling(sampling, temperatures)
    prompt_name = _prompt_name(initial, prompt) if named else None
    llm_name = _llm_name(initial, llm) if any(settings) else None
    candidates: list[Candidate] = []
    for (label, template), parameters in product(named or [("", None)], settings):
        resources = dict(initial)
        if template is not None and prompt_name is not None:
            resources[prompt_name] = template
        if llm_name is not None:
            model = resources[llm_name]
            assert isinstance(model, LLM)
            merged = {**model.sampling_parameters, **parameters}
            resources[llm_name] = model.model_copy(update={"sampling_parameters": merged})
        values = [f"{key}={value}" for key, value in parameters.items()]
        name = ", ".join([*([label] if label else []), *values]) or "as it is"
        candidates.append(Candidate(name, resources, template, dict(parameters)))
    _check(candidates)
    return candidates


def _name_templates(templates: Templates | None) -> list[tuple[str, PromptTemplate]]:
    if templates is None:
        return []
    if isinstance(templates, Mapping):
        pairs = list(templates.items())
    else:
        pairs = [(f"prompt {number}", template) for number, template in enumerate(templates, start=1)]
    return [
        (name, PromptTemplate(template=template) if isinstance(template, str) else template)
        for name, template in pairs
    ]


def _combine_sampling(
    sampling: Sequence[Mapping[str, Any]] | None, temperatures: Sequence[float] | None
) -> list[dict[str, Any]]:
    entries: list[Mapping[str, Any]] = list(sampling) if sampling else [{}]
    if not temperatures:
        return [dict(entry) for entry in entries]
    if any("temperature" in entry for entry in entries):
        raise ConfigurationError(
            "search: give temperatures either in `sampling` or in `temperatures`, not in both"
        )
    return [{**entry, "temperature": value} for entry in entries for value in temperatures]


def _prompt_name(initial: NamedResources, prompt: str | None) -> str:
    found = [name for name, resource in initial.items() if isinstance(resource, PromptTemplate)]
    if prompt is not None:
        if prompt in initial and prompt not in found:
            raise ConfigurationError(
                f"search: the resource {prompt!r} is a {type(initial[prompt]).__name__}, not a prompt template"
            )
        return prompt
    if len(found) > 1:
        raise ConfigurationError(
            f"search: the initial resources hold several prompt templates ({', '.join(found)}); say which one is "
            "searched: prompt=..."
        )
    return found[0] if found else "prompt_template"


def _llm_name(initial: NamedResources, llm: str | None) -> str:
    found = [name for name, resource in initial.items() if isinstance(resource, LLM)]
    if llm is not None and llm not in found:
        raise ConfigurationError(
            f"search: there is no model named {llm!r} in the initial resources; models: {', '.join(found) or 'none'}"
        )
    if llm is None and len(found) != 1:
        raise ConfigurationError(
            f"search: sampling settings need one model in the initial resources, and there are {len(found)}"
            + (
                f" ({', '.join(found)}); say which one: llm=..."
                if found
                else "; give Trainer(initial_resources=...) or an engine"
            )
        )
    return llm or found[0]


def _check(candidates: list[Candidate]) -> None:
    if len(candidates) < 2:
        raise ConfigurationError(
            "search: there is one candidate only, so there is nothing to compare; give several templates, "
            "temperatures or sampling settings"
        )
    for index, candidate in enumerate(candidates):
        for other in candidates[:index]:
            if candidate.name == other.name or candidate.resources == other.resources:
                raise ConfigurationError(
                    f"search: the candidates {other.name!r} and {candidate.name!r} are the same; give each once"
                )
