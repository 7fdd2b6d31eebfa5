"""Resources: what an algorithm tunes and an agent uses, such as model endpoints and prompt templates."""

from __future__ import annotations

import difflib
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, PlainValidator, SerializeAsAny, field_validator

from lightning_core.errors import ResourceError

from ._model import Model, StrictModel

if TYPE_CHECKING:
    from .core import AttemptedRollout

__all__ = [
    "LLM",
    "NamedResources",
    "PromptTemplate",
    "ProxyLLM",
    "Resource",
    "ResourceUnion",
    "ResourcesUpdate",
    "SamplingParameters",
    "register_resource_kind",
    "resource_kinds",
]

SamplingParameters: TypeAlias = dict[str, Any]
"""Parameters of a completion request, such as ``temperature`` and ``max_tokens``."""

R = TypeVar("R", bound="type[Resource]")

_kinds: dict[str, type[Resource]] = {}


class Resource(StrictModel):
    """Base of every resource; ``resource_type`` names its kind.

    A field that the class does not have is refused, unless its ``model_config`` has ``extra="allow"`` or ``"ignore"``.
    """

    resource_type: Any


def register_resource_kind(cls: R) -> R:
    """Class decorator that makes a new kind of resource readable wherever resources are.

    The class gives its kind as the default of ``resource_type``, normally a one-valued ``Literal``::

        @register_resource_kind
        class Toolbox(Resource):
            resource_type: Literal["toolbox"] = "toolbox"
            tools: list[str]

    Raises:
        ResourceError: If the class names no kind, or another class has it already.
    """
    kind = cls.model_fields["resource_type"].default
    if not isinstance(kind, str):
        raise ResourceError(f"{cls.__name__} must give its kind as the default of resource_type, a string")
    other = _kinds.get(kind)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ResourceError(
            f"resource kind {kind!r} of {cls.__module__}.{cls.__qualname__} is taken by "
            f"{other.__module__}.{other.__qualname__}; choose another kind"
        )
    _kinds[kind] = cls
    return cls


def resource_kinds() -> dict[str, type[Resource]]:
    """Return the known kinds of resources and their classes."""
    return dict(_kinds)


