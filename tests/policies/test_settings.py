"""What wins: defaults, then the task, then the first matching rule, then the request."""

import itertools
import json
from typing import Any

import pytest

from hybrid.errors import RequestError
from hybrid.policies.loader import parse_policy
from hybrid.policies.settings import Settings, resolve
from hybrid.requests import make_request
from hybrid.types import DraftParams, Request, Signals

POLICY = """
version: 1
defaults:
  budget: 2s
  max_new_tokens: 100
  draft: {max_denoising_steps: [12, 16], entropy_bound: 0.2, t_min: 0.3}
  refine: {mode: [none, cascade], min_token_logprob: -4}
tasks:
  chat: {}
  code:
    budget: 5s
    draft: {max_denoising_steps: 24, entropy_bound: 0.05}
    refine: {mode: verify}
rules:
  - name: hurry
    when: {budget: {below: 100ms}}
    draft: {max_denoising_steps: 4}
    refine: {mode: none}
  - name: long prompts
    when: {prompt_tokens: {above: 1000}, task: [chat, code]}
    budget: 9s
    draft: {t_min: 0.1}
  - name: blanks
    when: {blanks: true}
    draft: {max_denoising_steps: 48}
"""


def settle(
    task: str | None = "chat",
    prompt_tokens: int = 10,
    blanks: int = 0,
    policy: str = POLICY,
    **options: Any,
) -> Settings:
    signals = Signals(prompt_tokens, task, "given", 16, blanks)
    return resolve(make_request("x", options), signals, parse_policy(policy, "p"))  # type: ignore[arg-type]


def test_defaults_hold_where_nothing_else_speaks() -> None:
    settings = settle()
    assert settings.steps == (12, 16)
    assert settings.modes == ("none", "cascade")
    assert settings.budget_s == 2.0
    assert settings.max_new_tokens == 100
    assert settings.sampler == DraftParams(entropy_bound=0.2, t_min=0.3)
    assert settings.decided_by == "task chat"
    assert settle(task=None).decided_by == "defaults"


def test_a_task_overrides_defaults_setting_by_setting() -> None:
    settings = settle("code")
    assert settings.steps == (24,)
    assert settings.modes == ("verify",)
    assert settings.budget_s == 5.0
    assert (settings.sampler.entropy_bound, settings.sampler.t_min) == (0.05, 0.3)


def test_the_first_matching_rule_overrides_the_task() -> None:
    settings = settle("code", budget="50ms")
    assert settings.steps == (4,)
    assert settings.modes == ("none",)
    assert settings.decided_by == "rule 'hurry'"
    assert settings.sampler.entropy_bound == 0.05


def test_a_rules_budget_yields_to_the_requests() -> None:
    assert settle("code", prompt_tokens=2000).budget_s == 9.0
    assert settle("code", prompt_tokens=2000, budget="3s").budget_s == 3.0


def test_bounds_are_open_and_all_conditions_must_hold() -> None:
    assert settle("code", prompt_tokens=1000).decided_by == "task code"
    assert settle("code", prompt_tokens=1001).decided_by == "rule 'long prompts'"
    assert settle(None, prompt_tokens=1001).decided_by == "defaults"
    assert settle(budget="100ms").decided_by == "task chat"


