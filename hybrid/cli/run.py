"""`hybrid run`: one prompt, one answer.

The answer alone goes to stdout, so that it can be piped; how it came about goes to stderr.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Protocol, TextIO

from cyclopts import Parameter
from rich.padding import Padding

from hybrid.cli.live import MARGIN, answer_live
from hybrid.cli.render import printable
from hybrid.cli.summary import summary
from hybrid.cli.terminal import Terminal
from hybrid.errors import RequestError
from hybrid.policies.yaml_reader import plain_scalar
from hybrid.requests import Options, make_request
from hybrid.serialization import to_json
from hybrid.types import Event, Request, Result, SignalValue

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


class Events(Iterator[Event], Protocol):
    """A stream of events that can be given up."""

    def close(self) -> None: ...


class Answers(Protocol):
    """What a command needs of `Hybrid`."""

    def load(self) -> object: ...
    def generate(self, prompt: Request, /) -> Result: ...
    def stream(self, prompt: Request, /) -> Events: ...


def run(
    prompt: str,
    /,
    *,
    task: str | None = None,
    budget: str | None = None,
    policy: str = "balanced",
    steps: int | None = None,
    refine: str | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    infill: str | None = None,
    deterministic: Flag = False,
    signal: list[str] | None = None,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    no_live: Flag = False,
) -> None:
    """Answer a prompt within its budget.

    Parameters
    ----------
    prompt
        What to answer; `-` reads it from standard input (UTF-8).
    task
        The policy's task to treat it as; recognised from the prompt if left out.
    budget
        Longest time the answer may take, with a unit: 500ms, 2s.
    policy
        A preset's name or a policy file.
    steps
        Most denoising steps a canvas (max_denoising_steps).
    refine
        What the refiner does: none, score, best_of, repair, guide, cascade, verify, rewrite or
        generate.
    seed
        Repeats an answer; drawn and shown if left out.
    max_new_tokens
        Longest answer in tokens.
    infill
        A template of the answer with blanks to fill in, written <blank:N> (N tokens).
    deterministic
        Plan by the calibrated costs alone: not by what was learned of latency.
    signal
        A signal of the application that rules ask for, as NAME=VALUE; may be repeated.
    as_json
        Print one JSON object with everything that was decided and measured.
    no_live
        Print the finished answer only, also on a terminal.
    """
    options = Options(
        task=task,
        budget=budget,
        max_denoising_steps=steps,
        refine=refine,
        seed=seed,
        max_new_tokens=max_new_tokens,
        infill=None
        if infill is None
        else read_text(infill.encode(errors="surrogateescape"), "--infill"),
        deterministic=deterministic,
    )
    try:
        request = make_request(read_prompt(prompt, sys.stdin), options)
        from hybrid.api import Hybrid  # the policy library, a tenth of a second

        with Hybrid.from_policy(policy, signals=read_signals(signal)) as hybrid:
            answer(hybrid, request, as_json=as_json, live=not no_live)
    except RequestError as error:
        raise RequestError(option_name(error.field), error.given, error.allowed) from error


def answer(hybrid: Answers, request: Request, *, as_json: bool = False, live: bool = True) -> None:
    """Answer on stdout: as JSON, crystallising if somebody watches, or as plain text."""
    console, errors = Terminal(), Terminal(stderr=True)
    if as_json:
        hybrid.load()
        print(to_json(hybrid.generate(request)))
        return
    if live and console.can_animate:
        with console.status("loading the models"):
            hybrid.load()
        with closing(hybrid.stream(request)) as events:
            result = answer_live(events, console)
        console.print()
        console.print(Padding(summary(result), (0, MARGIN), expand=False))
        return
    hybrid.load()
    result = hybrid.generate(request)
    # A program at the other end gets the answer as it is; a terminal must not obey it.
    print(printable(result.text) if console.is_terminal else result.text, flush=True)
    errors.print(summary(result))


def read_prompt(given: str, stdin: TextIO | None) -> str:
    """The prompt argument, or standard input without its last line's end for `-`."""
    if given != "-":
        return read_text(given.encode(errors="surrogateescape"), "prompt")
    if stdin is None:
        raise RequestError("prompt", given, "standard input is closed; give the prompt itself")
    return read_text(stdin.buffer.read(), "prompt").removesuffix("\n").removesuffix("\r")


def read_text(data: bytes, field: str) -> str:
    """Bytes as UTF-8; raises RequestError naming the field and the offset of the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = data[error.start : error.start + 1]
        allowed = f"write UTF-8; byte {error.start} is not ({error.reason})"
        raise RequestError(field, bad, allowed) from error


def read_signals(given: list[str] | None) -> dict[str, Callable[[Request], SignalValue]]:
    """`NAME=VALUE` as an application's signals; numbers, true and false are read as such."""
    signals: dict[str, Callable[[Request], SignalValue]] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise RequestError("--signal", text, "write NAME=VALUE")
        read = plain_scalar(value)
        said = value if read is None else read
        signals[name] = lambda _, said=said: said  # type: ignore[misc]
    return signals


def option_name(field: str) -> str:
    """How a request's field is written on the command line."""
    if field == "max_denoising_steps":
        return "--steps"
    if field in Options.__annotations__:
        return f"--{field.replace('_', '-')}"
    return field