@register_resource_kind
class LLM(Resource):
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        endpoint: Base URL of the API; read it through :meth:`get_base_url`.
        model: The model's name, as the endpoint knows it.
        sampling_parameters: Parameters for completion requests, such as ``temperature``.
        api_key: Key for the endpoint. It is left out of ``repr``.
    """

    resource_type: Literal["llm", "proxy_llm"] = "llm"
    endpoint: str
    model: str
    api_key: str | None = Field(default=None, repr=False)
    sampling_parameters: SamplingParameters = Field(default_factory=dict)

    @field_validator("resource_type")
    @classmethod
    def _own_kind(cls, value: str) -> str:
        # The annotation must hold for subclasses too; the value is that of this very class.
        own = cls.model_fields["resource_type"].default
        if value != own:
            raise ValueError(f"{cls.__name__} is of kind {own!r}, not {value!r}")
        return value

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """Return the URL to give to a client, such as ``openai.OpenAI(base_url=…)``."""
        return self.endpoint


@register_resource_kind
class ProxyLLM(LLM):
    """A model behind the LLM proxy, which needs to know whose calls it serves.

    The proxy attributes a call by a path prefix, so :meth:`get_base_url` takes the rollout and attempt ids
    and bakes ``/rollout/{id}/attempt/{id}`` into the endpoint, before a trailing ``/v1``.
    """

    resource_type: Literal["llm", "proxy_llm"] = "proxy_llm"
    _ready: bool = False

    def model_post_init(self, context: Any, /) -> None:
        """Mark the end of the set-up; from here on, direct use of ``endpoint`` warns."""
        self._ready = True

    def __getattribute__(self, name: str) -> Any:
        """Warn when ``endpoint`` is used directly, since calls to it are attributed to no rollout."""
        if name == "endpoint":
            private = object.__getattribute__(self, "__pydantic_private__")
            if private and private.get("_ready"):
                warnings.warn(
                    "ProxyLLM.endpoint carries no rollout: use get_base_url(rollout_id, attempt_id), or "
                    "with_attempted_rollout(rollout)",
                    UserWarning,
                    stacklevel=2,
                )
        return super().__getattribute__(name)

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """Return the proxy's URL for one attempt.

        Args:
            args: ``rollout_id`` and ``attempt_id``, both or neither.
            kwargs: The same by name.

        Returns:
            The URL with ``/rollout/{rollout_id}/attempt/{attempt_id}``; without ids, the plain endpoint.

        Raises:
            ResourceError: If only one of the two ids is given, or something else.
        """
        given = dict(zip(("rollout_id", "attempt_id"), args, strict=False)) | kwargs
        ids = {name: value for name, value in given.items() if value is not None}
        endpoint: str = self.__dict__["endpoint"]
        if len(args) > 2 or not given.keys() <= {"rollout_id", "attempt_id"}:
            raise ResourceError(f"get_base_url takes rollout_id and attempt_id; got {args} and {kwargs}")
        if not ids:
            return endpoint
        if len(ids) != 2 or not all(ids.values()):
            raise ResourceError(f"get_base_url takes rollout_id and attempt_id, both or neither; got {ids}")
        parts = urlsplit(endpoint)
        path = parts.path.rstrip("/")
        version = "/v1" if path.endswith("/v1") else ""
        path = path.removesuffix("/v1")
        path = f"{path}/rollout/{ids['rollout_id']}/attempt/{ids['attempt_id']}{version}"
        return urlunsplit(parts._replace(path=path))

    def with_attempted_rollout(self, rollout: AttemptedRollout) -> LLM:
        """Return a plain ``LLM`` whose endpoint has the rollout and attempt ids baked in."""
        return LLM(
            endpoint=self.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id),
            model=self.model,
            api_key=self.api_key,
            sampling_parameters=dict(self.sampling_parameters),
        )


@register_resource_kind
class PromptTemplate(Resource):
    """A prompt with placeholders.

    Attributes:
        template: The text; its syntax is the engine's.
        engine: ``f-string`` (``{question}``), ``jinja`` (sandboxed; needs ``lightning-core[jinja]``) or
            ``poml`` (needs ``lightning-core[poml]``).
    """

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: Literal["jinja", "f-string", "poml"] = "f-string"

    def format(self, **kwargs: Any) -> Any:
        """Render the template.

        Returns:
            A string; for ``poml``, what the ``poml`` package renders.

        Raises:
            ResourceError: If a placeholder has no value, the template is malformed, or the engine is not
                installed.
        """
        from . import _rendering

        return _rendering.render(self.template, self.engine, kwargs)


def _read_resource(value: Any) -> Resource:
    if isinstance(value, Resource):
        return value
    kind = value.get("resource_type") if isinstance(value, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - any mapping
    if not isinstance(kind, str):
        raise ValueError("a resource is an instance of Resource, or a mapping with a resource_type")
    cls = _kinds.get(kind)
    if cls is None:
        near = difflib.get_close_matches(kind, _kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown resource kind {kind!r}{hint} Known kinds: {', '.join(sorted(_kinds))}. "
            "Import the plugin that registers the kind"
        )
    return cls.model_validate(value)


ResourceUnion: TypeAlias = Annotated[SerializeAsAny[Resource], PlainValidator(_read_resource)]
"""Any registered kind of resource; read back as its own class by its ``resource_type``."""

NamedResources: TypeAlias = dict[str, ResourceUnion]
"""Resources by the name that agents know them by, such as ``{"main_llm": LLM(...)}``."""


class ResourcesUpdate(Model):
    """One version of the named resources. Times are seconds since the epoch; versions count from 1."""

    resources_id: str
    resources: NamedResources
    version: int = Field(default=1, ge=1)
    create_time: float = Field(default_factory=time.time)
    update_time: float = Field(default_factory=time.time)
