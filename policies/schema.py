"""What a policy file may say: strict, versioned, and described for editors.

One value is an order; a list or a range is the planner's freedom. Everything optional is inherited:
defaults, then the task, then the first matching rule, then the request itself, the later winning.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
)

from hybrid.deadline import parse_duration
from hybrid.errors import RequestError
from hybrid.sampler_settings import SAMPLER_SETTINGS
from hybrid.types import MAX_STEPS, Activations, Effort, RefineMode, Scorer, SignalValue

MAX_TASKS, MAX_RULES = 500, 200
STEPS, STEPS_ALIAS = "max_denoising_steps", "num_diffusion_steps"
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_NOT_IN_URL = re.compile(r"[\s\x00-\x1f\\]")
_STEPS_HELP = f"a number of steps from 1 to {MAX_STEPS}, a list of them, or {{from: 8, to: 10}}"


def _read_duration(value: object) -> float:
    try:
        return parse_duration(value if isinstance(value, str) else "")
    except RequestError as error:
        raise ValueError(f"{value!r} is not a duration; {error.allowed}") from None


def _write_duration(seconds: float) -> str:
    """The duration as a policy file says it, in seconds."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _read_steps(value: object) -> tuple[int, ...]:
    if isinstance(value, dict) and value.keys() == {"from", "to"}:
        low, high = _read_step(value["from"]), _read_step(value["to"])
        if low > high:
            raise ValueError(f"from: {low} is above to: {high}")
        return tuple(range(low, high + 1))
    if isinstance(value, list | tuple) and value:
        return tuple(sorted({_read_step(item) for item in value}))
    return (_read_step(value),)


