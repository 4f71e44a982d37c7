"""Each sampler setting has one definition, which Python and YAML share."""

from dataclasses import fields
from typing import Any

import pytest

from hybrid.errors import PolicyError, RequestError
from hybrid.policies.loader import parse_policy
from hybrid.policies.schema import DraftSection
from hybrid.requests import Options, make_request
from hybrid.sampler_settings import SAMPLER_SETTINGS
from hybrid.types import DraftParams, Overrides

NAMES = [field.name for field in fields(DraftParams)]


def test_every_home_of_the_settings_has_the_same_names() -> None:
    assert [*SAMPLER_SETTINGS] == NAMES
    assert [*DraftSection.model_fields] == NAMES
    assert [name for name in Options.__annotations__ if name in NAMES] == NAMES
    assert [field.name for field in fields(Overrides)][: len(NAMES)] == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, 0, 0.0, 0.5, 1, 1024, 1025, True, "1", None, float("inf")])
def test_a_value_is_allowed_in_a_request_where_it_is_in_a_policy(name: str, value: Any) -> None:
    try:
        options: Any = {name: value}
        make_request("x", options)
        is_allowed = True
    except RequestError as error:
        assert (error.field, error.allowed) == (name, SAMPLER_SETTINGS[name].allowed)
        is_allowed = False
    written = {None: "null", True: "true", float("inf"): ".inf"}.get(value, repr(value))
    if value is not True and value == 1:
        written = repr(value)
    # The other temperature is set as well, so that the two do not contradict each other.
    other = {"t_min": ", t_max: 9999", "t_max": ", t_min: 0.001"}.get(name, "")
    text = f"version: 1\ndefaults: {{draft: {{{name}: {written}{other}}}}}\n"
    try:
        parse_policy(text, "p")
        assert is_allowed
    except PolicyError:
        assert not is_allowed


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_allowed(name: str) -> None:
    SAMPLER_SETTINGS[name].read(name, getattr(DraftParams(), name))
