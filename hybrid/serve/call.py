"""What an HTTP request asks for and what comes of it, whatever its dialect.

A dialect (chat.py, completions.py, responses.py, messages.py) reads its body into a `Call` and
writes an `Answer`, or the parts of a stream, in its own shape. Nothing here knows HTTP.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybrid.requests import Options, Prompt
from hybrid.types import Denoised, Edit, Result


@dataclass(frozen=True, slots=True)
class Extension:
    """What the request's `hybrid` object says about the answer's form rather than its content."""

    stream_drafts: bool = False
    stream_patches: bool = False
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Each of `prompts` is answered `n` times, under seeds that follow each other.

    `between` are texts that the answer begins and ends with and that the client does not want back:
    the two sides of a fill in the middle. `ignored` are parameters that change nothing here,
    `trace` the W3C trace context that the client sent.
    """

    endpoint: str
    model: str
    prompts: tuple[Prompt, ...]
    options: Options
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False
    between: tuple[str, str] | None = None
    extension: Extension = Extension()
    ignored: tuple[str, ...] = ()
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `stop` is the stop string that ended it; `logprobs` a piece of text and its
    log-probability for each token, None where none were asked for.
    """

    index: int
    text: str
    result: Result
    stop: str | None = None
    logprobs: tuple[tuple[str, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of an answer share. `policy_sha` is the digest of the policy in force."""

    model: str
    policy_sha: str
    decision_id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Answer:
    """All choices: the `n` of the first prompt, then those of the next."""

    head: Head
    choices: Sequence[Choice]
    n: int = 1

    @property
    def prompt_tokens(self) -> int:
        """Tokens read; a prompt's count once, however often it is answered."""
        return sum(c.result.usage.prompt_tokens for c in self.choices[:: self.n])

    @property
    def completion_tokens(self) -> int:
        """Tokens written, of all choices."""
        return sum(choice.result.usage.completion_tokens for choice in self.choices)

    @property
    def denoising_steps(self) -> int:
        """Of all choices."""
        return sum(choice.result.usage.denoising_steps for choice in self.choices)

    @property
    def refiner_passes(self) -> int:
        """Of all choices."""
        return sum(choice.result.usage.refiner_passes for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Started:
    """Part of a stream: a choice is planned, and nothing in it can be refused any more."""

    index: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Part of a stream: final text, to be appended to a choice's."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class DraftFrame:
    """Part of a stream: the newest denoising step of a choice, and those before it that no frame
    has shown.
    """

    index: int
    step: Denoised
    earlier: tuple[Denoised, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftText:
    """Part of a stream: a choice's draft as it stands, before anything refines it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Patch:
    """Part of a stream: what refining changed, as edits of the draft's text."""

    index: int
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Part of a stream: a choice is complete, and all of its text has been sent."""

    choice: Choice


Part = Started | Delta | DraftFrame | DraftText | Patch | Ended
