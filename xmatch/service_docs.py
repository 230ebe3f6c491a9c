"""What the service tells about itself: the OpenAPI description of its parameters, and a page that needs no network."""

from collections.abc import Mapping
from html import escape
from typing import Any

import orjson

_RADIUS = "Largest separation in arcseconds, inclusive."
_CATALOG = "Name of a catalogue in any case, or `all`."
_NEIGHBORS = "Most sources of a position, the nearest first, counted over all catalogues together."
_METADATA = "Whether magnitudes are part of the answer: true, True, TRUE or 1."


def _parameter(name: str, kind: str, text: str, *, required: bool = False, example: Any = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    return {"name": name, "in": "query", "required": required, "description": text, "schema": schema} | (
        {} if example is None else {"example": example}
    )


def _body(properties: dict[str, Any], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _numbers(text: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "number"}, "description": text}


_REFUSALS = {
    "400": {"description": "A field is refused: `Field`, `Reason`, `ErrValue` and, among many, its `Index`."},
    "413": {"description": "The body, the number of coordinates or the answer is larger than the service allows."},
}
_FOUND = {"200": {"description": "What was found.", "content": {"application/json": {}}}}
_NOTHING = {"204": {"description": "Nothing was found; no body."}}

CONE = {
    "parameters": [
        _parameter("ra", "number", "Right ascension in degrees, 0 to 360.", required=True, example=190.3811),
        _parameter("dec", "number", "Declination in degrees, -90 to 90.", required=True, example=26.0427),
        _parameter("radius", "number", _RADIUS, required=True, example=1),
        _parameter("catalog", "string", _CATALOG),
        _parameter("nneighbor", "integer", _NEIGHBORS),
        _parameter("getMetadata", "boolean", _METADATA),
    ],
    "responses": _FOUND | _NOTHING | {"400": _REFUSALS["400"]},
}
BULK_CONE = {
    "requestBody": _body(
        {
            "ra": _numbers("Right ascensions in degrees, 0 to 360."),
            "dec": _numbers("Declinations in degrees, -90 to 90; as many."),
            "radius": {"type": "number", "description": _RADIUS},
            "catalog": {"type": "string", "description": _CATALOG},
            "nneighbor": {"type": "integer", "default": 1, "description": _NEIGHBORS},
            "getMetadata": {"type": "boolean", "default": False, "description": _METADATA},
        },
        ["ra", "dec", "radius"],
        {"ra": [190.3811, 180.3098], "dec": [26.0427, -3.6781], "radius": 1, "getMetadata": True},
    ),
    "responses": _FOUND | _NOTHING | _REFUSALS,
}
METADATA = {
    "parameters": [
        _parameter("id", "string", "Identifier; write `%2B` for a plus sign.", required=True),
        _parameter("catalog", "string", "Name of a catalogue in any case.", required=True),
    ],
    "responses": _FOUND | _NOTHING | {"400": _REFUSALS["400"]},
}
BULK_METADATA = {
    "requestBody": _body(
        {
            "ids": {"type": "array", "items": {"type": "string"}, "description": "Identifiers."},
            "catalog": {"type": "string", "description": "Name of a catalogue in any case."},
        },
        ["ids", "catalog"],
        {"ids": ["J124131.46+260233.6"], "catalog": "allwise"},
    ),
    "responses": {"200": {"description": "What was found, in the order of the catalogue, or null."}} | _REFUSALS,
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }} th, td {{ text-align: left; padding: .2em 1em .2em 0; vertical-align: top; }}
code, pre {{ background: #8882; padding: .1em .3em; }} h2 {{ border-top: 1px solid #8888; padding-top: 1em; }}
</style></head><body>
<h1>{title} {version}</h1><p>{description}</p><p>For programs: <a href="openapi.json">openapi.json</a></p>
{sections}
</body></html>
"""


def docs_page(schema: Mapping[str, Any]) -> str:
    """HTML page of an OpenAPI description; it loads nothing from elsewhere."""
    sections = [
        _section(method.upper(), path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    info = schema["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info.get("description", "")),
        sections="\n".join(sections),
    )


def _section(method: str, path: str, operation: Mapping[str, Any]) -> str:
    text = f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    fields = [
        (field["name"], field["schema"]["type"], field["required"], field["description"])
        for field in operation.get("parameters", [])
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        fields += [
            (name, field["type"], name in schema["required"], field["description"])
            for name, field in schema["properties"].items()
        ]
    if fields:
        rows = "".join(
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}{', required' if required else ''}</td>"
            f"<td>{escape(meaning)}</td></tr>"
            for name, kind, required, meaning in fields
        )
        text += f"<table>{rows}</table>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        example = orjson.dumps(content["example"]).decode()
        text += f"<pre>curl -d '{escape(example)}' http://HOST:PORT{escape(path)}</pre>"
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return f"{text}<table>{answers}</table>"
