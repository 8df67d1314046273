"""JSON Schema of the spec language, installed operators and backends included, for editors."""

from __future__ import annotations

from typing import Any

from ptk.operator import find_operator, operator_names
from ptk.spec import SpecFile, backend_names, find_backend

__all__ = ["language_schema"]


def language_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file."""
    schema = SpecFile.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    steps, models = [], []
    for name in operator_names():
        operator = find_operator(name)
        step = operator.params.model_json_schema(by_alias=True)
        definitions.update(step.pop("$defs", {}))
        step["title"] = name
        step["description"] = operator.help
        step["properties"] = {"op": {"const": name, "description": operator.help}, **step.get("properties", {})}
        step["required"] = ["op", *step.get("required", [])]
        if operator.inputs:
            step["properties"]["from"] = {
                "description": f"The step that gives {operator.inputs[0]}, or a mapping of {', '.join(operator.inputs)} to steps.",
                "anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}],
            }
            step["required"].append("from")
        definitions[f"step.{name}"] = step
        steps.append({"$ref": f"#/$defs/step.{name}"})
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
