"""What a user can set: the upstream models, and how the proxy listens and records."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from lightning_core import LLM

__all__ = ["ANY_MODEL", "EngineName", "GatewayConfig", "Upstream"]

EngineName: TypeAlias = Literal["auto", "vllm", "sglang", "llamacpp", "openai", "none"]

ANY_MODEL = "*"
"""The name of an upstream that takes every model that no other upstream is named for."""


class Upstream(BaseModel):
    """One model behind an OpenAI-compatible endpoint.

    Several of one ``name`` share its calls by ``weight``, and stand in for one another when one of them fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default=ANY_MODEL,
        min_length=1,
        description="What clients call the model. `*` takes every name that no other upstream has.",
    )
    base_url: str = Field(description="The API's base URL, such as http://127.0.0.1:8000/v1.")
    api_key: SecretStr | None = Field(
        default=None, min_length=1, description="Key for the API. It is never logged, nor in a span."
    )
    model: str | None = Field(
        default=None, min_length=1, description="What the API calls the model. None: as clients do."
    )
    engine: EngineName = Field(
        default="auto",
        description="What serves there, and so how it is asked for token ids. auto: found out; none: ask nothing.",
    )
    exact_streams: bool = Field(
        default=True,
        description=(
            "Have recorded streams of llama.cpp cut from whole answers, since its streams leave out token ids. They "
            "begin when the answer is complete."
        ),
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Share of the calls, among upstreams of one name."
    )
    max_concurrency: int | None = Field(
        default=None, ge=1, description="How many calls it gets at once; more wait. None: no limit."
    )
    timeout: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="The longest silence, in seconds: before an answer, and within a stream.",
    )
    connect_timeout: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Seconds within which it must take a connection."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the whole address, such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            # It shows in spans and in the log.
            raise ValueError("an address holds no user, password or query; a key belongs into api_key")
        return value.rstrip("/") if parts.path.strip("/") else f"{value.rstrip('/')}/v1"

    @classmethod
    def from_llm(cls, llm: LLM, **settings: Any) -> Self:
        """Make an upstream of a resource, such as the one that an engine gives.

        Args:
            llm: Where the model is.
            settings: Further settings; ``name`` is the resource's model unless given.
        """
        given: dict[str, Any] = {
            "name": llm.model,
            "base_url": llm.get_base_url(),
            "api_key": llm.api_key or None,
        }
        return cls.model_validate({**given, **settings})


class GatewayConfig(BaseModel):
    """Settings of the proxy ``gateway``."""

    model_config = ConfigDict(extra="forbid")

    model_list: list[Upstream] = Field(
        default_factory=list[Upstream],
        description="The upstream models. More can be set later, with update_model_list.",
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Others than loopback need a token.",
    )
    port: int = Field(default=0, ge=0, le=65535, description="Port to listen on. 0: any free one.")
    advertised_host: str | None = Field(
        default=None, min_length=1, description="Where clients find the proxy. None: at `host`."
    )
    token: SecretStr | None = Field(
        default=None, description="What clients must send as their API key. None: anything will do."
    )
    confirm_seconds: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="For how long the end of an answer may wait until its span is stored. 0: it does not wait.",
    )
    retry_seconds: float = Field(
        default=300.0,
        ge=0,
        allow_inf_nan=False,
        description="For how long spans are kept and tried again while the store is away.",
    )
    max_waiting_mb: float = Field(
        default=256.0,
        gt=0,
        allow_inf_nan=False,
        description="The most memory of spans that wait for the store, in MiB. What comes after them is lost.",
    )
    max_body_mb: float = Field(
        default=64.0, gt=0, allow_inf_nan=False, description="The largest request, in MiB."
    )
    stop_seconds: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="How long a stop waits for calls under way, and then for their spans.",
    )

    @model_validator(mode="after")
    def _ask_others_for_a_token(self) -> Self:
        from lightning_core.serving import listening_problem

        token = self.token.get_secret_value() if self.token is not None else None
        if problem := listening_problem("a proxy", self.host, token):
            raise ValueError(problem)
        return self
