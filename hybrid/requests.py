"""From what a caller writes to a valid `Request`: the edge that Python, CLI and HTTP share.

Field names in errors are the caller's own, so that every edge can point at what was typed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

from hybrid.checks import MAX_CHECKS, read_check
from hybrid.deadline import parse_duration
from hybrid.errors import RequestError, did_you_mean
from hybrid.files import read_regular_file
from hybrid.sampler_settings import SAMPLER_SETTINGS
from hybrid.types import (
    Check,
    Effort,
    Message,
    Overrides,
    RefineMode,
    Request,
    Role,
)

MAX_CHARACTERS = 4_000_000  # of a conversation or a template: the longest context, several times
MAX_FILE_BYTES = 100_000_000
Prompt = str | Sequence[Message | Mapping[str, object]] | Request
_MESSAGE_KEYS = {"role", "content", "control_tokens"}


class Options(TypedDict, total=False):
    """Keyword arguments of every call that takes a prompt; what is left out, the policy decides."""

    task: str | None
    """A task of the policy; without it the task is recognised from the prompt."""
    budget: str | timedelta | None
    """How long the answer may take: a duration with its unit ("500ms", "2s") or a timedelta."""
    timeout: str | timedelta | None
    """An upper bound of the budget, whether the request or the policy sets that."""
    effort: str | None
    """A level of the policy's `effort`, which stands for a budget: "low", "medium", "high", ..."""
    max_new_tokens: int | None
    """The longest answer, in tokens; at least 1."""
    infill: str | None
    """A template of the answer; `<blank:N>` is N tokens to write, all other text is kept."""
    seed: int | None
    """From 0 to 2**63 - 1; the same seed and plan give the same text. Drawn if left out."""
    max_denoising_steps: int | None
    """The most denoising steps a canvas may take, from 1 to 1024."""
    num_diffusion_steps: int | None
    """Another name of `max_denoising_steps`."""
    entropy_bound: float | None
    """The joint uncertainty, in nats, of the positions that one step may accept."""
    t_min: float | None
    """The sampling temperature at a canvas's last step."""
    t_max: float | None
    """The sampling temperature at a canvas's first step."""
    stability_threshold: int | None
    """A canvas may end once this many steps in a row have left its best tokens unchanged."""
    confidence_threshold: float | None
    """A canvas may end once its mean entropy is below this many nats a position."""
    refine: str | None
    """What the refiner does: a refine mode such as "none", "cascade" or "verify"."""
    temperature: float | None
    """Multiplies the draft's temperatures; for what the refiner writes, it is the temperature."""
    deterministic: bool
    """Plan by the calibrated costs alone, whatever the load and recent latencies."""
    checks: Sequence[object]
    """What the answer must satisfy: mappings such as `{"regex": "^[0-9]+$"}`, or functions."""


def make_request(prompt: Prompt, options: Options) -> Request:
    """A request of a prompt or a conversation; raises RequestError for what cannot be meant."""
    if isinstance(prompt, Request):
        if options:
            raise RequestError("options", [*options], "a Request carries its own; use replace()")
        return prompt
    unknown = options.keys() - Options.__annotations__.keys()
    for name in unknown:
        hint = did_you_mean(name, Options.__annotations__)
        raise RequestError("option", name, f"one of {[*Options.__annotations__]}{hint}")
    messages = () if isinstance(prompt, str) else _messages(prompt)
    if options.get("infill") is not None and messages and messages[-1].role == "assistant":
        allowed = "a template is the whole answer: end with a user's message"
        raise RequestError("infill", options["infill"], allowed)
    return Request(
        prompt=_check_prompt(prompt) if isinstance(prompt, str) else "",
        messages=messages,
        task=_text("task", options.get("task")),
        budget_s=_duration("budget", options.get("budget")),
        timeout_s=_duration("timeout", options.get("timeout")),
        effort=_effort(options.get("effort")),
        max_new_tokens=_whole("max_new_tokens", options.get("max_new_tokens"), least=1),
        infill=_text("infill", options.get("infill")),
        seed=_whole("seed", options.get("seed"), least=0, most=2**63 - 1),
        checks=_checks(options.get("checks", ())),
        deterministic=_flag("deterministic", options.get("deterministic", False)),
        overrides=Overrides(
            **_sampler(options),
            refine_mode=_refine_mode(options.get("refine")),
            temperature=_number("temperature", options.get("temperature")),
        ),
    )


