"""Every value that travels between the parts. Frozen, plain, and free of torch.

Durations are seconds, probabilities and entropies are natural logarithms (nats), and token ids
are those of the drafter's tokenizer, which the refiner shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "budget"]  # end token, max_new_tokens or context, deadline
RefineMode = Literal[
    "none", "score", "best_of", "repair", "guide", "cascade", "verify", "rewrite", "generate"
]
Guarantee = Literal["none", "draft", "guarded", "ar_or_draft", "lossless"]
Scorer = Literal["refiner", "self", "entropy"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]  # OpenAI's reasoning_effort
DEFAULT_TOKEN_LOGPROB = -4.0  # cascade's threshold where neither is given
# How a GPU multiplies with NVFP4 weights: by activations as they are, or rounded to NVFP4 too.
Activations = Literal["float", "nvfp4"]
SignalValue = str | int | float | bool
# Of a predicted quality: a guess, a figure of others, or measured on this pair and task.
QualitySource = Literal["prior", "published", "measured"]
TaskSource = Literal["given", "recognised", "classified", "default"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `parts` are the pieces of the content where it was given in pieces; some chat templates write
    them otherwise than one text. Text that spells a control token of the model, such as `<eos>`,
    stays text, unless `control_tokens` says that it is meant.
    """

    role: Role
    content: str
    parts: tuple[str, ...] = ()
    control_tokens: bool = False


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a model writes conversations: SHA-256 of its chat template's text, the commit of the hub
    that its folder is of ("" for other folders), and a hash that two templates share where they
    write the same for a number of conversations.
    """

    template: str
    revision: str
    rendering: str


@dataclass(frozen=True, slots=True)
class Overrides:
    """What one request insists on; None leaves the choice to the policy.

    `temperature` multiplies the draft's temperatures and is the refiner's own.
    """

    max_denoising_steps: int | None = None
    entropy_bound: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    stability_threshold: int | None = None
    confidence_threshold: float | None = None
    refine_mode: RefineMode | None = None
    temperature: float | None = None


@runtime_checkable
class Check(Protocol):
    """Something that an answer must satisfy."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def problem(self, text: str) -> str | None:
        """What is wrong with the text, None if nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check of one text; `problem` is None where it passed."""

    name: str
    problem: str | None

    @property
    def passed(self) -> bool:
        """Whether the text satisfies it."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller wants: a prompt or a conversation, and how long it may take.

    `infill` is a template of the answer with blanks written `<blank:N>` (N tokens); its other text
    is kept word for word. `seed` None draws one, which the result names. `checks` are what the
    answer must satisfy. `effort` asks for the budget that the policy gives that level, and
    `timeout_s` is an upper bound of the budget, whoever sets it. With `deterministic`, the plan
    does not depend on the load or on recent latencies.
    """

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    task: str | None = None
    budget_s: float | None = None
    max_new_tokens: int | None = None
    infill: str | None = None
    seed: int | None = None
    overrides: Overrides = Overrides()
    checks: tuple[Check, ...] = ()
    effort: Effort | None = None
    timeout_s: float | None = None
    deterministic: bool = False

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages, with a bare prompt as the user's one turn.

        One that ends with the assistant's message is continued by the answer.
        """
        return self.messages or (Message("user", self.prompt),)

    @property
    def question(self) -> str:
        """The text that is to be answered: that of the user's last message, else of the last."""
        turns = self.conversation
        asked = (turn for turn in reversed(turns) if turn.role == "user")
        return next(asked, turns[-1]).content


@dataclass(frozen=True, slots=True)
class Signals:
    """Cheap facts about a request, read before anything is decided.

    A task is `recognised` by the model's own knowledge of its prompts, or `classified` from the
    words; `task_confidence` (0 to 1) is how sure that is. `load` is how many other requests are
    being answered, `constraints` how many checks the answer must pass; `length_hint` a number that
    the model's own hook reads in the prompt and that may tell how long the answer is, 0 for models
    without one; `custom` are the application's own.
    """

    prompt_tokens: int
    task: str | None
    task_source: TaskSource
    expected_tokens: int
    blank_tokens: int
    constraints: int = 0
    task_confidence: float = 1.0
    load: int = 0
    length_hint: int = 0
    custom: Mapping[str, SignalValue] = field(default_factory=dict)


MAX_STEPS = 1024  # that anybody may ask for on a canvas


@dataclass(frozen=True, slots=True)
class DraftParams:
    """Settings of the denoising loop; the defaults are the published generation_config's.

    The temperature falls linearly from `t_max` to `t_min` over `max_denoising_steps`, so a lower
    cap also cools faster. `entropy_bound` (nats) limits the joint uncertainty of the positions
    accepted in one step. A canvas is finished once `stability_threshold + 1` arg-max canvases in a
    row are equal and the mean entropy is below `confidence_threshold` (nats a position).
    """

    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005


