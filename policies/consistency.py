"""What a policy may not say although every line of it is well formed."""

from collections.abc import Iterator, Sequence

from hybrid.errors import did_you_mean
from hybrid.modes import MODES
from hybrid.policies.schema import (
    CountBounds,
    DraftSection,
    DurationBounds,
    Policy,
    RefinerModelSection,
    RefineSection,
    RuleSection,
    WhenSection,
)
from hybrid.types import DraftParams, RefineMode

Parts = tuple[str | int, ...]
Contradiction = tuple[Parts, str]
_OF_SERVERS = {"url", "served_as", "api_key_env", "timeout"}


def find_contradictions(policy: Policy, inherited_rules: int = 0) -> Iterator[Contradiction]:
    """Places and messages, in the file's order of sections.

    The last `inherited_rules` rules stand in an extended policy: an own rule may take their place.
    """
    checks = (_models, _drafting, _refining, _rules, _quality)
    for check in checks:
        yield from check(policy)
    yield from _idle_rules(policy.rules[: len(policy.rules) - inherited_rules])


def find_remarks(policy: Policy) -> Iterator[Contradiction]:
    """What is allowed and probably not meant: models that nothing uses, signals to be given."""
    sections = [*_refine_sections(policy)]
    modes = {mode for _, refine, inherited in sections for mode in refine.mode or inherited}
    by_refiner = any(
        refine.scorer != "self" and MODES[mode].cost.reads == "scorer"
        for _, refine, inherited in sections
        for mode in refine.mode or inherited
    )
    named = policy.models.model_fields_set
    repairs = any(refine.repair_with == "refiner" for _, refine, _ in sections)
    used = by_refiner or repairs or any(MODES[mode].needs_refiner for mode in modes)
    if "refiner" in named and policy.models.refiner is not None and not used:
        remedy = "such as refine: {mode: [none, cascade, verify]}"
        yield ("models", "refiner"), f"is loaded and never used: no refine mode needs it; {remedy}"
    drafts = any(MODES[mode].needs_drafter for mode in modes)
    if "drafter" in named and policy.models.drafter is not None and not drafts:
        yield ("models", "drafter"), "is loaded and never used: every mode is generate"
    for index, rule in enumerate(policy.rules):
        for name in rule.when.signals:
            yield ("rules", index, "when", "signals", name), "must be given by the application"


def _models(policy: Policy) -> Iterator[Contradiction]:
    if policy.models.drafter is None and policy.models.refiner is None:
        yield ("models",), "names neither a drafter nor a refiner"
    for role, model in (("drafter", policy.models.drafter), ("refiner", policy.models.refiner)):
        if model is not None and model.activations != "float" and model.backend != "native":
            yield ("models", role, "activations"), f"is for backend native, not {model.backend}"
    refiner = policy.models.refiner
    if refiner is not None and refiner.backend == "vllm" and refiner.url is None:
        yield ("models", "refiner"), "backend vllm needs the server's url"
    if refiner is not None and refiner.backend != "vllm":
        usual = RefinerModelSection()
        for key in sorted(_OF_SERVERS):
            if getattr(refiner, key) == getattr(usual, key):
                continue
            yield ("models", "refiner", key), f"is for backend vllm, not {refiner.backend}"


def _drafting(policy: Policy) -> Iterator[Contradiction]:
    """Temperatures that do not fall, also where a rule meets one of its tasks."""
    defaults = policy.defaults.draft
    yield from _temperatures(("defaults",), defaults)
    for name, task in policy.tasks.items():
        yield from _temperatures(("tasks", name), task.draft, defaults)
    for index, rule in enumerate(policy.rules):
        if rule.draft.t_min is None and rule.draft.t_max is None:
            continue
        met = [task for name, task in policy.tasks.items() if _may_match(rule, name)]
        alone = [(rule.draft, defaults)] if rule.when.task is None else []
        for layers in [*alone, *((rule.draft, task.draft, defaults) for task in met)]:
            found = [*_temperatures(("rules", index), *layers)]
            yield from found
            if found:
                break


def _may_match(rule: RuleSection, task: str) -> bool:
    return rule.when.task is None or task in rule.when.task


def _temperatures(place: Parts, *layers: DraftSection) -> Iterator[Contradiction]:
    """What is wrong with the temperatures that the first layer sets, the others below it."""
    first, published = layers[0], DraftParams()
    if first.t_min is None and first.t_max is None:
        return
    t_min = next((layer.t_min for layer in layers if layer.t_min is not None), published.t_min)
    t_max = next((layer.t_max for layer in layers if layer.t_max is not None), published.t_max)
    if t_min > t_max:
        named = "t_min" if first.t_min is not None else "t_max"
        yield (*place, "draft", named), f"t_min {t_min:g} is above t_max {t_max:g}"


