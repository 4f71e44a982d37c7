"""The published JSON Schema: editors accept exactly what the loader accepts."""

import json
import re
from importlib.resources import files
from typing import Any

import pytest
from ruamel.yaml import YAML

from hybrid.errors import PolicyError
from hybrid.policies.loader import parse_policy, preset_names
from hybrid.policies.schema import Policy, policy_schema

SCHEMA = policy_schema()
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def allows(schema: dict[str, Any], value: Any) -> bool:
    """Whether the part of JSON Schema that policies use allows the value."""
    if "$ref" in schema:
        return allows(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], value)
    if "anyOf" in schema:
        return any(allows(option, value) for option in schema["anyOf"])
    if "not" in schema and allows(schema["not"], value):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    kind = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        return False
    if isinstance(value, dict):
        return _allows_mapping(schema, value)
    if isinstance(value, list):
        items = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(allows(items, v) for v in value)
    if isinstance(value, str):
        long_enough = len(value) >= schema.get("minLength", 0)
        return long_enough and re.search(schema.get("pattern", ""), value) is not None
    return not isinstance(value, int | float) or _within(schema, value)


def _allows_mapping(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= value.keys():
        return False
    if more is False:
        return value.keys() <= properties.keys() and all(
            allows(properties[key], item) for key, item in value.items()
        )
    other = more if isinstance(more, dict) else {}
    return all(allows(properties.get(key, other), item) for key, item in value.items())


def _within(schema: dict[str, Any], value: float) -> bool:
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    return bool(least <= value <= most and schema.get("exclusiveMinimum", -1e308) < value)


def plain(text: str) -> Any:
    return json.loads(json.dumps(YAML(typ="safe").load(text)))


def test_the_schema_is_json_and_names_its_dialect() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["properties"].keys() == Policy.model_fields.keys()


def test_every_section_is_closed_and_every_setting_described() -> None:
    for name, section in {"Policy": SCHEMA, **SCHEMA["$defs"]}.items():
        assert section["additionalProperties"] is False, name
        for key, setting in section["properties"].items():
            assert "description" in setting or "$ref" in setting, f"{name}.{key}"
        assert section["description"], name


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_what_the_schema_describes(name: str) -> None:
    file = files("hybrid") / "policies" / "presets" / f"{name}.yaml"
    assert allows(SCHEMA, plain(file.read_text("utf-8")))


@pytest.mark.parametrize(
    "body",
    [
        "defaults: {budget: 1.5s, max_new_tokens: 1, expected_tokens: 1}",
        "defaults: {budget: 1500}",
        "defaults: {budget: soon}",
        "defaults: {budget: null}",
        "defaults: {budgt: 1s}",
        "defaults: []",
        "defaults: {max_new_tokens: 0}",
        "defaults: {max_new_tokens: '9'}",
        "defaults: {draft: {max_denoising_steps: 8, t_min: 0.1, t_max: 2}}",
        "defaults: {draft: {max_denoising_steps: [4, 8]}}",
        "defaults: {draft: {max_denoising_steps: []}}",
        "defaults: {draft: {max_denoising_steps: {from: 8, to: 10}}}",
        "defaults: {draft: {max_denoising_steps: {from: 8}}}",
        "defaults: {draft: {max_denoising_steps: 0}}",
        "defaults: {draft: {max_denoising_steps: 1025}}",
        "defaults: {draft: {num_diffusion_steps: 8}}",
        "defaults: {draft: {num_diffusion_steps: 8, max_denoising_steps: 8}}",
        "defaults: {draft: {t_min: 0}}",
        "defaults: {draft: {entropy_bound: -0.1}}",
        "defaults: {refine: {mode: none}}",
        "defaults: {refine: {mode: [none, verify]}}",
        "defaults: {refine: {mode: []}}",
        "defaults: {refine: {mode: verfy}}",
        "defaults: {refine: {scorer: self, min_token_logprob: -4, min_mean_logprob: -0.5}}",
        "defaults: {refine: {scorer: me}}",
        "defaults: {refine: {min_mean_logprob: 1}}",
        "models: {refiner: null}",
        "models: {refiner: {backend: huggingface, model: a/b}}",
        "models: {refiner: {backend: magic}}",
        "models: {refiner: {model: ''}}",
        "tasks: {chat: {description: Talk, budget: 2s, expected_tokens: 9}}",
        "tasks: {chat: null}",
        "tasks: [chat]",
        "rules: [{name: a, when: {blanks: true, prompt_tokens: {above: 3}}}]",
        "rules: [{name: a, when: {budget: {below: 5}}}]",
        "rules: [{name: a}]",
        "rules: [{name: '', when: {}}]",
        "rules: {}",
        "on_deadline: fail",
        "on_deadline: null",
        "tasks: {a: {}}\nquality: {a: {draft: {'4': 0.5}}}",
        "version: 2",
        "extra: 1",
    ],
)
def test_editors_and_the_loader_agree(body: str) -> None:
    text = body if body.startswith("version") else f"version: 1\n{body}\n"
    try:
        parse_policy(text, "p.yaml")
        is_policy = True
    except PolicyError:
        is_policy = False
    assert allows(SCHEMA, plain(text)) == is_policy
