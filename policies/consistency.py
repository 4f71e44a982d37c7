"""What a policy may not say although every line of it is well formed."""

from collections.abc import Iterator

from hybrid.errors import did_you_mean
from hybrid.policies.schema import DraftSection, Policy, RefineSection, WhenSection

Contradiction = tuple[tuple[str | int, ...], str]
Parts = tuple[str | int, ...]


def find_contradictions(policy: Policy) -> list[Contradiction]:
    """Places and messages, in the file's order of sections."""
    return [*_models(policy), *_sections(policy), *_rules(policy), *_quality(policy)]


def _models(policy: Policy) -> Iterator[Contradiction]:
    if policy.models.drafter is None and policy.models.refiner is None:
        yield ("models",), "names neither a drafter nor a refiner"


def _parts(policy: Policy) -> Iterator[tuple[Parts, DraftSection, RefineSection]]:
    yield ("defaults",), policy.defaults.draft, policy.defaults.refine
    for name, task in policy.tasks.items():
        yield ("tasks", name), task.draft, task.refine
    for index, rule in enumerate(policy.rules):
        yield ("rules", index), rule.draft, rule.refine


def _sections(policy: Policy) -> Iterator[Contradiction]:
    base = policy.defaults.draft
    for place, draft, refine in _parts(policy):
        t_min = draft.t_min if draft.t_min is not None else base.t_min or 0.4
        t_max = draft.t_max if draft.t_max is not None else base.t_max or 0.8
        if t_min > t_max:
            named = "t_min" if draft.t_min is not None else "t_max"
            yield (*place, "draft", named), f"t_min {t_min:g} is above t_max {t_max:g}"
        for mode in refine.mode or ():
            needs_refiner = mode in ("verify", "cascade", "generate")
            if needs_refiner and policy.models.refiner is None:
                yield (*place, "refine", "mode"), f"{mode} needs models.refiner, which is null"
            if mode != "generate" and policy.models.drafter is None:
                yield (*place, "refine", "mode"), f"{mode} needs models.drafter, which is null"
        if refine.scorer == "refiner" and policy.models.refiner is None:
            yield (*place, "refine", "scorer"), "refiner needs models.refiner, which is null"


def _rules(policy: Policy) -> Iterator[Contradiction]:
    seen: list[tuple[str, WhenSection]] = []
    for index, rule in enumerate(policy.rules):
        for name in rule.when.task or ():
            if name not in policy.tasks:
                hint = did_you_mean(name, policy.tasks)
                yield ("rules", index, "when", "task"), f"no task is named {name!r}{hint}"
        for field in ("budget", "prompt_tokens"):
            bounds = getattr(rule.when, field)
            if bounds and None not in (bounds.below, bounds.above) and bounds.below <= bounds.above:
                yield ("rules", index, "when", field), "nothing is both below and above these"
        for earlier, when in seen:
            if when in (rule.when, WhenSection()):
                yield ("rules", index), f"never applies: rule {earlier!r} matches first"
                break
        seen.append((rule.name, rule.when))


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
