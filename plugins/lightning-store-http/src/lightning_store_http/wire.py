"""How requests and answers are written: headers, and msgpack with JSON for what msgpack cannot hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from pydantic import BaseModel

from lightning_core.store.encoding import decode
from lightning_core.types import ResourcesUpdate, Run

__all__ = [
    "API_PATH",
    "BATCH_PATH",
    "EXPECT_HEADER",
    "JSON",
    "MSGPACK",
    "NONCE_HEADER",
    "OVER_HEADER",
    "TOKEN_VARIABLE",
    "WireError",
    "pack",
    "pack_json",
    "pack_map",
    "unpack",
]

# It comes without types.
_msgpack: Any = import_module("msgpack")

API_PATH: Final = "/v1"
BATCH_PATH: Final = "/v1/batch"
MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"

NONCE_HEADER: Final = "lightning-store-nonce"
"""On every answer: which store this is."""
EXPECT_HEADER: Final = "lightning-store-expect"
"""On a request: the nonce of the store that it is for."""
OVER_HEADER: Final = "lightning-run-over"
"""On an answer: the run is over, and there will be no more work."""
TOKEN_VARIABLE: Final = "LIGHTNING_CORE_STORE_TOKEN"


class WireError(ValueError):
    """Bytes that are not what their content type says."""


def pack(value: Any) -> bytes:
    """Write a value, which may contain models, as msgpack.

    Raises:
        ValueError, TypeError, OverflowError: If msgpack cannot hold it.
    """
    return _msgpack.packb(value, default=_plain, unicode_errors="surrogatepass")


def pack_json(value: Any) -> bytes:
    """Write a value, which may contain models, as JSON.

    Raises:
        ValueError, TypeError, RecursionError: If JSON cannot hold it.
    """
    return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def pack_map(fields: dict[str, Any], last: str, items: Sequence[bytes]) -> bytes:
    """Write a mapping as msgpack, with one more field at the end, a list of items that are written already."""
    packer = _msgpack.Packer()
    parts: list[bytes] = [packer.pack_map_header(len(fields) + 1)]
    for key, value in fields.items():
        parts += [packer.pack(key), packer.pack(value)]
    parts += [packer.pack(last), packer.pack_array_header(len(items)), *items]
    return b"".join(parts)


def unpack(content_type: str, body: bytes, *, strict: bool = True) -> Any:
    """Read what :func:`pack` or :func:`pack_json` wrote.

    Args:
        content_type: ``application/msgpack`` or ``application/json``.
        body: What was written.
        strict: Accept only what JSON can hold too.

    Raises:
        WireError: If the bytes are not what they are said to be.
    """
    try:
        if content_type == MSGPACK:
            limits: dict[str, Any] = {"max_bin_len": 0, "max_ext_len": 0} if strict else {}
            return _msgpack.unpackb(body, strict_map_key=strict, unicode_errors="surrogatepass", **limits)
        return decode(body.decode())
    except (ValueError, TypeError, RecursionError, _msgpack.UnpackException) as error:
        raise WireError(f"the body is no {content_type}: {error}") from None


def _plain(value: Any) -> Any:
    """Turn a model into a dict. The packer calls it for what it does not know."""
    if isinstance(value, ResourcesUpdate | Run):
        return value.model_dump(mode="json")
    if isinstance(value, BaseModel):
        return value.__dict__
    if isinstance(value, int):
        raise OverflowError("an integer of more than 64 bits")
    raise TypeError(f"a value of type {type(value).__name__} cannot go over the network")