@dataclass(frozen=True, slots=True)
class RefineParams:
    """How the autoregressive model acts on the draft, and when a draft is good enough for it.

    `drafts` is how many `best_of` chooses from, `repair_with` who rewrites weak tokens,
    `guide_every` the denoising steps between two reviews. At `temperature` 0 the refiner writes
    greedily.
    """

    mode: RefineMode = "none"
    scorer: Scorer = "refiner"
    min_mean_logprob: float | None = None
    min_token_logprob: float | None = None
    drafts: int = 4
    repair_with: Literal["drafter", "refiner"] = "drafter"
    guide_every: int = 4
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the planner expects of a plan: latency (seconds) and quality (0 to 1, relative).

    `service_p50_s` and `service_p95_s` are the latency without waiting and without corrections from
    earlier requests: what a finished request is compared with, to learn those corrections. Zero
    where the latency has neither.
    """

    latency_p50_s: float
    latency_p95_s: float
    quality: float
    service_p50_s: float = 0.0
    service_p95_s: float = 0.0
    quality_source: QualitySource = "prior"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate that was not chosen, and why."""

    candidate: str
    predicted: Prediction
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for one request. `draft` None means that the refiner writes alone."""

    draft: DraftParams | None
    refine: RefineParams
    max_new_tokens: int
    budget_s: float | None
    predicted: Prediction
    rule: str
    rejected: Sequence[Rejection] = ()

    @property
    def label(self) -> str:
        """The plan in a few words, such as '16 steps + verify'."""
        return plan_label(self.draft.max_denoising_steps if self.draft else None, self.refine.mode)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        from hybrid.serialization import to_dict

        return to_dict(self)

    def to_json(self) -> str:
        """All of it as one JSON object on one line."""
        from hybrid.serialization import to_json

        return to_json(self)


def plan_label(max_denoising_steps: int | None, mode: RefineMode) -> str:
    """A choice of steps and refining in a few words."""
    if max_denoising_steps is None:
        return "AR alone"
    steps = f"{max_denoising_steps} step{'' if max_denoising_steps == 1 else 's'}"
    return steps if mode == "none" else f"{steps} + {mode}"


@dataclass(frozen=True, slots=True)
class Canvas:
    """How one canvas was denoised. `converged` False means that it ran into the cap or deadline."""

    steps: int
    converged: bool
    mean_entropy: float


@dataclass(frozen=True, slots=True)
class DraftTiming:
    """Where a draft's seconds went; `waiting_s` passed before it was admitted to an engine."""

    prefill_s: float = 0.0
    denoise_s: float = 0.0
    commit_s: float = 0.0
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafter's finished answer, end token included in `token_ids` and left out of `text`.

    So is what the model thought before it answered, which is `thought`.

    `entropy` is the last step's, a token each. `self_logprobs` is each token's causal
    log-probability under the drafter's own encoder; empty unless it was asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    entropy: tuple[float, ...]
    canvases: tuple[Canvas, ...]
    finish_reason: FinishReason
    self_logprobs: tuple[float, ...] = ()
    timing: DraftTiming = DraftTiming()
    thought: str = ""

    @property
    def steps(self) -> int:
        """Denoising steps really used, over all canvases."""
        return sum(canvas.steps for canvas in self.canvases)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a draft was good enough, by which scorer, with a log-probability for each token."""

    accepted: bool
    scorer: Scorer
    mean_logprob: float
    min_logprob: float
    reason: str
    logprobs: tuple[float, ...] = ()
    failed_checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to the draft: characters [start, end) of its text, before and after, and why."""

    start: int
    end: int
    old: str
    new: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Refinement:
    """What the refiner made of the draft, and what it promises about it.

    `thought`, what it thought before it answered, is not part of the text.
    """

    mode: RefineMode
    guarantee: Guarantee
    token_ids: tuple[int, ...]
    text: str
    edits: tuple[Edit, ...]
    accepted_tokens: int
    forward_passes: int
    finish_reason: FinishReason
    seconds: float
    denoising_steps: int = 0
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a request really took, beside what the plan predicted.

    `waiting_s`, a part of the total, passed while others were served: in the queue of the drafter
    and in that of the refiner.
    """

    total_s: float
    plan_s: float
    draft_s: float
    refine_s: float
    predicted_p50_s: float
    predicted_p95_s: float
    budget_s: float | None
    waiting_s: float = 0.0

    @property
    def within_budget(self) -> bool:
        """Whether the answer came in time; always true without a budget."""
        return self.budget_s is None or self.total_s <= self.budget_s


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, and passes through each model."""

    prompt_tokens: int
    completion_tokens: int
    denoising_steps: int
    refiner_passes: int


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, and everything that was decided and measured on the way to it.

    `checks` are the request's, on the answer that was chosen. `notes` are sentences for the reader:
    a refiner that failed, a prompt outside the model's tasks. `id` names the request in logs.
    `thought` is what the model thought before this answer, and never part of it; `prompt_format`
    is None for models without a template.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    signals: Signals
    plan: Plan
    draft: Draft | None
    verdict: Verdict | None
    refinement: Refinement | None
    timing: Timing
    usage: Usage
    seed: int
    notes: tuple[str, ...] = field(default=())
    checks: tuple[CheckOutcome, ...] = ()
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        from hybrid.serialization import to_dict

        return to_dict(self)

    def to_json(self) -> str:
        """All of it as one JSON object on one line."""
        from hybrid.serialization import to_json

        return to_json(self)

    def _repr_html_(self) -> str:
        """For notebooks: the answer and how it came about."""
        from hybrid.serialization import to_html

        return to_html(self)

    thought: str = ""
    prompt_format: PromptFormat | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """Event: the decision is made."""

    signals: Signals
    plan: Plan


@dataclass(frozen=True, slots=True)
class Denoised:
    """Event: one denoising step. The canvas as text pieces, a token each, up to its end token.

    `accepted` are the positions that the step kept, `entropy` their uncertainty in nats.
    """

    canvas: int
    step: int
    max_denoising_steps: int
    pieces: tuple[str, ...]
    accepted: tuple[bool, ...]
    entropy: tuple[float, ...]

    @property
    def text(self) -> str:
        """The draft of this canvas as it stands."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Drafted:
    """Event: the draft is complete."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class Written:
    """Event: the refiner has written more; `text` is the answer as far as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class Patched:
    """Event: the refiner has changed the draft."""

    refinement: Refinement


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: the last one."""

    result: Result


Event = Planned | Denoised | Drafted | Written | Patched | Finished
