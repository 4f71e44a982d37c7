"""Rules written in Python: a function that may say for a request what a rule in YAML would say."""

from collections.abc import Callable, Mapping

from pydantic import ValidationError

from hybrid.errors import PolicyError, Problem
from hybrid.policies.schema import STEPS, STEPS_ALIAS, RuleSection
from hybrid.types import Request, Signals

PythonRule = Callable[[Request, Signals], Mapping[str, object] | None]


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
