"""The manifest's JSON Schema, made from its dataclasses, so that programs in other languages can read a bundle."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgeclip.bundle.manifest import FORMAT, FORMAT_VERSION, Manifest

_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean"}


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `bundle.json`. Published as docs/bundle.schema.json."""
    made = file_schema(Manifest, FORMAT, FORMAT_VERSION, "edgeclip bundle manifest")
    made["properties"]["digest"] = {
        "description": 'SHA-256 of the file\'s bytes before the last comma, newline, space and "digest"',
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
    }
    made["required"].append("digest")
    return made


def file_schema(cls: type, name: str, version: tuple[int, int], title: str) -> dict[str, Any]:
    """JSON Schema of a file that holds one dataclass beside its format and version.

    Args:
        cls: a dataclass of dataclasses, tuples, dicts, Literals and plain values.
        name: what the file's "format" says.
        version: (major, minor) of that format.
    """
    definitions: dict[str, Any] = {}
    body = _object(cls, definitions)
    body["properties"] = {
        "format": {"const": name},
        "version": {
            "description": "[major, minor]; a reader refuses another major and reads a newer minor",
            "type": "array",
            "prefixItems": [{"const": version[0]}, {"type": "integer", "minimum": 0}],
            "minItems": 2,
            "maxItems": 2,
        },
        **body["properties"],
    }
    body["required"] += ["format", "version"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **body,
        "$defs": definitions,
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return {
        "description": " ".join((cls.__doc__ or "").split()),
        "type": "object",
        "properties": {f.name: _type(hints[f.name], definitions) for f in fields(cls)},
        "required": required,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        definitions.setdefault(hint.__name__, _object(hint, definitions))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin in (Union, UnionType):
        return {"anyOf": [{"type": "null"} if arg is NoneType else _type(arg, definitions) for arg in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[-1] is Ellipsis:
        return {"type": "array", "items": _type(args[0], definitions)}
    if origin is tuple:
        items = [_type(arg, definitions) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(args[1], definitions)}
    return {"type": _PLAIN[hint]} if hint in _PLAIN else {}


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(manifest_schema(), indent=1) + "\n")
