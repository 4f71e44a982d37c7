"""What callers may ask for, and what they are told when they may not."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import RequestError
from hybrid.requests import MAX_CHARACTERS, make_request, read_requests
from hybrid.types import Message, Overrides, Request


def test_a_prompt_alone_leaves_everything_to_the_policy() -> None:
    assert make_request("hello", {}) == Request(prompt="hello")


def test_every_option_arrives() -> None:
    request = make_request(
        "hello",
        {
            "task": "chat",
            "budget": "600ms",
            "max_new_tokens": 12,
            "infill": "a <blank:1>",
            "seed": 3,
            "max_denoising_steps": 8,
            "entropy_bound": 0.2,
            "t_min": 0.1,
            "t_max": 1,
            "stability_threshold": 0,
            "confidence_threshold": 0.01,
            "refine": "verify",
            "temperature": 0.7,
            "effort": "low",
            "timeout": "2s",
        },
    )
    assert request == Request(
        prompt="hello",
        task="chat",
        budget_s=0.6,
        max_new_tokens=12,
        infill="a <blank:1>",
        seed=3,
        overrides=Overrides(8, 0.2, 0.1, 1.0, 0, 0.01, "verify", 0.7),
        effort="low",
        timeout_s=2.0,
    )


def test_budgets_may_be_timedeltas() -> None:
    assert make_request("x", {"budget": timedelta(milliseconds=250)}).budget_s == 0.25


def test_steps_have_a_second_name() -> None:
    assert make_request("x", {"num_diffusion_steps": 9}).overrides.max_denoising_steps == 9


def test_conversations_may_be_dicts() -> None:
    turns: list[Any] = [
        {"role": "system", "content": "be brief"},
        Message("user", "hello"),
    ]
    assert make_request(turns, {}).conversation == (
        Message("system", "be brief"),
        Message("user", "hello"),
    )


def test_a_content_may_be_a_list_of_text_parts() -> None:
    turns: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("hel", "lo")]},
        {"role": "tool", "content": "<eos>", "control_tokens": True},
    ]
    request = make_request(turns, {})
    assert request.conversation == (
        Message("developer", "be brief"),
        Message("user", "hello", ("hel", "lo")),
        Message("tool", "<eos>", control_tokens=True),
    )
    assert request.question == "hello"


def test_a_request_passes_through_untouched() -> None:
    request = Request(prompt="x", seed=1)
    assert make_request(request, {}) is request
    with pytest.raises(RequestError, match="options"):
        make_request(request, {"seed": 2})


@pytest.mark.parametrize(
    ("prompt", "options", "field", "said"),
    [
        ("", {}, "prompt", "at least one word"),
        (" \n\t", {}, "prompt", "at least one word"),
        ([], {}, "messages", "end a conversation with a user's message"),
        ([{"role": "system", "content": "x"}], {}, "messages", "user's message"),
        ([{"role": "user", "content": "x", "name": "y"}], {}, "messages", "role"),
        ([{"role": "user", "content": "x", "control_tokens": 1}], {}, "messages", "role"),
        ([{"role": "user", "content": []}], {}, "messages", "content"),
        ([{"role": "user", "content": ["x"]}], {}, "messages", "text parts"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "messages", "text parts"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            {"infill": "<blank:1>"},
            "infill",
            "whole answer",
        ),
        ([{"role": "usr", "content": "x"}], {}, "messages", "role"),
        ([{"role": "user"}], {}, "messages", "role"),
        ([{"role": "user", "content": " "}], {}, "prompt", "at least one word"),
        ("half a pair: \ud800", {}, "prompt", "UTF-8"),
        ([{"role": "user", "content": "\udfff"}], {}, "messages", "UTF-8"),
        ("x", {"infill": "\ud800<blank:1>"}, "infill", "UTF-8"),
        (123, {}, "prompt", "a text"),
        (None, {}, "prompt", "a text"),
        ("x" * (MAX_CHARACTERS + 1), {}, "prompt", f"at most {MAX_CHARACTERS}"),
        ("x", {"infill": "x" * (MAX_CHARACTERS + 1)}, "infill", f"at most {MAX_CHARACTERS}"),
        ([Message("user", "x" * 10**6)] * 5, {}, "messages", f"at most {MAX_CHARACTERS}"),
        ("x", {"deterministic": 1}, "deterministic", "true or false"),
        (b"x", {}, "prompt", "a text"),
        ({"role": "user", "content": "x"}, {}, "prompt", "a list of messages"),
        ([1], {}, "messages", "role"),
        ([{"role": "user", "content": 5}], {}, "messages", "content"),
        ("x", {"task": 5}, "task", "a text"),
        ("x", {"infill": 5}, "infill", "a text"),
        ("x", {"refine": 5}, "refine", "one of none"),
        ("x", {"budget": "500"}, "budget", "500ms"),
        ("x", {"budget": "0ms"}, "budget", "above zero"),
        ("x", {"budget": "-1s"}, "budget", "above zero"),
        ("x", {"budget": "\uff12s"}, "budget", "with a unit"),
        ("x", {"budget": 500}, "budget", "with a unit"),
        ("x", {"budget": timedelta(0)}, "budget", "above zero"),
        ("x", {"budget": timedelta(seconds=-1)}, "budget", "above zero"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens", "from 1 up"),
        ("x", {"max_denoising_steps": -3}, "max_denoising_steps", "from 1"),
        ("x", {"max_denoising_steps": 1025}, "max_denoising_steps", "from 1 to 1024"),
        ("x", {"max_denoising_steps": True}, "max_denoising_steps", "from 1"),
        ("x", {"num_diffusion_steps": 0}, "max_denoising_steps", "from 1"),
        (
            "x",
            {"num_diffusion_steps": 4, "max_denoising_steps": 4},
            "num_diffusion_steps",
            "one setting",
        ),
        ("x", {"seed": -1}, "seed", "from 0"),
        ("x", {"seed": 2**63}, "seed", "to 9223372036854775807"),
        ("x", {"entropy_bound": -0.1}, "entropy_bound", "from 0 up"),
        ("x", {"t_max": float("nan")}, "t_max", "above 0"),
        ("x", {"t_min": "hot"}, "t_min", "above 0"),
        ("x", {"t_min": 0}, "t_min", "a number above 0"),
        ("x", {"stability_threshold": 1.5}, "stability_threshold", "a whole number from 0 up"),
        ("x", {"refine": "verfy"}, "refine", "did you mean 'verify'?"),
        ("x", {"buget": "1s"}, "option", "did you mean 'budget'?"),
    ],
)
def test_what_cannot_be_meant_names_the_field(
    prompt: Any, options: Any, field: str, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        make_request(prompt, options)
    assert caught.value.field == field
    assert said in str(caught.value)


def test_a_file_of_requests_is_a_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for file in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(RequestError, match="a UTF-8 text file"):
            read_requests(file)
