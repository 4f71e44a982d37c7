"""Environment variables in policies."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cli.policy import settled
from hybrid.errors import PolicyError
from hybrid.policies.loader import load_policy, parse_policy
from hybrid.policies.variables import fill_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", 12),
        ("${A:-3}", 12),
        ("${B}", "2s"),
        ("${B:-9}", "2s"),
        ("${C:-3}", 3),
        ("${C:-0.5}", 0.5),
        ("${C:-true}", True),
        ("${C:-null}", None),
        ("${C:-}", None),
        ("${C:-two words}", "two words"),
        ("${C:-[1, 2]}", "[1, 2]"),
        ("${C:-*a}", "*a"),
        ("${C:-2026-01-01}", "2026-01-01"),
        ("${EMPTY:-3}", 3),
        ("in ${A} or ${C:-4}", "in 12 or 4"),
        ("$${A}", "${A}"),
        ("$A $5 }{ $", "$A $5 }{ $"),
        ("", ""),
    ],
)
def test_variables_are_filled_in(text: str, value: object) -> None:
    assert fill_in(text, {"A": "12", "B": "2s", "EMPTY": ""})[0] == value


def test_the_variables_that_were_used_are_named_once() -> None:
    assert fill_in("${A} ${A} ${B:-1} ${C:-2}", {"A": "1", "C": "3"})[1] == ("A", "C")


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A B}", "${A:3}", "${A", "x ${A:-{}}"])
def test_what_is_no_variable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a variable is"):
        fill_in(text, {"A": "1"})


@given(st.text(), st.dictionaries(st.sampled_from(["A", "B"]), st.text()))
def test_text_without_variables_stays(text: str, environment: dict[str, str]) -> None:
    if "${" not in text:
        assert fill_in(text, environment) == (text, ())


@given(st.text())
def test_values_of_the_environment_are_not_read_again(value: str) -> None:
    filled, _ = fill_in("say ${A}", {"A": f"${{B}}{value}", "B": "no"})
    assert filled == f"say ${{B}}{value}"


def test_a_policy_reads_the_environment_and_notes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_STEPS", "9")
    text = (
        "version: 1\n"
        "defaults:\n"
        "  budget: ${HYBRID_BUDGET:-3s}\n"
        "  draft: {max_denoising_steps: '${HYBRID_STEPS:-16}'}\n"
    )
    policy = parse_policy(text, "p")
    assert policy.defaults.budget == 3.0
    assert policy.defaults.draft.max_denoising_steps == (9,)
    assert policy.notes == ("defaults.draft.max_denoising_steps: from HYBRID_STEPS",)


def test_mistakes_in_variables_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRID_BUDGET", raising=False)
    monkeypatch.setenv("HYBRID_STEPS", "many")
    text = (
        "version: 1\ndefaults:\n  budget: ${HYBRID_BUDGET}\n"
        "  draft: {max_denoising_steps: '${HYBRID_STEPS}'}\n"
    )
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p")
    missing, wrong = caught.value.problems
    assert (missing.line, missing.column, missing.key) == (3, 11, "defaults.budget")
    assert "HYBRID_BUDGET is not in the environment" in missing.message
    assert (wrong.line, wrong.key) == (4, "defaults.draft.max_denoising_steps")
    assert "'${HYBRID_STEPS}' is not a number of steps" in wrong.message


SECRET = "s3cret" * 60 + "-'\"\\word"


@pytest.mark.parametrize(
    "text",
    [
        "version: ${SECRET}",
        "version: 1\non_deadline: ${SECRET}",
        "version: 1\ndefaults: ${SECRET}",
        "version: 1\ndefaults: ['${SECRET}', 2]",
        "version: 1\ntasks: {a: ['a rather long text before it and then ${SECRET}']}",
        "version: 1\ndefaults: {budget: '${SECRET}'}",
        "version: 1\ndefaults: {budget: 'x ${SECRET} y'}",
        "version: 1\ndefaults: {draft: {max_denoising_steps: ['${SECRET}']}}",
        "version: 1\ndefaults: {draft: {max_denoising_steps: {from: '${SECRET}', to: 2}}}",
        "version: 1\ndefaults: {refine: {mode: '${SECRET}'}}",
        "version: 1\nextends: ${SECRET}",
        "version: 1\nextends: ${SECRET}.yaml",
        "version: 1\nmodels: {refiner: {backend: vllm, model: x, url: 'http://${SECRET}'}}",
        "version: 1\nmodels: {refiner: {backend: vllm, model: x, url: 'http://h:${SECRET}/'}}",
        "version: 1\nmodels: {refiner: {backend: vllm, model: x, api_key_env: '${SECRET}'}}",
        "version: 1\nmodels: {drafter: {device: '${SECRET}'}}",
        "version: 1\nrules: [{name: a, when: {task: '${SECRET}'}}]",
        "version: 1\nrules: [{name: '${SECRET}', when: {}}, {name: '${SECRET}', when: {}}]",
        "version: 1\nrules: [{name: '${SECRET}', when: {}}, {name: b, when: {blanks: true}}]",
    ],
)
def test_a_mistake_does_not_print_what_the_environment_holds(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p")
    assert "s3cret" not in str(caught.value) and "word" not in str(caught.value)


def test_show_writes_the_variable_and_reads_back_the_same_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("STEPS", "9")
    base = (
        "version: 1\ndescription: 'is ${SECRET}'\n"
        "rules: [{name: b, when: {load: {above: 3}}, draft: {max_denoising_steps: '${STEPS}'}}]\n"
    )
    (tmp_path / "base.yaml").write_text(base)
    own = (
        "version: 1\nextends: base.yaml\ntasks: {a: {description: '${SECRET}'}}\n"
        "rules: [{name: a, when: {load: {above: 9}}}]\n"
    )
    (tmp_path / "own.yaml").write_text(own)
    policy = load_policy(tmp_path / "own.yaml")
    assert policy.rules[1].draft.max_denoising_steps == (9,)
    shown = json.dumps(settled(policy))
    assert "s3cret" not in shown and "is ${SECRET}" in shown
    assert settled(policy)["rules"][1]["draft"] == {"max_denoising_steps": "${STEPS}"}
    again = parse_policy(shown, "again")
    assert (again.description, again.tasks, again.rules) == (
        policy.description,
        policy.tasks,
        policy.rules,
    )


def test_a_value_that_an_extending_policy_replaces_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "base.yaml").write_text("version: 1\ndescription: ${SECRET}\n")
    own = parse_policy("version: 1\nextends: base.yaml\ndescription: mine\n", "own", tmp_path)
    assert settled(own)["description"] == "mine"


def test_a_number_of_ten_thousand_digits_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANY", "9" * 10_000)
    with pytest.raises(PolicyError, match=r"defaults.max_new_tokens: a number has at most 40"):
        parse_policy("version: 1\ndefaults: {max_new_tokens: '${MANY}'}\n", "p")
