"""Policy files and presets: where they are read from, and how they are understood."""

import os
import re
from pathlib import Path

import pytest

from hybrid.deadline import parse_duration
from hybrid.errors import PolicyError, Problem
from hybrid.policies.loader import load_policy, parse_policy, preset_names

HEAD = "version: 1\n"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("{task: a}", "{}"),
        ("{task: a}", "{task: [a, b]}"),
        ("{blanks: true}", "{blanks: false}"),
        ("{budget: {below: 1s}}", "{budget: {below: 2s}}"),
        ("{budget: {below: 1s}}", "{budget: {above: 2s}}"),
        ("{prompt_tokens: {above: 9}}", "{prompt_tokens: {above: 8}}"),
        ("{task: a, blanks: true}", "{task: a}"),
        ("{budget: {}}", "{}"),
    ],
)
def test_a_rule_that_can_still_match_stands(earlier: str, later: str) -> None:
    rules = f"rules:\n- {{name: x, when: {earlier}}}\n- {{name: y, when: {later}}}\n"
    assert len(parse_policy(f"{HEAD}tasks: {{a: {{}}, b: {{}}}}\n{rules}", "p").rules) == 2


def test_anchors_are_followed() -> None:
    policy = parse_policy(
        HEAD + "tasks:\n  a: &a {budget: 1s}\n  b: *a\n",
        "p.yaml",
    )
    assert policy.tasks["b"].budget == 1.0


def test_steps_may_be_an_order_a_list_or_a_range() -> None:
    def steps(value: str) -> tuple[int, ...] | None:
        text = f"{HEAD}defaults: {{draft: {{max_denoising_steps: {value}}}}}\n"
        return parse_policy(text, "p").defaults.draft.max_denoising_steps

    assert steps("12") == (12,)
    assert steps("[24, 8, 8]") == (8, 24)
    assert steps("{from: 8, to: 10}") == (8, 9, 10)


def test_a_mode_given_twice_is_one_choice() -> None:
    policy = parse_policy(HEAD + "defaults: {refine: {mode: [verify, none, verify]}}\n", "p")
    assert policy.defaults.refine.mode == ("verify", "none")


def test_a_task_may_have_the_name_of_a_setting() -> None:
    policy = parse_policy(HEAD + "tasks: {num_diffusion_steps: {}, draft: {}}\n", "p")
    assert list(policy.tasks) == ["num_diffusion_steps", "draft"]
    assert policy.notes == ()


def test_the_articles_name_of_the_steps_is_read_with_a_note() -> None:
    policy = parse_policy(HEAD + "defaults: {draft: {num_diffusion_steps: 9}}\n", "p")
    assert policy.defaults.draft.max_denoising_steps == (9,)
    assert policy.notes == (
        "defaults.draft.num_diffusion_steps: read as max_denoising_steps, the setting's own name",
    )


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_serve_the_embedded_tasks(name: str) -> None:
    from hybrid.embedded.tasks import TASKS

    policy = load_policy(name)
    assert policy.name == name
    assert policy.description
    assert TASKS.keys() <= policy.tasks.keys()


def test_the_presets_are_the_five_documented_ones() -> None:
    names = ("balanced", "draft_only", "fast", "lossless", "quality", "refiner_only")
    assert preset_names() == names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("balancd", "did you mean 'balanced'?"),
        ("no/such.yaml", "no such file"),
    ],
)
def test_what_is_neither_preset_nor_file_is_told(name: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(name)
    assert said.lower() in str(caught.value).lower()


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    latin, wide = tmp_path / "latin.yaml", tmp_path / "wide.yaml"
    latin.write_bytes("version: 1\ndescription: café\n".encode("latin-1"))
    wide.write_bytes("version: 1\n".encode("utf-16"))
    large, pipe = tmp_path / "large.yaml", tmp_path / "pipe.yaml"
    large.write_text(HEAD + "#" * 10_000_000)
    os.mkfifo(pipe)
    too_large = "larger than 200000 bytes, the limit"
    for path, line, column, message in (
        (latin, 2, 17, "not UTF-8 at byte 27"),
        (wide, 1, 1, "not UTF-8 at byte 0"),
        (large, 0, 0, too_large),
        (pipe, 0, 0, "not a regular file"),
        (Path("/dev/zero"), 0, 0, "not a regular file"),
        (tmp_path, 0, 0, "Is a directory"),
        (tmp_path / "none.yaml", 0, 0, "No such file or directory"),
    ):
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        assert caught.value.problems == (Problem(str(path), line, column, "", message),)


@pytest.mark.parametrize("before", ["", "\ufeff"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, before: str) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(f"{before}version: 1\r\ndefaults:\r\n  budgt: 1s\r\n".encode())
    with pytest.raises(PolicyError) as caught:
        load_policy(file)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.key) == (3, 3, "defaults.budgt")


def test_a_file_gives_its_path_as_the_policys_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD)
    assert load_policy(file).name == str(file)


@pytest.mark.parametrize("page", ["README.md", "docs/policies.md", "docs/refining.md"])
def test_the_policies_in_the_documentation_are_valid(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if HEAD[:-1] in block]
    assert blocks
    for block in blocks:
        assert parse_policy(block, page).notes == ()


def test_the_documentation_has_a_row_for_every_preset() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+m?s) \|", text, re.M))
    policies = [load_policy(name) for name in preset_names()]
    assert {name: parse_duration(budget) for name, budget in rows.items()} == {
        policy.name: policy.defaults.budget for policy in policies
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {refiner: {}}", "models.refiner: is loaded and never used"),
        ("models: {refiner: {}}\ndefaults: {refine: {mode: [none, verify]}}", ""),
        (
            "models: {refiner: {}}\ndefaults: {refine: {mode: score, scorer: self}}",
            "models.refiner",
        ),
        ("models: {refiner: {}}\ndefaults: {refine: {mode: score}}", ""),
        ("models: {refiner: {}}\ntasks: {a: {refine: {mode: generate}}}", ""),
        (
            "models: {drafter: {}}\ndefaults: {refine: {mode: generate}}",
            "models.drafter: is",
        ),
        ("models: {drafter: {}}\ndefaults: {refine: {mode: verify}}", ""),
        ("defaults: {budget: 1s}", ""),
    ],
)
def test_a_model_that_is_named_and_never_used_is_noted(text: str, said: str) -> None:
    notes = parse_policy(f"{HEAD}{text}\n", "p").notes
    assert [note[: len(said)] for note in notes] == ([said] if said else [])