def read_requests(file: Path) -> list[Request]:
    """The requests of a file with one JSON object a line; blank lines are passed over.

    An object has `prompt` or `messages`, and any of the `Options`. Raises RequestError, whose field
    names the line.
    """
    try:
        lines = read_regular_file(file, MAX_FILE_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RequestError("requests", str(file), f"a UTF-8 text file ({reason})") from None
    requests = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(_from_json(line))
            except RequestError as error:
                field = f"{file}:{number}: {error.field}"
                raise RequestError(field, error.given, error.allowed) from None
    if not requests:
        raise RequestError("requests", str(file), "at least one JSON object, one a line")
    return requests


def _from_json(line: str) -> Request:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError("line", line[:60], f"JSON ({error})") from None
    if not isinstance(values, dict) or ("prompt" in values) == ("messages" in values):
        raise RequestError("line", line[:60], "an object with a prompt or with messages")
    prompt = values.pop("prompt", None) or values.pop("messages", "")
    if not isinstance(prompt, str | list):
        raise RequestError("prompt", prompt, "a text, or a list of messages")
    return make_request(prompt, cast(Options, values))


def _check_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise RequestError("prompt", prompt, "write at least one word")
    return _check_text("prompt", prompt)


def _check_text(field: str, text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise RequestError(field, f"{len(text)} characters", f"at most {MAX_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start : error.end]
        raise RequestError(field, wrong, "text that can be written as UTF-8") from None
    return text


def _messages(turns: Sequence[Message | Mapping[str, object]]) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, bytes):
        raise RequestError("prompt", turns, "a text, a list of messages or a Request")
    messages = tuple(turn if isinstance(turn, Message) else _message(turn) for turn in turns)
    if not messages or messages[-1].role in ("system", "developer"):
        allowed = "end a conversation with a user's message, a tool's, or one to be continued"
        raise RequestError("messages", len(messages), allowed)
    characters = sum(len(message.content) for message in messages)
    if characters > MAX_CHARACTERS:
        raise RequestError("messages", f"{characters} characters", f"at most {MAX_CHARACTERS}")
    _check_prompt(messages[-1].content)
    return messages


def _message(turn: Mapping[str, object]) -> Message:
    allowed = f"give a role {get_args(Role)} and a content: text, or a list of text parts"
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys() <= _MESSAGE_KEYS:
        raise RequestError("messages", turn, allowed)
    role, content, control = turn["role"], turn["content"], turn.get("control_tokens", False)
    parts = _parts(content) if isinstance(content, list | tuple) else ()
    text = "".join(parts) if parts else content
    if role not in get_args(Role) or not isinstance(text, str) or not isinstance(control, bool):
        raise RequestError("messages", turn, allowed)
    return Message(cast(Role, role), _check_text("messages", text), parts, control)


def _parts(content: Sequence[object]) -> tuple[str, ...]:
    """The texts of a content in parts, `{"type": "text", "text": ...}` each."""
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(text, str):
            allowed = 'text parts, {"type": "text", "text": "..."}; nothing else is read'
            raise RequestError("messages", part, allowed)
        texts.append(text)
    return tuple(texts)


def _duration(field: str, duration: str | timedelta | None) -> float | None:
    if duration is None:
        return None
    if isinstance(duration, timedelta):
        duration = f"{duration.total_seconds():.9f}s"
    if not isinstance(duration, str):
        raise RequestError(field, duration, "write a duration with a unit: 500ms, 2s")
    return parse_duration(duration, field)


def _effort(effort: str | None) -> Effort | None:
    if effort is None:
        return None
    if effort not in get_args(Effort):
        hint = did_you_mean(str(effort), get_args(Effort))
        raise RequestError("effort", effort, f"one of {', '.join(get_args(Effort))}{hint}")
    return cast(Effort, effort)


def _sampler(options: Options) -> dict[str, Any]:
    """The sampler's settings that the request gives, the steps under either name."""
    steps, alias = options.get("max_denoising_steps"), options.get("num_diffusion_steps")
    if steps is not None and alias is not None:
        allowed = "give max_denoising_steps or num_diffusion_steps: they are one setting"
        raise RequestError("num_diffusion_steps", alias, allowed)
    given = {**options, "max_denoising_steps": alias if steps is None else steps}
    return {name: setting.read(name, given.get(name)) for name, setting in SAMPLER_SETTINGS.items()}


def _text(field: str, value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RequestError(field, value, "a text")
    return value if value is None else _check_text(field, value)


def _whole(field: str, value: int | None, least: int, most: int | None = None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(field, value, f"a whole number from {least} up")
    if most is not None and value > most:
        raise RequestError(field, value, f"a whole number from {least} to {most}")
    return value


def _number(field: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RequestError(field, value, "a number from 0 up")
    return float(value)


def _flag(field: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise RequestError(field, value, "true or false")
    return value


def _checks(checks: Sequence[object]) -> tuple[Check, ...]:
    if isinstance(checks, str | bytes) or not isinstance(checks, Sequence):
        raise RequestError("checks", checks, "a list of checks")
    if len(checks) > MAX_CHECKS:
        raise RequestError("checks", f"{len(checks)} checks", f"at most {MAX_CHECKS}")
    return tuple(read_check(check) for check in checks)


def _refine_mode(mode: str | None) -> RefineMode | None:
    if mode is None:
        return None
    if mode not in get_args(RefineMode):
        hint = did_you_mean(str(mode), get_args(RefineMode))
        raise RequestError("refine", mode, f"one of {', '.join(get_args(RefineMode))}{hint}")
    return cast(RefineMode, mode)
