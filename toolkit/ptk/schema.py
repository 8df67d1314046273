"""JSON Schema of the spec language, installed operators and backends included, for editors."""

from __future__ import annotations

from typing import Any

from ptk.operator import find_operator, operator_names
from ptk.params import ModelName, marked_fields
from ptk.spec import SpecFile, backend_names, find_backend

__all__ = ["language_schema"]

_VALUE = {"type": ["string", "number", "boolean"]}
_MATRIX: dict[str, Any] = {
    "description": "Axes and their values: the step is run for every combination of them.",
    "type": "object",
    "properties": {
        "exclude": {
            "description": "Combinations that are left out.",
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": {"anyOf": [_VALUE, {"type": "array", "items": _VALUE}]},
                "minProperties": 1,
            },
        }
    },
    "additionalProperties": {"type": "array", "items": _VALUE, "minItems": 1},
    "minProperties": 1,
}
_MODELS = {"description": "Models side by side: an axis.", "type": "array", "items": {"type": "string"}, "minItems": 1}


def language_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file."""
    schema = SpecFile.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    steps, models = [], []
    for name in operator_names():
        operator = find_operator(name)
        step = _open_to_axes(operator.params.model_json_schema(by_alias=True))
        definitions.update({key: _open_to_axes(value) for key, value in step.pop("$defs", {}).items()})
        step["title"] = name
        step["description"] = operator.help
        options = step.get("properties", {})
        for option in marked_fields(operator.params, ModelName):
            options[option] = {"anyOf": [options[option], _MODELS]}
        needed = step.pop("required", [])
        step["properties"] = {
            "op": {"const": name, "description": operator.help},
            "matrix": {"$ref": "#/$defs/matrix"},
            **options,
        }
        step["required"] = ["op"]
        if needed:  # an axis can set an option
            step["anyOf"] = [{"required": needed}, {"required": ["matrix"]}]
        if operator.inputs:
            step["properties"]["from"] = {
                "description": f"The step that gives {operator.inputs[0]}, or a mapping of {', '.join(operator.inputs)} to steps.",
                "anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}],
            }
            if operator.inputs[0].startswith("*"):
                step["properties"]["from"] = {
                    "description": f"The steps that give {operator.inputs[0][1:]}.",
                    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
                }
            step["required"].append("from")
        definitions[f"step.{name}"] = step
        steps.append({"$ref": f"#/$defs/step.{name}"})
    definitions["matrix"] = _MATRIX
    definitions["matrix.value"] = {"type": "string", "pattern": r"^\$\{matrix\.[a-z][a-z0-9_]*\}$"}
    for name in backend_names():
        model = find_backend(name).settings.model_json_schema(by_alias=True)
        definitions.update(model.pop("$defs", {}))
        definitions[f"model.{name}"] = model
        models.append({"$ref": f"#/$defs/model.{name}"})
    schema["properties"]["steps"]["additionalProperties"] = {"oneOf": steps}
    schema["properties"]["models"]["additionalProperties"] = {"oneOf": models}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ptk spec"
    return schema


def _open_to_axes(schema: Any) -> Any:
    """Return a schema of settings in which every value that is no free text, a patterned name too, may also be that of an axis."""
    if isinstance(schema, list):
        return [_open_to_axes(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("integer", "number", "boolean") or not {"enum", "const", "pattern"}.isdisjoint(schema):
        about = {key: schema[key] for key in ("title", "description", "default") if key in schema}
        return {**about, "anyOf": [schema, {"$ref": "#/$defs/matrix.value"}]}
    inside = ("properties", "items", "prefixItems", "anyOf", "oneOf", "additionalProperties")
    return {key: _opened(key, value) if key in inside else value for key, value in schema.items()}


def _opened(key: str, value: Any) -> Any:
    return {name: _open_to_axes(item) for name, item in value.items()} if key == "properties" else _open_to_axes(value)