def _read_step(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_STEPS:
        raise ValueError(f"{value!r} is not {_STEPS_HELP}")
    return value


def _check_url(url: str) -> str:
    """A server's address; its host and port are looked at, because clients fail on them late."""
    example = "write one such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and ":" in host:
            ip_address(host.partition("%")[0])
        named = host is not None and (":" in host or _HOST.fullmatch(host.encode("idna").decode()))
    except ValueError as error:
        raise ValueError(f"is not a server's address ({error}); {example}") from None
    if parts.scheme not in ("http", "https") or not named or port == 0 or _NOT_IN_URL.search(url):
        raise ValueError(f"{url!r} is not a server's address; {example}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user or password; a server's key comes from api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("ends with its path: no ? and no #")
    return url


def _read_steps_key(value: object) -> object:
    """JSON, which is YAML too, has only text for keys."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _read_version(value: object) -> object:
    if type(value) is not int:  # true and 1.0 equal 1
        raise ValueError(f"{value!r} is not the whole number 1")
    return value


def _as_tuple(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, str) else value


Duration = Annotated[
    float,
    BeforeValidator(_read_duration),
    PlainSerializer(_write_duration, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?(us|ms|s|m|h)$"}),
]
Url = Annotated[
    str,
    AfterValidator(_check_url),
    WithJsonSchema({"type": "string", "pattern": r"^https?://\S+$"}),
]
_STEP_SCHEMA = {"type": "integer", "minimum": 1, "maximum": MAX_STEPS}
Steps = Annotated[
    tuple[int, ...],
    BeforeValidator(_read_steps),
    WithJsonSchema(
        {
            "anyOf": [
                _STEP_SCHEMA,
                {"type": "array", "items": _STEP_SCHEMA, "minItems": 1},
                {
                    "type": "object",
                    "properties": {"from": _STEP_SCHEMA, "to": _STEP_SCHEMA},
                    "required": ["from", "to"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
StepsKey = Annotated[int, BeforeValidator(_read_steps_key)]
_MODE_SCHEMA = {"enum": list(get_args(RefineMode))}
Modes = Annotated[
    tuple[RefineMode, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(lambda modes: tuple(dict.fromkeys(modes))),
    Field(min_length=1),
    WithJsonSchema(
        {"anyOf": [_MODE_SCHEMA, {"type": "array", "items": _MODE_SCHEMA, "minItems": 1}]}
    ),
]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def _describe_alias(schema: dict[str, Any]) -> None:
    """Let editors know the other name of the steps, which the loader reads."""
    described = {"description": f"Another name of {STEPS}.", "deprecated": True}
    schema["properties"][STEPS_ALIAS] = schema["properties"][STEPS] | described
    schema["not"] = {"required": [STEPS, STEPS_ALIAS]}


class Section(BaseModel):
    """A mapping of the file; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """One model and the code that runs it."""

    backend: Literal["native", "huggingface"] = Field(
        default="native", description="native: hybrid's own stack; huggingface: transformers."
    )
    model: str = Field(
        default="embedded",
        min_length=1,
        description="embedded, a folder, or a name on the Hugging Face hub.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (a GPU, where there is one and the model is not small), cpu, cuda, "
        "cuda:1.",
    )
    activations: Activations = Field(
        default="float",
        exclude_if=lambda value: value == "float",  # what was measured without it still holds
        description="What NVFP4 weights are multiplied by. float: activations as they are; nvfp4: "
        "rounded to four bits as well, less exact, on Blackwell GPUs only.",
    )


class RefinerModelSection(ModelSection):
    """The refiner. A server's tokens are its model's: `model` names the tokenizer to read here."""

    backend: Literal["native", "huggingface", "vllm"] = Field(  # type: ignore[assignment]
        default="native",
        description="native: hybrid's own stack; huggingface: transformers; vllm: a server that "
        "speaks OpenAI's protocol with vLLM's additions.",
    )
    url: Url | None = Field(
        default=None,
        description="vllm: the server, such as http://localhost:8000/v1.",
    )
    served_as: str | None = Field(
        default=None, min_length=1, description="vllm: the server's name for it, if not `model`."
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^(OPENAI_API_KEY|VLLM_API_KEY|HYBRID_\w+)$",
        description="vllm: the environment variable with the server's key, if it wants one: "
        "OPENAI_API_KEY, VLLM_API_KEY, or a name that starts with HYBRID_.",
    )
    timeout: Duration = Field(
        default=30.0, description="vllm: the longest wait for one answer of the server."
    )


class ModelsSection(Section):
    """The pair that the policy is for."""

    drafter: ModelSection | None = Field(
        default=ModelSection(), description="The diffusion model; null for none."
    )
    refiner: RefinerModelSection | None = Field(
        default=RefinerModelSection(), description="The autoregressive model; null for none."
    )


class DraftSection(Section):
    """How a draft is denoised; what is left out is inherited."""

    model_config = ConfigDict(json_schema_extra=_describe_alias)

    max_denoising_steps: Steps | None = Field(
        default=None, description=SAMPLER_SETTINGS[STEPS].description
    )
    entropy_bound: Annotated[float | None, Field(**SAMPLER_SETTINGS["entropy_bound"].field)] = None
    t_min: Annotated[float | None, Field(**SAMPLER_SETTINGS["t_min"].field)] = None
    t_max: Annotated[float | None, Field(**SAMPLER_SETTINGS["t_max"].field)] = None
    stability_threshold: Annotated[
        int | None, Field(**SAMPLER_SETTINGS["stability_threshold"].field)
    ] = None
    confidence_threshold: Annotated[
        float | None, Field(**SAMPLER_SETTINGS["confidence_threshold"].field)
    ] = None


class RefineSection(Section):
    """Whether and how the autoregressive model acts on the draft."""

    mode: Modes | None = Field(
        default=None,
        description="One mode is an order, a list the planner's choice: none, score, best_of "
        "(several drafts), repair (weak tokens rewritten), guide (votes while denoising), cascade, "
        "verify (equal to the refiner alone), rewrite (with the draft in the prompt), generate (no "
        "draft at all).",
    )
    scorer: Scorer | None = Field(
        default=None,
        description="Who scores a draft: the refiner, the drafter itself (self), or the entropy of "
        "its last step.",
    )
    min_mean_logprob: float | None = Field(
        default=None, le=0, description="cascade: a draft below this mean is not accepted."
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        description="Of what the refiner writes: 0, the default, takes the likeliest tokens.",
    )
    repair_with: Literal["drafter", "refiner"] | None = Field(
        default=None, description="repair: who rewrites weak tokens; the drafter if left out."
    )
    guide_every: int | None = Field(
        default=None, ge=1, description="guide: denoising steps between reviews; 4 if left out."
    )
    drafts: int | None = Field(
        default=None, ge=2, le=16, description="best_of: drafts to choose from; 4 if left out."
    )
    min_token_logprob: float | None = Field(
        default=None,
        le=0,
        description="cascade: a draft with a token below this is not accepted; repair: such tokens "
        "are denoised again; -4 where neither threshold is given.",
    )


class DefaultsSection(Section):
    """What holds unless a task, a rule or the request says otherwise."""

    budget: Duration | None = Field(default=None, description="Time to answer in, such as 500ms.")
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest answer, in tokens.")
    expected_tokens: int = Field(
        default=32, ge=1, description="Length of a typical answer, for predicting latency."
    )
    draft: DraftSection = DraftSection()
    refine: RefineSection = RefineSection()


class TaskSection(Section):
    """One kind of request."""

    description: str = Field(default="", description="For people.")
    budget: Duration | None = Field(default=None, description="Time to answer in.")
    expected_tokens: int | None = Field(default=None, ge=1, description="Typical answer length.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    draft: DraftSection = DraftSection()
    refine: RefineSection = RefineSection()


class DurationBounds(Section):
    """Between two durations; a request without a budget matches no bound."""

    below: Duration | None = Field(default=None, description="Shorter than this.")
    above: Duration | None = Field(default=None, description="Longer than this.")


class CountBounds(Section):
    """Between two counts."""

    below: int | None = Field(default=None, ge=1, description="Fewer than this.")
    above: int | None = Field(default=None, ge=0, description="More than this.")


class WhenSection(Section):
    """All that is given must hold; nothing given matches everything."""

    task: Names | None = Field(default=None, description="One task, or any of a list.")
    budget: DurationBounds | None = Field(
        default=None, description="Of the request, or of its task or the defaults."
    )
    prompt_tokens: CountBounds | None = Field(default=None, description="Length of the prompt.")
    blanks: bool | None = Field(default=None, description="Whether it is an infill request.")
    constraints: CountBounds | None = Field(
        default=None, description="Checks that the answer must pass."
    )
    load: CountBounds | None = Field(
        default=None, description="Other requests that are being answered."
    )
    signals: dict[str, SignalValue] = Field(
        default={}, description="Signals of the application's own, by name: equal to these."
    )


class RuleSection(Section):
    """An exception: the first rule that matches overrides task and defaults."""

    name: str = Field(min_length=1, description="Shown in every decision that it makes.")
    when: WhenSection
    budget: Duration | None = Field(default=None, description="Time to answer in.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    draft: DraftSection = DraftSection()
    refine: RefineSection = RefineSection()


class QualitySection(Section):
    """Measured accuracy of one task: what the planner weighs against latency."""

    source: Literal["measured", "published"] = Field(
        default="measured", description="measured here, or published elsewhere."
    )
    draft: dict[StepsKey, float] = Field(description="Accuracy by cap on denoising steps.")
    refiner: float = Field(ge=0, le=1, description="Accuracy of greedy autoregressive decoding.")
    steps_used: dict[StepsKey, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="Mean steps really used, by cap; adaptive stopping saves the rest."
    )
    agreement: dict[StepsKey, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description="Share of a draft that verify keeps on average, by cap."
    )
    cascade: dict[StepsKey, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description="Accuracy of cascade at its default threshold, by cap."
    )


class Policy(Section):
    """A policy: how requests are answered, by task and latency budget."""

    version: Annotated[Literal[1], BeforeValidator(_read_version)] = Field(
        description="Of this format."
    )
    extends: str | None = Field(
        default=None,
        description="A preset, or a file beside this one, that holds where this one says nothing.",
    )
    description: str = Field(default="", description="For people.")
    models: ModelsSection = ModelsSection()
    defaults: DefaultsSection = DefaultsSection()
    tasks: dict[str, TaskSection] = Field(
        default={}, max_length=MAX_TASKS, description="Kinds of requests by name."
    )
    rules: list[RuleSection] = Field(
        default=[], max_length=MAX_RULES, description="Exceptions; the first match wins."
    )
    effort: dict[Effort, Duration] = Field(
        default={},
        exclude_if=lambda value: not value,  # the digest of a policy without it stays as it was
        description="Budgets of requests that ask for a reasoning_effort instead of a duration.",
    )
    on_deadline: Literal["return_draft", "fail"] = Field(
        default="return_draft", description="At the deadline: the best answer so far, or an error."
    )
    deterministic: bool = Field(
        default=False,
        description="Plan by the calibrated costs alone: not by load, by what was learned of "
        "latency, or by how busy the machine is.",
    )
    quality: dict[str, QualitySection] = Field(
        default={}, description="Measured accuracies by task; a prior stands in where none is."
    )
    _name: str = PrivateAttr(default="inline")
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _values: dict[str, Any] = PrivateAttr(default={})  # as written, for a policy that extends this
    _variables: dict[tuple[str | int, ...], str] = PrivateAttr(default={})  # see `variables`

    @property
    def name(self) -> str:
        """The preset's name or the file."""
        return self._name

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about how the file was understood."""
        return self._notes

    @property
    def variables(self) -> Mapping[tuple[str | int, ...], str]:
        """The text, by location, of values that the environment took part in: what is shown
        in their place.
        """
        return self._variables


def policy_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a policy file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Policy.model_json_schema(),
    }
