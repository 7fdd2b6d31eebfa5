"""Reads what a constructor takes, and which of its parameters are parts that plugins provide."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from lightning_core.plugin.catalog import BASES
from lightning_core.plugin.component import KINDS, Kind
from lightning_core.types import NamedResources

__all__ = ["Parameter", "read_parameters"]

_EMPTY: Final = inspect.Parameter.empty
_LISTS: Final = re.compile(r"\b(?:Sequence|Iterable|Collection|list|List|tuple|Tuple|set)\[")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor.

    Attributes:
        name: Its name.
        annotation: Its type; text where that cannot be evaluated.
        default: Its default, or ``inspect.Parameter.empty``.
        doc: What the docstring says of it.
        kind: ``value``; ``part`` for what plugins provide; ``resources`` for named resources; ``secret``.
        part: The kind of part.
        many: Whether it takes a list of parts.
        by_spec: Whether it takes the specification of a part, and not the part itself.
    """

    name: str
    annotation: Any
    default: Any = _EMPTY
    doc: str = ""
    kind: Literal["value", "part", "resources", "secret"] = "value"
    part: Kind | None = None
    many: bool = False
    by_spec: bool = False

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is _EMPTY

    @property
    def deprecated(self) -> bool:
        """Whether its documentation says that it is."""
        return self.doc.lower().startswith("deprecated")


def read_parameters(make: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a class or a function that can be given by keyword, in their order.

    Where a constructor takes ``**keywords``, those of the next constructor in the order of inheritance follow.
    """
    found: dict[str, Parameter] = {}
    docs = _documented(make)
    for constructor in _constructors(make):
        hints = _hints(constructor)
        others = False
        for position, given in enumerate(inspect.signature(constructor).parameters.values()):
            if given.kind is given.VAR_KEYWORD:
                others = True
            bound = inspect.isclass(make) and position == 0 and constructor is not make
            if bound or given.kind not in (given.POSITIONAL_OR_KEYWORD, given.KEYWORD_ONLY):
                continue
            if given.name not in found:
                annotation = hints.get(given.name, given.annotation)
                found[given.name] = _classify(given, annotation, docs.get(given.name, ""))
        if not others:
            break
    return found


def _constructors(make: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    if not inspect.isclass(make):
        yield make
        return
    own = [vars(cls)["__init__"] for cls in make.__mro__ if cls is not object and "__init__" in vars(cls)]
    if not own or hasattr(make, "__pydantic_fields__"):
        # A model's own constructor hides its fields; its signature shows them.
        yield make
        return
    yield from own


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        # Names that are imported for type checkers only. The text of each annotation is left.
        return {}


def _documented(make: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstrings of a class and its constructors say of each parameter."""
    from docstring_parser import ParseError, parse

    sources: list[Any] = [make]
    if inspect.isclass(make):
        for cls in make.__mro__[:-1]:
            sources += [cls, vars(cls).get("__init__")]
    docs: dict[str, str] = {}
    for source in sources:
        text = inspect.cleandoc(getattr(source, "__doc__", None) or "")
        try:
            parsed = parse(text)
        except ParseError:
            continue
        for parameter in parsed.params:
            docs.setdefault(parameter.arg_name, " ".join((parameter.description or "").split()))
    return docs


def _classify(parameter: inspect.Parameter, annotation: Any, doc: str) -> Parameter:
    name, default = parameter.name, parameter.default
    mentioned = set(_mentioned(annotation))
    kind: Kind | None = next((kind for kind in KINDS if _base(kind) in mentioned), None)
    if kind is None and name in KINDS and "Spec" in mentioned:
        # Of proxies there is no base class.
        kind = name
    if kind is not None:
        return Parameter(
            name,
            annotation,
            default,
            doc,
            kind="part",
            part=kind,
            many=_LISTS.search(_text(annotation)) is not None,
            by_spec=bool({"Spec", "str", "Mapping"} & mentioned),
        )
    if "NamedResources" in mentioned or NamedResources in _nested(annotation):
        return Parameter(name, annotation, default, doc, kind="resources")
    if "SecretStr" in mentioned:
        return Parameter(name, annotation, default, doc, kind="secret")
    return Parameter(name, annotation, default, doc)


def _base(kind: Kind) -> str | None:
    path = BASES[kind]
    return path and path[1]


def _mentioned(annotation: Any) -> Iterator[str]:
    """Yield the names of classes in an annotation, with those that they inherit from."""
    for part in _nested(annotation):
        if isinstance(part, str):
            yield from re.findall(r"\w+", part)
        elif inspect.isclass(part):
            yield from (cls.__name__ for cls in inspect.getmro(part) if cls is not object)


def _nested(annotation: Any) -> Iterable[Any]:
    """Return an annotation and everything inside of it."""
    inside: list[Any] = [annotation]
    origin = typing.get_origin(annotation)
    if origin is not None:
        inside.append(origin)
    arguments = typing.get_args(annotation)
    for argument in arguments if origin is not Literal else ():
        if isinstance(argument, Sequence) and not isinstance(argument, str):
            continue
        inside += _nested(argument)
    return inside


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else str(annotation)
