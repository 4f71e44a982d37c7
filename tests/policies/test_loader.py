"""Policy files: what they may say, and how every mistake is pointed at."""

from pathlib import Path

import pytest

from hybrid.errors import PolicyError, Problem
from hybrid.policies.loader import load_policy, parse_policy, preset_names

HEAD = "version: 1\n"


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line", "column", "key", "said"),
    [
        ("", 1, 1, "", "starts with version: 1"),
        ("- a\n", 1, 1, "", "starts with version: 1"),
        ("just text\n", 1, 1, "", "starts with version: 1"),
        ("description: x\n", 1, 1, "", "version is missing"),
        ("version: 2\n", 1, 10, "version", "not one of 1"),
        ("version: '1'\n", 1, 10, "version", "not one of 1"),
        (HEAD + "defaults:\n\tbudget: 1s\n", 3, 1, "", "not YAML"),
        (HEAD + "defaults: {budget: 1s\n", 3, 1, "", "not YAML"),
        (HEAD + "version: 1\n", 2, 1, "version", "is given twice"),
        (HEAD + "defalts: {}\n", 2, 1, "defalts", "did you mean 'defaults'?"),
        (HEAD + "zzz: {}\n", 2, 1, "zzz", "known are version, description, models"),
        (HEAD + "defaults:\n  budgt: 2s\n", 3, 3, "defaults.budgt", "did you mean 'budget'?"),
        (HEAD + "defaults: {budget: 500}\n", 2, 20, "defaults.budget", "500 is not a duration"),
        (HEAD + "defaults: {budget: 0s}\n", 2, 20, "defaults.budget", "above zero with a unit"),
        (HEAD + "defaults: {budget: soon}\n", 2, 20, "defaults.budget", "500ms"),
        (
            HEAD + "defaults: {max_new_tokens: 0}\n",
            2,
            28,
            "defaults.max_new_tokens",
            "greater than or equal to 1",
        ),
        (
            HEAD + "defaults: {max_new_tokens: '12'}\n",
            2,
            28,
            "defaults.max_new_tokens",
            "valid integer",
        ),
        (HEAD + "defaults: []\n", 2, 11, "defaults", "valid dictionary"),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: 0}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "0 is not a number of steps from 1 to 1024",
        ),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: true}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "True is not a number of steps",
        ),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: []}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "is not a number of steps",
        ),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: {from: 9, to: 8}}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "from: 9 is above to: 8",
        ),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: {from: 9}}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "is not a number of steps",
        ),
        (
            HEAD + "defaults:\n  draft: {max_denoising_steps: 5000}\n",
            3,
            32,
            "defaults.draft.max_denoising_steps",
            "from 1 to 1024",
        ),
        (
            HEAD + "defaults:\n  draft: {num_diffusion_steps: 4, max_denoising_steps: 4}\n",
            3,
            11,
            "defaults.draft.num_diffusion_steps",
            "another name of max_denoising_steps",
        ),
        (
            HEAD + "defaults:\n  draft: {entropy_bound: -1}\n",
            3,
            26,
            "defaults.draft.entropy_bound",
            "greater than or equal to 0",
        ),
        (
            HEAD + "defaults:\n  draft: {t_min: 0.9}\n",
            3,
            18,
            "defaults.draft.t_min",
            "t_min 0.9 is above t_max 0.8",
        ),
        (
            HEAD + "tasks:\n  code:\n    draft: {t_max: 0.1}\n",
            4,
            20,
            "tasks.code.draft.t_max",
            "t_min 0.4 is above t_max 0.1",
        ),
        (
            HEAD + "tasks:\n  code: {refine: {mode: verfy}}\n",
            3,
            25,
            "tasks.code.refine.mode",
            "did you mean 'verify'?",
        ),
        (
            HEAD + "tasks:\n  draft: {drft: {}}\n",
            3,
            11,
            "tasks.draft.drft",
            "did you mean 'draft'?",
        ),
        (HEAD + "tasks:\n  code: {budget: 9}\n", 3, 18, "tasks.code.budget", "not a duration"),
        (
            HEAD + "models: {refiner: null}\ndefaults: {refine: {mode: verify}}\n",
            3,
            27,
            "defaults.refine.mode",
            "verify needs models.refiner, which is null",
        ),
        (
            HEAD + "models: {refiner: null}\ndefaults: {refine: {scorer: refiner}}\n",
            3,
            29,
            "defaults.refine.scorer",
            "refiner needs models.refiner",
        ),
        (
            HEAD + "models: {drafter: null}\ndefaults: {refine: {mode: cascade}}\n",
            3,
            27,
            "defaults.refine.mode",
            "cascade needs models.drafter, which is null",
        ),
        (
            HEAD + "models: {drafter: null, refiner: null}\n",
            2,
            9,
            "models",
            "neither a drafter nor a refiner",
        ),
        (
            HEAD + "models: {drafter: {backend: nativ}}\n",
            2,
            29,
            "models.drafter.backend",
            "did you mean 'native'?",
        ),
        (
            HEAD + "rules:\n  - {name: a, when: {tsk: x}}\n",
            3,
            22,
            "rules.0.when.tsk",
            "did you mean 'task'?",
        ),
        (HEAD + "rules:\n  - {when: {blanks: true}}\n", 3, 5, "rules.0", "name is missing"),
        (
            HEAD + "tasks: {code: {}}\nrules:\n  - {name: a, when: {task: cod}}\n",
            4,
            28,
            "rules.0.when.task",
            "no task is named 'cod'; did you mean 'code'?",
        ),
        (
            HEAD + "rules:\n  - {name: a, when: {budget: {below: 1s, above: 2s}}}\n",
            3,
            30,
            "rules.0.when.budget",
            "nothing is both",
        ),
        (
            HEAD + "rules:\n  - {name: a, when: {}}\n  - {name: b, when: {blanks: true}}\n",
            4,
            5,
            "rules.1",
            "never applies: rule 'a' matches first",
        ),
        (
            HEAD + "quality: {code: {draft: {4: 0.5}, refiner: 1.0}}\n",
            2,
            17,
            "quality.code",
            "no task is named 'code'",
        ),
        (
            HEAD + "tasks: {code: {}}\nquality: {code: {draft: {4: 1.5}, refiner: 1.0}}\n",
            3,
            29,
            "quality.code.draft.4",
            "an accuracy from 0 to 1",
        ),
        (
            HEAD + "on_deadline: retrun_draft\n",
            2,
            14,
            "on_deadline",
            "did you mean 'return_draft'?",
        ),
    ],
)
def test_every_mistake_is_pointed_at(
    text: str, line: int, column: int, key: str, said: str
) -> None:
    (problem,) = problems_of(text)
    assert problem.file == "p.yaml"
    assert (problem.line, problem.column, problem.key) == (line, column, key)
    assert said in problem.message


def test_all_problems_are_told_at_once_in_the_files_order() -> None:
    text = HEAD + "defaults: {budgt: 1s, max_new_tokens: 0}\ntasks: {code: {refine: {mode: x}}}\n"
    assert [problem.line for problem in problems_of(text)] == [2, 2, 3]


def test_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = problems_of("\n".join(lines))
    assert "more than 20000 values" in problem.message


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
    assert preset_names() == ("balanced", "draft_only", "fast", "quality", "refiner_only")


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
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("version: 1\ndescription: café\n".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_000_001)
    for path, said in ((latin, "UTF-8"), (large, "bytes"), (tmp_path, "")):
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        (problem,) = caught.value.problems
        assert str(path) in problem.file
        assert said in problem.message


def test_a_file_gives_its_path_as_the_policys_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD)
    assert load_policy(file).name == str(file)
