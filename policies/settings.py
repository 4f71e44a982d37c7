"""What a policy leaves open for one request: defaults, task, rule and request in layers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hybrid.errors import RequestError
from hybrid.modes import MODES
from hybrid.policies.schema import DraftSection, Policy, RuleSection
from hybrid.types import (
    DEFAULT_TOKEN_LOGPROB,
    DraftParams,
    Overrides,
    RefineMode,
    RefineParams,
    Request,
    Scorer,
    Signals,
)

_DEFAULT_STEPS = (16,)
_COLDEST = 1e-3  # a draft at temperature 0: logits are divided by it
_KEEPS_FIXED_TEXT: tuple[RefineMode, ...] = tuple(
    mode for mode, facts in MODES.items() if facts.needs_drafter and not facts.changes_drafts
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The planner's room: step caps and refine modes to choose from; all else is settled.

    `steps` is empty where nothing may be drafted. `decided_by` names the rule, task or defaults.
    """

    budget_s: float | None
    max_new_tokens: int
    steps: tuple[int, ...]
    sampler: DraftParams
    modes: tuple[RefineMode, ...]
    refine: RefineParams
    decided_by: str


def resolve(
    request: Request, signals: Signals, policy: Policy, said: RuleSection | None = None
) -> Settings:
    """The settings for a request; raises RequestError for overrides that cannot be followed.

    `said` is a rule for this request alone, in place of the policy's rules.
    """
    defaults, task = policy.defaults, policy.tasks.get(signals.task or "")
    asked = _first(request.budget_s, request.effort and policy.effort.get(request.effort))
    budget = _at_most(_first(asked, task and task.budget, defaults.budget), request.timeout_s)
    rule = said or next((r for r in policy.rules if _matches(r, signals, budget)), None)
    if asked is None and rule and rule.budget:
        budget = _at_most(rule.budget, request.timeout_s)
    layers = [section for section in (rule, task, defaults) if section]
    drafts, refines = [la.draft for la in layers], [la.refine for la in layers]
    overrides = request.overrides
    modes = _modes(request, signals, policy, _first(*(r.mode for r in refines)) or ("none",))
    steps = _first(*(d.max_denoising_steps for d in drafts)) or _DEFAULT_STEPS
    if overrides.max_denoising_steps is not None:
        steps = (overrides.max_denoising_steps,)
    decided_by = f"rule {rule.name!r}" if rule else f"task {signals.task}" if task else "defaults"
    return Settings(
        budget_s=budget,
        max_new_tokens=_first(request.max_new_tokens, *(la.max_new_tokens for la in layers)),
        steps=() if modes == ("generate",) else steps,
        sampler=_sampler(overrides, drafts),
        modes=modes,
        refine=_refine_params(overrides, refines, policy),
        decided_by=decided_by,
    )


def _sampler(overrides: Overrides, drafts: Sequence[DraftSection]) -> DraftParams:
    """The first value that a layer gives for every setting but the steps."""
    layers = [overrides, *drafts]
    names = [field.name for field in fields(DraftParams) if field.name != "max_denoising_steps"]
    given = {name: _first(*(getattr(layer, name) for layer in layers)) for name in names}
    sampler = DraftParams(**{name: value for name, value in given.items() if value is not None})
    if sampler.t_min > sampler.t_max:  # the request's doing: the policy's own layers are checked
        named = "t_min" if overrides.t_min is not None else "t_max"
        allowed = f"t_min {sampler.t_min:g} would be above t_max {sampler.t_max:g}"
        raise RequestError(named, getattr(overrides, named), allowed)
    if overrides.temperature is not None:
        low, high = (
            max(_COLDEST, overrides.temperature * t) for t in (sampler.t_min, sampler.t_max)
        )
        return replace(sampler, t_min=low, t_max=high)
    return sampler


def _refine_params(overrides: Overrides, refines: list[Any], policy: Policy) -> RefineParams:
    mean = _first(*(r.min_mean_logprob for r in refines))
    token = _first(*(r.min_token_logprob for r in refines))
    if mean is None and token is None:
        token = DEFAULT_TOKEN_LOGPROB
    scorer: Scorer | None = _first(*(r.scorer for r in refines))
    if scorer is None:
        scorer = "self" if policy.models.refiner is None else "refiner"
    names = ("drafts", "repair_with", "guide_every", "temperature")
    given = {name: _first(*(getattr(r, name) for r in refines)) for name in names}
    if overrides.temperature is not None:
        given["temperature"] = overrides.temperature
    others = {name: value for name, value in given.items() if value is not None}
    return RefineParams("none", scorer, mean, token, **others)


def _modes(
    request: Request, signals: Signals, policy: Policy, modes: tuple[RefineMode, ...]
) -> tuple[RefineMode, ...]:
    """The modes that may be chosen, after the request's own wish and an infill's needs."""
    wish, steps = request.overrides.refine_mode, request.overrides.max_denoising_steps
    if request.infill is not None and policy.models.drafter is None:
        allowed = f"policy {policy.name} has no drafter, and only a drafter fills in blanks"
        raise RequestError("infill", request.infill, allowed)
    if wish is not None:
        _check_wish(wish, request, policy)
        modes = (wish,)
    if signals.blank_tokens:
        if wish is not None and wish not in _KEEPS_FIXED_TEXT:
            raise RequestError("refine", wish, "an infill keeps its text: none or score")
        return tuple(mode for mode in modes if mode in _KEEPS_FIXED_TEXT) or ("none",)
    if steps is not None:
        modes = tuple(mode for mode in modes if mode != "generate")
        if not modes:
            allowed = f"{wish or policy.name} drafts nothing: leave the steps out"
            raise RequestError("max_denoising_steps", steps, allowed)
    return modes


def _check_wish(wish: RefineMode, request: Request, policy: Policy) -> None:
    if MODES[wish].needs_refiner and policy.models.refiner is None:
        raise RequestError("refine", wish, f"policy {policy.name} has no refiner: none or score")
    if MODES[wish].needs_drafter and policy.models.drafter is None:
        raise RequestError("refine", wish, f"policy {policy.name} has no drafter: generate")


def _matches(rule: RuleSection, signals: Signals, budget: float | None) -> bool:
    when = rule.when
    if when.task is not None and signals.task not in when.task:
        return False
    if when.blanks is not None and when.blanks != (signals.blank_tokens > 0):
        return False
    if any(signals.custom.get(name) != value for name, value in when.signals.items()):
        return False
    bounded = (
        (when.budget, budget),
        (when.prompt_tokens, signals.prompt_tokens),
        (when.constraints, signals.constraints),
        (when.load, signals.load),
    )
    return all(bounds is None or _within(bounds, value) for bounds, value in bounded)


def _within(bounds: Any, value: float | None) -> bool:
    if value is None:
        return False
    above = bounds.above is None or value > bounds.above
    return above and (bounds.below is None or value < bounds.below)


def _at_most(budget: float | None, timeout: float | None) -> float | None:
    """The shorter of two durations, None being endless."""
    return min((given for given in (budget, timeout) if given is not None), default=None)


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)
