"""What an experiment file may say, and how it is told what is wrong with it."""

import os
from pathlib import Path

import pytest

from hybrid.errors import PolicyError
from hybrid.experiments.conditions import list_conditions
from hybrid.experiments.definition import MAX_BYTES, load_experiment, parse_experiment
from hybrid.experiments.items import list_items
from hybrid.experiments.scorers import Scorers
from tests.experiments.conftest import TEXT

ROOT = Path(__file__).parents[2]


def problems(text: str, folder: Path = Path()) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        experiment, document = parse_experiment(text, "x.yaml")
        list_conditions(experiment, document, folder)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["frontier", "curves"])
def test_the_examples_are_valid(name: str) -> None:
    experiment, document = load_experiment(ROOT / "examples" / f"{name}.yaml")
    assert len(list_conditions(experiment, document, ROOT)) > 5
    assert len(list_items(experiment.tasks, document, ROOT, Scorers(ROOT))) == 500


def test_twelve_lines_are_enough_for_a_frontier() -> None:
    assert len((ROOT / "examples" / "frontier.yaml").read_text().splitlines()) <= 12


def test_a_grid_is_written_out_and_named_by_its_values(folder: Path) -> None:
    experiment, document = parse_experiment(
        "version: 1\ntasks: {file: items.jsonl}\npolicies:\n  g:\n    policy: balanced\n"
        "    vary: {defaults.budget: [1s, 2s],"
        " tasks.chat.draft.max_denoising_steps: [3, [4, 5]]}\n",
        "x.yaml",
    )
    conditions = list_conditions(experiment, document, folder)
    assert [condition.name for condition in conditions] == [
        "g budget=1s, max_denoising_steps=3",
        "g budget=1s, max_denoising_steps=[4, 5]",
        "g budget=2s, max_denoising_steps=3",
        "g budget=2s, max_denoising_steps=[4, 5]",
    ]
    assert conditions[3].policy.defaults.budget == 2.0
    assert conditions[3].policy.tasks["chat"].draft.max_denoising_steps == (4, 5)
    assert conditions[3].policy.tasks["add"].expected_tokens == 4  # of the preset
    assert len({condition.digest for condition in conditions}) == 4


def test_an_unknown_field_in_a_grid_is_found_with_its_line() -> None:
    text = TEXT.replace("defaults.draft.max_denoising_steps", "defaults.draft.max_denoising_step")
    (problem, *_) = problems(text)
    assert problem.startswith("x.yaml:8:12: policies.draft.vary.")
    assert "unknown key; did you mean 'max_denoising_steps'?" in problem


def test_a_wrong_value_in_a_grid_is_found_with_its_line() -> None:
    (problem, *_) = problems(TEXT.replace("[1, 2, 4]", "[1, zero]"))
    assert problem.startswith("x.yaml:8:12: policies.draft.vary.")
    assert "'zero' is not a number of steps" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name: small", "nam: small"), "3:1: nam: unknown key; did you mean 'name'?"),
        (("tasks: {file: items.jsonl}", "tasks: []"), "tasks: expected a list of at least one"),
        (("tasks: {file: items.jsonl}\n", ""), "tasks is missing"),
        (("steps: [1, 2, 4]", "steps: []"), "expected a list of at least one, not []"),
        (("{file: items.jsonl}", "{file: items.jsonl, embedded: all}"), "one of them"),
        (("{refine: {mode: none}}", "{refine: {mode: non}}"), "did you mean 'none'"),
        (("baseline: refiner", "baseline: refine"), "did you mean 'refiner'?"),
        (("baseline: refiner", "frontier: [draft, verifi]"), "did you mean 'verify'?"),
        (("baseline: refiner", "seeds: [-1]"), "seeds.0: greater than or equal to 0"),
        (("baseline: refiner", "load: {rate: 0}"), "load.rate"),
        (("{file: items.jsonl}", "{file: x, columns: {promt: q}}"), "'promt' is not one of prompt"),
        (("{file: items.jsonl}", "{reasoning_gym: [a], scorer: exact}"), "has scorers and names"),
        (("inline: {defaults: {refine: {mode: generate}}}", "policy: fastest"), "neither a preset"),
    ],
)
def test_every_mistake_is_named_at_its_place(change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    assert said in "\n".join(problems(TEXT.replace(*change)))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_experiment(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    "name",
    ["../../../x", "/tmp/x", "a/b", ".", "..", ".hidden", "x\\0", "con", "NUL.txt", "lpt1", "a ",
     "a.", "a\\nb", "a:b", "x" * 101, ""],
)  # fmt: skip
def test_a_name_is_a_folders_and_nothing_else(name: str) -> None:
    (problem, *_) = problems(TEXT.replace("name: small", f'name: "{name}"'))
    assert problem.startswith("x.yaml:3:7: name: ")


@pytest.mark.parametrize("name", ["a", "Qwen 3.5, 8-bit", "früher_2", "x" * 100])
def test_usual_names_are_names(name: str) -> None:
    assert parse_experiment(TEXT.replace("name: small", f"name: {name}"), "x.yaml")[0].name == name


def test_only_regular_files_of_some_size_are_experiments(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe.yaml", tmp_path / "large.yaml"
    os.mkfifo(pipe)
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    for file, said in ((pipe, "regular"), (Path("/dev/zero"), "regular"), (large, "limit")):
        with pytest.raises(PolicyError, match=said):
            load_experiment(file)
