"""Environment variables in policies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import PolicyError
from hybrid.policies.loader import parse_policy
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
    assert policy.notes == ("defaults.draft.max_denoising_steps: 9, from HYBRID_STEPS",)


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
    assert "'many' is not a number of steps" in wrong.message
