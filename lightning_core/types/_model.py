"""The base of the data models, with a fast path for values that are known to be valid."""

from __future__ import annotations

import copy
import difflib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, model_validator

# Pydantic keeps an instance's state in these slots.
_new: Any = object.__new__
_set_dict = object.__setattr__
_set_fields: Any = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra: Any = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private: Any = BaseModel.__dict__["__pydantic_private__"].__set__

# All fields are always set, so instances of a class can share the set that says so.
_field_names: dict[type[BaseModel], set[str]] = {}


def _name_fields(cls: type[BaseModel]) -> set[str]:
    return _field_names.setdefault(cls, set(cls.model_fields))


_SCALARS = frozenset({str, int, float, bool, type(None), bytes})


class Model(BaseModel):
    """A pydantic model whose validators are built when they are first used, which keeps imports light."""

    # NaN and infinity are kept as the constants that Python, and pydantic, read back.
    model_config = ConfigDict(defer_build=True, ser_json_inf_nan="constants")

    @classmethod
    def trusted(cls, values: dict[str, Any], extra: dict[str, Any] | None = None) -> Self:
        """Make an instance of complete, already valid ``values``, which it takes over.

        Stores and span capture are the hot path: this is ``model_construct`` without its per-field bookkeeping, at
        a fifth of the cost. Models with private attributes or a post-init must not use it.
        """
        model = _new(cls)
        _set_dict(model, "__dict__", values)
        _set_fields(model, _field_names.get(cls) or _name_fields(cls))
        _set_extra(model, extra)
        _set_private(model, None)
        return model

    def replace(self, **changes: Any) -> Self:
        """Return a shallow copy with ``changes``, which are not validated."""
        values = self.__dict__.copy()
        values.update(changes)
        cls = self.__class__
        model = _new(cls)
        _set_dict(model, "__dict__", values)
        _set_fields(model, _field_names.get(cls) or _name_fields(cls))
        _set_extra(model, self.__pydantic_extra__)
        _set_private(model, None)
        return model


class StrictModel(Model):
    """A model that people write: a field that it does not have is refused, with the nearest one that it has.

    A subclass whose ``model_config`` has ``extra="allow"`` or ``extra="ignore"`` takes any.
    """

    # It would hold the keys that stand beside what is wrong.
    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if cls.model_config.get("extra") in ("allow", "ignore") or not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        for name in cast("Mapping[str, Any]", values):
            if name not in fields and not any(name == field.alias for field in fields.values()):
                near = difflib.get_close_matches(str(name), fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"{cls.__name__} has no field {name!r}{hint} It has {', '.join(fields)}")
        return cast("Any", values)


_building = threading.Lock()


def build_models() -> None:
    """Build the validators that were put off, before threads use them.

    Pydantic builds a deferred model when it is first used, and takes its attributes away meanwhile: a second thread
    then gets its parent's validator, and with it an instance without fields.
    """
    with _building:
        for model in _subclasses(Model):
            if not model.__pydantic_complete__:
                model.model_rebuild()


def _subclasses(cls: type[Model]) -> Iterator[type[Model]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def copy_value(value: Any) -> Any:
    """Copy any value deeply; JSON values, the usual case, several times faster than ``copy.deepcopy``."""
    kind = value.__class__
    if kind in _SCALARS:
        return value
    if kind is dict:
        # All at once first: most items need no more.
        copied = value.copy()
        for key, item in value.items():
            if item.__class__ not in _SCALARS:
                copied[key] = copy_value(item)
        return copied
    if kind is list:
        return [copy_value(item) for item in value]
    return copy.deepcopy(value)
