"""Policies that start from another one."""

import os
from pathlib import Path

import pytest

from hybrid.cli.policy import settled
from hybrid.errors import PolicyError
from hybrid.policies.loader import load_policy, parse_policy
from hybrid.policies.schema import Policy

HEAD = "version: 1\nextends: balanced\n"


def extending(text: str) -> Policy:
    return parse_policy(HEAD + text, "mine")


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "mine")
    return [str(problem) for problem in caught.value.problems]


def test_what_is_left_out_is_the_presets() -> None:
    balanced = load_policy("balanced")
    assert settled(extending("")) == settled(balanced)


def test_what_is_said_holds_and_nothing_beside_it_changes() -> None:
    balanced = load_policy("balanced")
    policy = extending("defaults: {budget: 1s}\ntasks: {sort: {budget: 3s}, rhyme: {}}\n")
    assert policy.defaults == balanced.defaults.model_copy(update={"budget": 1.0})
    assert policy.tasks["sort"] == balanced.tasks["sort"].model_copy(update={"budget": 3.0})
    assert [*policy.tasks] == [*balanced.tasks, "rhyme"]


def test_steps_are_one_choice_not_two_that_are_mixed() -> None:
    policy = extending("tasks: {chat: {draft: {max_denoising_steps: {from: 2, to: 3}}}}\n")
    assert policy.tasks["chat"].draft.max_denoising_steps == (2, 3)
    text = HEAD + "tasks: {chat: {draft: {max_denoising_steps: {from: 2}}}}\n"
    assert "{'from': 2} is not a number of steps" in problems(text)[0]


def test_a_measured_task_replaces_what_was_measured_before(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\ntasks: {a: {}, b: {}}\nquality:\n"
        "  a: {draft: {4: 0.1, 8: 0.2}, refiner: 1.0}\n  b: {draft: {4: 0.3}, refiner: 1.0}\n"
    )
    own = "version: 1\nextends: base.yaml\nquality: {a: {draft: {16: 0.9}, refiner: 0.9}}\n"
    (tmp_path / "own.yaml").write_text(own)
    quality = load_policy(tmp_path / "own.yaml").quality
    assert (quality["a"].draft, quality["b"].draft) == ({16: 0.9}, {4: 0.3})


def test_own_rules_come_first_and_may_take_the_place_of_others() -> None:
    rule = "rules: [{name: mine, when: {budget: {below: 1s}}, refine: {mode: none}}]\n"
    assert [rule.name for rule in extending(rule).rules] == ["mine", "little time", "a queue"]
    policy = extending(rule.replace("mine", "little time"))
    assert [rule.when.budget and rule.when.budget.below for rule in policy.rules] == [1.0, 0.6]


def test_a_file_extends_a_file_beside_it_that_extends_a_preset(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "base.yaml").write_text(HEAD + "defaults: {budget: 1s}\n")
    (folder / "own.yml").write_text("version: 1\nextends: base.yaml\ndescription: own\n")
    policy = load_policy(folder / "own.yml")
    assert (policy.description, policy.defaults.budget) == ("own", 1.0)
    assert policy.tasks == load_policy("balanced").tasks


def test_circles_and_missing_files_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("version: 1\nextends: second.yaml\n")
    second.write_text("version: 1\nextends: first.yaml\n")
    with pytest.raises(PolicyError, match="extends itself, through others"):
        load_policy(first)
    second.unlink()
    with pytest.raises(PolicyError, match=r"first\.yaml:2:10: extends: .*No such file"):
        load_policy(first)


def test_what_is_no_file_cannot_be_extended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "circle.yaml").symlink_to(tmp_path / "circle.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "zero", "circle", "folder"):
        with pytest.raises(PolicyError) as caught:
            parse_policy(f"version: 1\nextends: {name}.yaml\n", "mine", tmp_path)
        (problem,) = caught.value.problems
        assert (problem.file, problem.line, problem.column) == ("mine", 2, 10)
        assert (problem.key, name in problem.message) == ("extends", True)


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for n in range(9):
        text = f"version: 1\nextends: f{n + 1}.yaml\n"
        (tmp_path / f"f{n}.yaml").write_text(text)
    with pytest.raises(PolicyError, match="more than 4 files extend each other"):
        load_policy(tmp_path / "f0.yaml")


def test_an_unknown_preset_is_told_at_its_place() -> None:
    (problem,) = problems("version: 1\nextends: balancd\n")
    assert problem.startswith("mine:2:10: extends: 'balancd' is neither a preset (balanced, ")
    assert problem.endswith("did you mean 'balanced'?")


@pytest.mark.parametrize("value", ["3", "[balanced]", "{a: b}", "true"])
def test_only_a_name_can_be_extended(value: str) -> None:
    (problem,) = problems(f"version: 1\nextends: {value}\n")
    assert problem.startswith("mine:2:10: extends: expected text, not ")


def test_a_contradiction_with_what_is_inherited_points_at_extends() -> None:
    found = problems(HEAD + "models: {refiner: null}\n")
    assert "mine:2:10: defaults.refine.mode: cascade needs models.refiner, which is null" in found


def test_mistakes_of_the_extended_file_are_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("version: 1\nbudgt: 1s\n")
    (tmp_path / "own.yaml").write_text("version: 1\nextends: base.yaml\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path / "own.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'base.yaml'}:2:1: budgt: unknown key")


def test_rules_that_are_no_list_are_told(tmp_path: Path) -> None:
    assert problems(HEAD + "rules: {a: b}\n") == [
        "mine:3:8: rules: expected a list, not {'a': 'b'}"
    ]