def test_the_requests_orders_come_last() -> None:
    settings = settle(
        "code",
        max_denoising_steps=7,
        refine="score",
        entropy_bound=0.9,
        max_new_tokens=5,
        stability_threshold=0,
    )
    assert settings.steps == (7,)
    assert settings.modes == ("score",)
    assert settings.sampler.entropy_bound == 0.9
    assert settings.sampler.stability_threshold == 0
    assert settings.max_new_tokens == 5


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("entropy_bound", (0.1, 0.2, 0.3, 0.4)),
        ("t_min", (0.1, 0.2, 0.3, 0.4)),
        ("t_max", (0.9, 1.0, 1.1, 1.2)),
        ("stability_threshold", (1, 2, 3, 0)),
        ("confidence_threshold", (0.1, 0.2, 0.3, 0.0)),
        ("max_denoising_steps", (1, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize("layers", [*itertools.product([False, True], repeat=4)])
def test_the_last_layer_that_speaks_wins(
    setting: str, values: tuple[float, ...], layers: tuple[bool, ...]
) -> None:
    said: list[dict[str, Any]] = [
        {setting: v} if speaks else {} for v, speaks in zip(values, layers, strict=True)
    ]
    policy = {
        "version": 1,
        "defaults": {"draft": said[0]},
        "tasks": {"chat": {"draft": said[1]}},
        "rules": [{"name": "all", "when": {}, "draft": said[2]}],
    }
    settings = settle("chat", policy=json.dumps(policy), **said[3])
    winner = [v for v, speaks in zip(values, layers, strict=True) if speaks][-1:]
    if setting == "max_denoising_steps":
        assert settings.steps == tuple(winner or [16])
    else:
        published = getattr(DraftParams(), setting)
        assert getattr(settings.sampler, setting) == (winner or [published])[0]


def test_only_the_first_matching_rule_speaks() -> None:
    settings = settle("code", prompt_tokens=2000, blanks=2, budget="50ms")
    assert settings.decided_by == "rule 'hurry'"
    assert settings.steps == (4,)
    assert settings.sampler.t_min == 0.3
    settings = settle("code", prompt_tokens=2000, blanks=2)
    assert settings.decided_by == "rule 'long prompts'"
    assert (settings.steps, settings.sampler.t_min) == ((24,), 0.1)


def test_a_rules_budget_does_not_decide_whether_rules_match() -> None:
    policy = """
version: 1
defaults: {budget: 50ms}
rules:
- {name: patient, when: {budget: {below: 100ms}}, budget: 9s}
"""
    settings = settle(None, policy=policy)
    assert (settings.decided_by, settings.budget_s) == ("rule 'patient'", 9.0)


def test_without_any_budget_no_bound_matches() -> None:
    policy = """
version: 1
rules:
- {name: below, when: {budget: {below: 1h}}}
- {name: above, when: {budget: {above: 1us}}}
"""
    settings = settle(None, policy=policy)
    assert (settings.decided_by, settings.budget_s) == ("defaults", None)


@pytest.mark.parametrize(
    ("options", "field"), [({"t_min": 0.9}, "t_min"), ({"t_max": 0.2}, "t_max")]
)
def test_a_request_may_not_let_the_temperature_rise(options: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError, match="would be above t_max") as caught:
        settle(**options)
    assert caught.value.field == field
    assert settle(t_min=0.9, t_max=0.9).sampler.t_min == 0.9


def test_an_infill_is_never_rewritten() -> None:
    assert settle(blanks=3).modes == ("none",)
    assert settle("code", blanks=3).modes == ("none",)
    assert settle(blanks=3, refine="score").modes == ("score",)
    with pytest.raises(RequestError, match="an infill keeps its text"):
        settle(blanks=3, refine="verify")


def test_steps_mean_that_something_is_drafted() -> None:
    policy = "version: 1\ndefaults: {refine: {mode: [generate, none]}}\n"
    assert settle(None, policy=policy).modes == ("generate", "none")
    assert settle(None, policy=policy, max_denoising_steps=3).modes == ("none",)
    alone = "version: 1\ndefaults: {refine: {mode: generate}}\n"
    assert settle(None, policy=alone).steps == ()
    with pytest.raises(RequestError, match="max_denoising_steps"):
        settle(None, policy=alone, max_denoising_steps=3)


@pytest.mark.parametrize(
    ("models", "wish", "said"),
    [
        ("{refiner: null}", "verify", "no refiner"),
        ("{refiner: null}", "generate", "no refiner"),
        ("{drafter: null}", "verify", "no drafter"),
        ("{drafter: null}", "none", "no drafter"),
    ],
)
def test_a_wish_needs_its_models(models: str, wish: str, said: str) -> None:
    mode = "none" if "refiner" in models else "generate"
    policy = f"version: 1\nmodels: {models}\ndefaults: {{refine: {{mode: {mode}}}}}\n"
    with pytest.raises(RequestError, match=said):
        settle(None, policy=policy, refine=wish)


def test_blanks_need_a_drafter() -> None:
    policy = "version: 1\nmodels: {drafter: null}\ndefaults: {refine: {mode: generate}}\n"
    with pytest.raises(RequestError, match="has no drafter, and only a drafter fills") as caught:
        settle(None, policy=policy, infill="a <blank:2>")
    assert caught.value.field == "infill"


def test_cascade_has_a_threshold_where_none_is_given() -> None:
    policy = "version: 1\ndefaults: {refine: {mode: cascade}}\n"
    refine = settle(None, policy=policy).refine
    assert (refine.min_token_logprob, refine.min_mean_logprob) == (-4.0, None)
    policy = "version: 1\ndefaults: {refine: {mode: cascade, min_mean_logprob: -1}}\n"
    refine = settle(None, policy=policy).refine
    assert (refine.min_token_logprob, refine.min_mean_logprob) == (None, -1.0)


def test_without_a_refiner_the_drafter_scores_itself() -> None:
    policy = "version: 1\nmodels: {refiner: null}\ndefaults: {refine: {mode: score}}\n"
    assert settle(None, policy=policy).refine.scorer == "self"
    assert settle(None).refine.scorer == "refiner"


def test_a_rule_may_ask_for_signals_of_the_applications_own() -> None:
    policy = parse_policy(
        "version: 1\nrules:\n"
        "- {name: gold, when: {signals: {customer: gold, retries: 2}}, refine: {mode: verify}}\n",
        "p",
    )

    def decided_by(**custom: str | int) -> str:
        signals = Signals(20, None, "default", 16, 0, custom=custom)
        return resolve(Request("x"), signals, policy).decided_by

    assert decided_by(customer="gold", retries=2, more=1) == "rule 'gold'"
    assert decided_by(customer="gold") == decided_by(customer="tin", retries=2) == "defaults"
    assert decided_by() == "defaults"


def test_an_effort_is_the_budget_that_the_policy_gives_it() -> None:
    policy = (
        "version: 1\ndefaults: {budget: 2s}\neffort: {low: 100ms, high: 9s}\n"
        "rules: [{name: short, when: {budget: {below: 200ms}}, draft: {max_denoising_steps: 3}}]\n"
    )
    assert settle(None, policy=policy, effort="low").budget_s == 0.1
    assert settle(None, policy=policy, effort="low").decided_by == "rule 'short'"
    assert settle(None, policy=policy, effort="high").budget_s == 9.0
    assert settle(None, policy=policy, effort="medium").budget_s == 2.0
    assert settle(None, policy=policy, effort="low", budget="3s").budget_s == 3.0


def test_a_timeout_bounds_every_budget_from_above() -> None:
    assert settle("code", timeout="500ms").budget_s == 0.5
    assert settle("code", timeout="60s").budget_s == 5.0
    assert settle("code", prompt_tokens=2000, timeout="8s").budget_s == 8.0
    assert settle("code", budget="3s", timeout="1s").budget_s == 1.0
    assert settle(None, policy="version: 1\n", timeout="4s").budget_s == 4.0


def test_a_temperature_scales_the_draft_and_is_the_refiners() -> None:
    settings = settle(None, policy="version: 1\n", temperature=0.5)
    assert (settings.sampler.t_min, settings.sampler.t_max) == (0.2, 0.4)
    assert settings.refine.temperature == 0.5
    cold = settle(None, policy="version: 1\n", temperature=0)
    assert 0 < cold.sampler.t_min == cold.sampler.t_max < 0.01
    assert cold.refine.temperature == 0.0


def test_the_longest_answer_is_the_requests_then_the_rules_the_tasks_and_the_defaults() -> None:
    policy = parse_policy(
        "version: 1\ndefaults: {max_new_tokens: 100}\n"
        "tasks: {a: {max_new_tokens: 50}, b: {}}\n"
        "rules: [{name: r, when: {load: {above: 3}}, max_new_tokens: 20}]\n",
        "p",
    )

    def longest(task: str, load: int = 0, asked: int | None = None) -> int:
        signals = Signals(20, task, "given", 9, 0, load=load)
        return resolve(Request("x", max_new_tokens=asked), signals, policy).max_new_tokens

    assert [longest("b"), longest("a"), longest("a", 4), longest("a", 4, 7)] == [100, 50, 20, 7]
