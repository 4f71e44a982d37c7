"""Rules written in Python: a function that may say for a request what a rule in YAML would say."""

from collections.abc import Callable, Collection, Mapping

from pydantic import ValidationError

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.policies.schema import STEPS, STEPS_ALIAS, Policy, RuleSection
from hybrid.types import Request, Signals, SignalValue

PythonRule = Callable[[Request, Signals], Mapping[str, object] | None]


def check_signals(policy: Policy, given: Collection[str]) -> None:
    """Raise PolicyError for a rule that asks for a signal which nobody gives: it never matches."""
    problems = []
    for index, rule in enumerate(policy.rules):
        for name in rule.when.signals:
            if name not in given:
                key = f"rules.{index}.when.signals.{name}"
                hint = did_you_mean(name, given)
                message = f"no signal has this name: give one, signals={{{name!r}: f}}{hint}"
                problems.append(Problem(policy.name, 0, 0, key, message))
    if problems:
        raise PolicyError(problems)


def no_signals(policy: Policy) -> dict[str, Callable[[Request], SignalValue]]:
    """Every signal that rules ask for, given as empty text: for deciding without an application."""
    names = {name for rule in policy.rules for name in rule.when.signals}
    return {name: lambda _: "" for name in names}


def ask(rule: PythonRule, request: Request, signals: Signals) -> RuleSection | None:
    """What `rule` says, as a section that comes before the policy's own rules; None for nothing.

    It returns `draft`, `refine` and `budget` as a YAML rule has them, and a `name` if the
    function's own does not serve. Raises PolicyError for anything else.
    """
    said = rule(request, signals)
    if said is None:
        return None
    name = getattr(rule, "__name__", type(rule).__name__)
    place = f"rule {name}"
    if not isinstance(said, Mapping):
        raise PolicyError([Problem(place, 0, 0, "", f"returns a mapping or None, not {said!r}")])
    try:
        return RuleSection.model_validate({"name": name, "when": {}, **_in_own_words(said)})
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = (
            Problem(place, 0, 0, ".".join(map(str, details["loc"])), details["msg"])
            for details in found
        )
        raise PolicyError(problems) from None


def _in_own_words(said: Mapping[str, object]) -> Mapping[str, object]:
    """With the steps under their own name, as a policy file is read."""
    draft = said.get("draft")
    if not isinstance(draft, Mapping) or STEPS_ALIAS not in draft or STEPS in draft:
        return said
    named = {STEPS if key == STEPS_ALIAS else key: value for key, value in draft.items()}
    return {**said, "draft": named}
