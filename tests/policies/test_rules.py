"""Rules in Python: what they may say, and that it holds."""

from collections.abc import Mapping
from typing import Any

import pytest

from hybrid.api import Hybrid
from hybrid.errors import PolicyError
from hybrid.policies.loader import parse_policy
from hybrid.policies.rules import ask, check_signals, no_signals
from hybrid.policies.settings import resolve
from hybrid.types import Request, Signals

SIGNALS = Signals(20, "sort", "given", 9, 0)
POLICY = parse_policy(
    "version: 1\n"
    "tasks: {sort: {refine: {mode: none}}}\n"
    "rules: [{name: written, when: {}, draft: {max_denoising_steps: 3}}]\n",
    "p",
)


def patient(request: Request, signals: Signals) -> Mapping[str, object] | None:
    """Only long prompts are verified."""
    if signals.prompt_tokens <= 10:
        return None
    return {"refine": {"mode": "verify"}, "budget": "3s"}


def test_what_it_says_comes_before_the_policys_rules() -> None:
    settings = resolve(Request("x"), SIGNALS, POLICY, ask(patient, Request("x"), SIGNALS))
    assert settings.modes == ("verify",)
    assert settings.budget_s == 3.0
    assert settings.steps == (16,)
    assert settings.decided_by == "rule 'patient'"


def test_saying_nothing_leaves_the_policys_rules() -> None:
    short = Signals(5, "sort", "given", 9, 0)
    assert ask(patient, Request("x"), short) is None
    assert resolve(Request("x"), short, POLICY, None).decided_by == "rule 'written'"


def test_it_may_name_its_decision() -> None:
    section = ask(lambda request, signals: {"name": "gold"}, Request("x"), SIGNALS)
    assert section is not None
    assert resolve(Request("x"), SIGNALS, POLICY, section).decided_by == "rule 'gold'"


def test_the_steps_have_their_other_name_here_too() -> None:
    said = {"draft": {"num_diffusion_steps": 4, "t_max": 0.9}}
    section = ask(lambda request, signals: said, Request("x"), SIGNALS)
    settings = resolve(Request("x"), SIGNALS, POLICY, section)
    assert (settings.steps, settings.sampler.t_max) == ((4,), 0.9)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("verify", "returns a mapping or None, not 'verify'"),
        ({"refine": "verify"}, "refine"),
        ({"refine": {"mode": "vrify"}}, "refine.mode"),
        ({"budget": "3"}, "'3' is not a duration"),
        ({"draft": {"num_diffusion_steps": 3, "max_denoising_steps": 3}}, "num_diffusion_steps"),
        ({"steps": 3}, "steps: Extra inputs are not permitted"),
    ],
)
def test_what_no_rule_can_say_is_refused(said: Any, message: str) -> None:
    with pytest.raises(PolicyError, match="rule <lambda>: ") as caught:
        ask(lambda request, signals: said, Request("x"), SIGNALS)
    assert message in str(caught.value)


SIGNALLED = parse_policy("version: 1\nrules: [{name: a, when: {signals: {customer: gold}}}]\n", "p")


def test_a_rule_on_a_signal_that_nobody_gives_is_an_error() -> None:
    check_signals(SIGNALLED, ["customer"])
    check_signals(SIGNALLED, no_signals(SIGNALLED))
    with pytest.raises(
        PolicyError, match=r"rules\.0\.when\.signals\.customer: no signal"
    ) as caught:
        check_signals(SIGNALLED, ["custmer"])
    assert "did you mean 'custmer'" in str(caught.value)
    with pytest.raises(PolicyError):
        Hybrid(SIGNALLED)
    Hybrid(SIGNALLED, signals={"customer": lambda request: "gold"}).close()


def test_until_the_application_is_known_a_note_says_what_it_must_give() -> None:
    assert SIGNALLED.notes == ("rules.0.when.signals.customer: must be given by the application",)
