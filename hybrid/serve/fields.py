"""Fields that several dialects share, and the rule that no parameter is dropped in silence.

A parameter that changes the answer is a field of a body and honoured; one that would change it but
is not possible yet is refused with its name; whatever else a client sends is listed in the response
header `x-hybrid-ignored`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from hybrid.errors import RequestError
from hybrid.requests import Options
from hybrid.types import Message, Role

MAX_TOKENS, MAX_STOPS, MAX_STOP_CHARACTERS, MAX_MESSAGES = 1_000_000, 16, 256, 1024
_TEXT_PARTS = ("text", "input_text", "output_text")
_HEADER_SAFE, _MOST_IGNORED = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII), 32


class Body(BaseModel):
    """A request's body: what it does not know is kept, to be named in `x-hybrid-ignored`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def extras(self) -> dict[str, Any]:
        """What was sent beside the fields, without nulls."""
        sent = self.model_extra or {}
        return {name: value for name, value in sent.items() if value is not None}


def _join_parts(value: object) -> object:
    """The text of a list of text parts, one after the other."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            named = f"a part of type {kind!r}" if isinstance(kind, str) else "a part"
            raise ValueError(f"{named} cannot be read; give text, or parts of type text")
        texts.append(part["text"])
    return "".join(texts)


_PART = {
    "type": "object",
    "properties": {"type": {"enum": list(_TEXT_PARTS)}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str,
    BeforeValidator(_join_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}),
]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    list[StopText],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                {
                    "type": "array",
                    "maxItems": MAX_STOPS,
                    "items": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": MAX_STOP_CHARACTERS,
                    },
                },
            ]
        }
    ),
]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Turn(BaseModel):
    """One message. `developer` is read as `system`."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


Turns = Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def conversation(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages; raises RequestError for a turn that calls a tool."""
    for number, turn in enumerate(turns):
        if (turn.model_extra or {}).get("tool_calls"):
            field = f"messages.{number}.tool_calls"
            raise RequestError(field, "a list", "leave it out: tools cannot be called yet")
    return tuple(Message(_ROLES[turn.role], turn.content) for turn in turns)


def refuse(given: Mapping[str, Any], neutral: Mapping[str, tuple[object, str]]) -> list[str]:
    """The names of `given` that change nothing; raises RequestError for one that would.

    `neutral` has the value of a parameter that asks for nothing, and what to do instead.
    """
    for name, value in given.items():
        if name in neutral:
            nothing, allowed = neutral[name]
            if value != nothing and value not in ([], {}):
                raise RequestError(name, _short(value), allowed)
    return [name for name in given if name not in neutral]


def sampling(
    temperature: float | None, top_p: float | None, seed: int | None, max_tokens: int | None
) -> Options:
    """Options of the parameters that every dialect has; raises RequestError for `top_p` below 1."""
    if top_p not in (None, 1.0):
        raise RequestError("top_p", top_p, "1: tokens are drawn from the whole distribution")
    if seed is not None:
        seed %= 2**63
    options = Options(temperature=temperature, seed=seed, max_new_tokens=max_tokens)
    return without_nulls(options)


def without_nulls(options: Options) -> Options:
    """The options that were given."""
    return cast(Options, {name: given for name, given in options.items() if given is not None})


def header_list(names: Iterable[str]) -> str:
    """Names of parameters as a header's value; names that a header cannot hold are counted."""
    unique = list(dict.fromkeys(names))
    safe = [name for name in unique if _HEADER_SAFE.fullmatch(name)][:_MOST_IGNORED]
    rest = len(unique) - len(safe)
    return ", ".join([*safe, *([f"and {rest} more"] if rest else [])])


def _short(value: object) -> object:
    return value if isinstance(value, int | float | bool) else str(value)[:60]
