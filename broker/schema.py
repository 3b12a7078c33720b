"""The JSON Schema of the configuration file, for editors: the file's own keys, and each preset's.

Made from the models that check the file, so that what an editor marks is what `check` refuses, as
far as JSON Schema can say it.
"""

from __future__ import annotations

from typing import Any

from broker.file import CALLERS, ConfigFile, CredentialEntry, ProfileEntry
from broker.kinds import Strict

_LIKE = {"type": "object", "properties": {"like": {"type": "string"}}, "required": ["like"]}
"""A parameter that is declared as a setting of the preset is."""


def json_schema(presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """JSON Schema (2020-12) of the file; `presets`: the settings' schema of each, by name."""
    top = ConfigFile.model_json_schema(ref_template="#/$defs/{model}")
    defs: dict[str, Any] = top.pop("$defs", {})

    def absorb(schema: dict[str, Any]) -> dict[str, Any]:
        defs.update(schema.pop("$defs", {}))
        return schema

    def section(entries: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": entries}

    def model(kind: type[Strict]) -> dict[str, Any]:
        return absorb(kind.model_json_schema(ref_template="#/$defs/{model}"))

    profile = model(ProfileEntry)
    declared = profile["properties"]["parameters"]
    declared["additionalProperties"] = {"anyOf": [declared["additionalProperties"], _LIKE]}
    variants = []
    for name, settings in presets.items():
        one = absorb(dict(settings))
        both = {**profile["properties"], **one.get("properties", {}), "preset": {"const": name}}
        required = [*profile.get("required", []), *one.get("required", [])]
        variants.append(
            {
                "type": "object",
                "properties": both,
                "required": required,
                "additionalProperties": False,
            }
        )
    own = {**profile["properties"], "preset": {"type": "string", "pattern": r"^[./]"}}
    variants.append({"type": "object", "properties": own, "required": profile["required"]})
    top["properties"] |= {
        "callers": section({"oneOf": [model(kind) for kind in CALLERS.values()]}),
        "credentials": section(model(CredentialEntry)),
        "profiles": section({"oneOf": variants}),
    }
    top["$defs"] = defs
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top}