def _refining(policy: Policy) -> Iterator[Contradiction]:
    """Modes and scorers that need a model which the policy does not have."""
    if policy.models.drafter is None and policy.models.refiner is None:
        return  # told once is enough
    for place, refine, inherited in _refine_sections(policy):
        for mode in refine.mode or inherited:
            if MODES[mode].needs_refiner and policy.models.refiner is None:
                yield (*place, "refine", "mode"), f"{mode} needs models.refiner, which is null"
            if MODES[mode].needs_drafter and policy.models.drafter is None:
                yield (*place, "refine", "mode"), f"{mode} needs models.drafter, which is null"
        if refine.scorer == "refiner" and policy.models.refiner is None:
            yield (*place, "refine", "scorer"), "refiner needs models.refiner, which is null"
        if refine.repair_with == "refiner" and policy.models.refiner is None:
            yield (*place, "refine", "repair_with"), "refiner needs models.refiner, which is null"


def _refine_sections(
    policy: Policy,
) -> Iterator[tuple[Parts, RefineSection, tuple[RefineMode, ...]]]:
    """Every refine section with its place, and what holds where it says nothing itself."""
    yield ("defaults",), policy.defaults.refine, ("none",)
    for name, task in policy.tasks.items():
        yield ("tasks", name), task.refine, ()
    for index, rule in enumerate(policy.rules):
        yield ("rules", index), rule.refine, ()


def _rules(policy: Policy) -> Iterator[Contradiction]:
    names = set[str]()
    for index, rule in enumerate(policy.rules):
        if rule.name in names:
            yield ("rules", index, "name"), f"{rule.name!r} is an earlier rule's name"
        names.add(rule.name)
        for name in rule.when.task or ():
            if name not in policy.tasks:
                hint = did_you_mean(name, policy.tasks)
                yield ("rules", index, "when", "task"), f"no task is named {name!r}{hint}"
        when = rule.when
        for field, bounds, gap in (
            ("budget", when.budget, 0),
            ("prompt_tokens", when.prompt_tokens, 1),
            ("constraints", when.constraints, 1),
            ("load", when.load, 1),
        ):
            if _is_empty(bounds, gap):
                yield ("rules", index, "when", field), "nothing is both below and above these"


def _idle_rules(rules: Sequence[RuleSection]) -> Iterator[Contradiction]:
    for index, rule in enumerate(rules):
        for earlier in rules[:index]:
            if _covers(earlier.when, rule.when):
                yield ("rules", index), f"never applies: rule {earlier.name!r} matches first"
                break


def _is_empty(bounds: DurationBounds | CountBounds | None, least_gap: int) -> bool:
    """Whether nothing lies between; counts need a whole number between their bounds."""
    if bounds is None or bounds.below is None or bounds.above is None:
        return False
    return bounds.below - bounds.above <= least_gap


def _covers(earlier: WhenSection, later: WhenSection) -> bool:
    """Whether `earlier` matches whatever `later` does."""
    if earlier.task is not None and not set(later.task or (None,)) <= set(earlier.task):
        return False
    if earlier.blanks is not None and earlier.blanks != later.blanks:
        return False
    if not earlier.signals.items() <= later.signals.items():
        return False
    return (
        _contains(earlier.budget, later.budget)
        and _contains(earlier.prompt_tokens, later.prompt_tokens)
        and _contains(earlier.constraints, later.constraints)
        and _contains(earlier.load, later.load)
    )


def _contains(
    outer: DurationBounds | CountBounds | None, inner: DurationBounds | CountBounds | None
) -> bool:
    if outer is None or inner is None:
        return outer is None
    below = outer.below is None or (inner.below is not None and inner.below <= outer.below)
    return below and (
        outer.above is None or (inner.above is not None and inner.above >= outer.above)
    )


def _quality(policy: Policy) -> Iterator[Contradiction]:
    for name, quality in policy.quality.items():
        if name not in policy.tasks:
            hint = did_you_mean(name, policy.tasks)
            yield ("quality", name), f"no task is named {name!r}{hint}"
        if not quality.draft:
            yield ("quality", name, "draft"), "give an accuracy for at least one number of steps"
        for steps, accuracy in quality.draft.items():
            if steps < 1 or not 0 <= accuracy <= 1:
                message = f"steps from 1 up and an accuracy from 0 to 1, not {steps}: {accuracy}"
                yield ("quality", name, "draft", steps), message
