"""Every mistake in a policy file is pointed at: file, line, column, key and what is allowed.

`▸` marks where each text is expected to be wrong; without one, the place is unknown.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import PolicyError, Problem
from hybrid.policies.loader import parse_policy

HERE = "▸"
DOCUMENTS = [
    ("▸", "", "a policy is a mapping that starts with version: 1"),
    ("▸# nothing but a comment\n", "", "starts with version: 1"),
    ("▸- a\n", "", "starts with version: 1"),
    ("▸just text\n", "", "starts with version: 1"),
    ("▸description: x\n", "", "version is missing"),
    ("version: ▸2\n", "version", "2 is not one of 1"),
    ("version: ▸'1'\n", "version", "'1' is not the whole number 1"),
    ("version: ▸true\n", "version", "is not the whole number 1"),
    ("version: ▸1.0\n", "version", "1.0 is not the whole number 1"),
    ("▸version:\n", "version", "is not the whole number 1"),
    ("version: 1\n▸version: 1\n", "version", "is given twice"),
    ("---\nversion: 1\n▸---\nversion: 1\n", "", "found another document"),
    ("version: 1\n▸%YAML 3.0\n---\n", "", "not YAML"),
]
SYNTAX = [
    ("defaults:\n▸\tbudget: 1s\n", "", "character '\\t' that cannot start any token"),
    ("defaults: {budget: 1s\n▸", "defaults", "not YAML"),
    ("tasks: ▸*nowhere\n", "tasks", "undefined alias 'nowhere'"),
    ("rules: [{name: a, when: {task: ▸*b}}]\n", "rules.0.when.task", "undefined alias 'b'"),
    ("description: ▸\x07\n", "", "character 0x07 is not allowed"),
    (
        "tasks: " + "{a: " * 48 + "{▸a: " + "{a: " * 800 + "}" * 900,
        "tasks" + ".a" * 48,
        "50 levels",
    ),
    ("tasks: " + "[" * 51 + "▸" + "[" * 90_000, "tasks", "more than 50 brackets"),
    (
        "tasks:\n"
        + "".join(f"{' ' * n}a:\n" for n in range(1, 49))
        + " " * 49
        + "▸a:\n"
        + "".join(f"{' ' * n}a:\n" for n in range(50, 300)),
        "tasks" + ".a" * 48,
        "nested deeper than 50 levels",
    ),
    ("tasks: {code: {}, ▸code: {}}\n", "tasks.code", "is given twice"),
    ("tasks: {a: {budget: 1s, draft: {}, ▸budget: 2s}}\n", "tasks.a.budget", "is given twice"),
    ("tasks: &all {a: ▸*all}\n", "tasks.a", "contains itself"),
    ("tasks: {a: &a {<<: ▸*a}}\n", "tasks.a.<<", "contains itself"),
    ("tasks: {a: &a {draft: {<<: ▸*a}}}\n", "tasks.a.draft.<<", "contains itself"),
    ("tasks: {a: {<<: ▸1}}\n", "tasks.a.<<", "merges a mapping, or a list of mappings"),
    ("tasks: {a: {<<: ▸[x]}}\n", "tasks.a.<<", "merges a mapping, or a list of mappings"),
    ("? ▸[tasks]\n: {}\n", "", "a key is one word"),
    (f"▸{'9' * 100}: {{}}\n", "", "a number has at most 40 characters, not 100"),
    ("defaults: ▸!!python/object:os.system {}\n", "defaults", "no tags such as !!python/object"),
    ("defaults: ▸!!omap [a: 1]\n", "defaults", "has no tags such as !!omap"),
    ("description: ▸!secret x\n", "description", "has no tags such as !secret"),
]
KINDS = [
    ("▸defaults:\n", "defaults", "expected a mapping, not null"),
    ("defaults: ▸[]\n", "defaults", "expected a mapping, not []"),
    ("tasks:\n  ▸code:\n", "tasks.code", "expected a mapping, not null"),
    ("rules: ▸{}\n", "rules", "expected a list, not {}"),
    ("rules: [▸x]\n", "rules.0", "expected a mapping, not 'x'"),
    ("description: ▸2026\n", "description", "expected text, not 2026"),
    (
        f"defaults: {{max_new_tokens: ▸{'9' * 10_000}}}\n",
        "defaults.max_new_tokens",
        "40 characters",
    ),
    ("▸7: x\n", "7", "a name is text here, not 7"),
    ("tasks: {▸true: {}}\n", "tasks.1", "a name is text here, not true"),
    ("models: {refiner: {model: ▸''}}\n", "models.refiner.model", "text that is not empty"),
    ("defaults: {max_new_tokens: ▸'9'}\n", "defaults.max_new_tokens", "a whole number, not '9'"),
    ("defaults: {max_new_tokens: ▸0}\n", "defaults.max_new_tokens", "or equal to 1, not 0"),
    ("rules: [{name: a, when: {blanks: ▸'no'}}]\n", "rules.0.when.blanks", "true or false"),
    ("rules: [{name: ▸'', when: {}}]\n", "rules.0.name", "text that is not empty"),
    ("rules: [▸{when: {}}]\n", "rules.0", "name is missing"),
]
NAMES = [
    ("▸defalts: {}\n", "defalts", "unknown key; did you mean 'defaults'?"),
    ("▸zzz: {}\n", "zzz", "unknown key; known are version, extends, description, models"),
    ("▸num_diffusion_steps: 4\n", "num_diffusion_steps", "unknown key"),
    ("defaults:\n  ▸budgt: 2s\n", "defaults.budgt", "did you mean 'budget'?"),
    ("tasks:\n  draft: {▸drft: {}}\n", "tasks.draft.drft", "did you mean 'draft'?"),
    ("rules: [{name: a, when: {▸tsk: x}}]\n", "rules.0.when.tsk", "did you mean 'task'?"),
    ("on_deadline: ▸retrun_draft\n", "on_deadline", "did you mean 'return_draft'?"),
    ("models: {drafter: {backend: ▸nativ}}\n", "models.drafter.backend", "mean 'native'?"),
    ("tasks: {a: {refine: {mode: ▸verfy}}}\n", "tasks.a.refine.mode", "did you mean 'verify'?"),
    ("defaults: {refine: {mode: [none, ▸scroe]}}\n", "defaults.refine.mode.1", "mean 'score'?"),
    (
        "tasks: {code: {}}\nrules: [{name: a, when: {task: ▸cod}}]\n",
        "rules.0.when.task",
        "no task is named 'cod'; did you mean 'code'?",
    ),
    ("quality: {code: ▸{draft: {4: 0.5}, refiner: 1.0}}\n", "quality.code", "no task is named"),
]
DURATIONS = [
    ("defaults: {budget: ▸500}\n", "defaults.budget", "500 is not a duration; write a duration"),
    ("defaults: {budget: ▸0s}\n", "defaults.budget", "above zero with a unit: 500ms, 2s"),
    ("defaults: {budget: ▸soon}\n", "defaults.budget", "'soon' is not a duration"),
    ("tasks: {code: {budget: ▸-1s}}\n", "tasks.code.budget", "'-1s' is not a duration"),
]
STEPS = [
    ("▸0", "0 is not a number of steps from 1 to 1024"),
    ("▸5000", "5000 is not a number of steps from 1 to 1024"),
    ("▸true", "True is not a number of steps"),
    ("▸8.0", "8.0 is not a number of steps"),
    ("▸[]", "[] is not a number of steps"),
    (
        "▸[4, x]",
        "'x' is not a number of steps from 1 to 1024, a list of them, or {from: 8, to: 10}",
    ),
    ("▸{from: 9}", "is not a number of steps"),
    ("▸{from: 9, to: 8}", "from: 9 is above to: 8"),
]
STEPS_KEY, ALIAS = "defaults.draft.max_denoising_steps", "defaults.draft.num_diffusion_steps"
NUMBERS = [
    ("defaults: {draft: {num_diffusion_steps: ▸0}}\n", ALIAS, "0 is not a number of steps"),
    (
        "defaults: {draft: {▸num_diffusion_steps: 4, max_denoising_steps: 4}}\n",
        ALIAS,
        "is another name of max_denoising_steps, which is given too",
    ),
    ("defaults: {draft: {entropy_bound: ▸-1}}\n", "defaults.draft.entropy_bound", "equal to 0"),
    ("defaults: {draft: {t_max: ▸.inf}}\n", "defaults.draft.t_max", "a finite number, not inf"),
    ("defaults: {draft: {t_max: ▸.nan}}\n", "defaults.draft.t_max", "a finite number, not nan"),
    (
        "defaults: {refine: {min_mean_logprob: ▸0.5}}\n",
        "defaults.refine.min_mean_logprob",
        "less than or equal to 0, not 0.5",
    ),
    ("defaults: {refine: {mode: ▸[]}}\n", "defaults.refine.mode", "a list of at least one"),
    ("defaults: {refine: {mode: ▸3}}\n", "defaults.refine.mode", "one name or a list of names"),
]
CONTRADICTIONS = [
    (
        "rules:\n  - {name: a, when: {blanks: true}}\n  - {name: ▸a, when: {blanks: false}}\n",
        "rules.1.name",
        "'a' is an earlier rule's name",
    ),
    ("defaults: {draft: {t_min: ▸0.9}}\n", "defaults.draft.t_min", "t_min 0.9 is above t_max 0.8"),
    (
        "defaults: {draft: {t_min: 0.5}}\ntasks: {a: {draft: {t_max: ▸0.45}}}\n",
        "tasks.a.draft.t_max",
        "t_min 0.5 is above t_max 0.45",
    ),
    (
        "tasks: {a: {draft: {t_max: 0.5}}}\n"
        "rules: [{name: r, when: {task: a}, draft: {t_min: ▸0.7}}]\n",
        "rules.0.draft.t_min",
        "t_min 0.7 is above t_max 0.5",
    ),
    (
        "models: {refiner: null}\ndefaults: {refine: {mode: ▸verify}}\n",
        "defaults.refine.mode",
        "verify needs models.refiner, which is null",
    ),
    (
        "models: {refiner: null}\ndefaults: {refine: {scorer: ▸refiner}}\n",
        "defaults.refine.scorer",
        "refiner needs models.refiner, which is null",
    ),
    (
        "models: {drafter: null}\ndefaults: {refine: {mode: ▸cascade}}\n",
        "defaults.refine.mode",
        "cascade needs models.drafter, which is null",
    ),
    (
        "models: {drafter: null}\ndefaults: ▸{budget: 1s}\n",
        "defaults.refine.mode",
        "none needs models.drafter, which is null",
    ),
    ("models: ▸{drafter: null, refiner: null}\n", "models", "neither a drafter nor a refiner"),
    (
        "rules: [{name: a, when: {budget: ▸{below: 1s, above: 2s}}}]\n",
        "rules.0.when.budget",
        "nothing is both below and above these",
    ),
    (
        "rules: [{name: a, when: {prompt_tokens: ▸{above: 4, below: 5}}}]\n",
        "rules.0.when.prompt_tokens",
        "nothing is both below and above these",
    ),
    (
        "rules: [{name: a, when: {}}, ▸{name: b, when: {blanks: true}}]\n",
        "rules.1",
        "never applies: rule 'a' matches first",
    ),
    (
        "rules:\n- {name: a, when: {budget: {below: 1s}}}\n"
        "- ▸{name: b, when: {budget: {below: 500ms}, blanks: true}}\n",
        "rules.1",
        "never applies: rule 'a' matches first",
    ),
    (
        "tasks: {a: {}, b: {}}\nrules:\n- {name: ab, when: {task: [a, b]}}\n"
        "- ▸{name: b, when: {task: b}}\n",
        "rules.1",
        "never applies: rule 'ab' matches first",
    ),
]
QUALITY = [
    ("draft: ▸{}", "draft", "give an accuracy for at least one number of steps"),
    ("draft: {4: ▸1.5}", "draft.4", "steps from 1 up and an accuracy from 0 to 1, not 4: 1.5"),
    ("draft: {0: ▸0.5}", "draft.0", "steps from 1 up"),
    ("draft: {▸few: 0.5}", "draft.few", "a name is a whole number here, not 'few'"),
    ("draft: {4: 0.5}, steps_used: {4: ▸-1.0}", "steps_used.4", "equal to 0, not -1.0"),
]
BODIES = [
    *(SYNTAX + KINDS + NAMES + DURATIONS + NUMBERS + CONTRADICTIONS),
    *(
        (f"defaults:\n  draft:\n    max_denoising_steps: {text}\n", STEPS_KEY, said)
        for text, said in STEPS
    ),
    *(
        (
            f"tasks: {{a: {{}}}}\nquality: {{a: {{{text}, refiner: 1.0}}}}\n",
            f"quality.a.{key}",
            said,
        )
        for text, key, said in QUALITY
    ),
]
CASES = DOCUMENTS + [(f"version: 1\n{text}", key, said) for text, key, said in BODIES]


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return caught.value.problems


@pytest.mark.parametrize(("marked", "key", "said"), CASES, ids=lambda text: repr(text)[:60])
def test_every_mistake_is_pointed_at(marked: str, key: str, said: str) -> None:
    before, marker, after = marked.partition(HERE)
    (problem,) = problems_of(before + after)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert (problem.file, problem.key) == ("p.yaml", key)
    assert (problem.line, problem.column) == ((line, column) if marker else (0, 0))
    assert said in problem.message


def test_all_problems_are_told_at_once_in_the_files_order() -> None:
    text = (
        "version: 1\n"
        "defaults:\n"
        "  draft: {num_diffusion_steps: 4, max_denoising_steps: 4, t: 1}\n"
        "  budgt: 1s\n"
        "tasks: {code: {refine: {mode: x}}}\n"
        "rules: [{name: a, when: {}}, {name: b}]\n"
    )
    assert [(problem.line, problem.key) for problem in problems_of(text)] == [
        (3, "defaults.draft.num_diffusion_steps"),
        (3, "defaults.draft.t"),
        (4, "defaults.budgt"),
        (5, "tasks.code.refine.mode"),
        (6, "rules.1"),
    ]


def test_a_mistake_under_an_alias_is_told_wherever_it_is_used() -> None:
    problems = problems_of("version: 1\ntasks: {a: &a {bad: 1}, b: *a}\n")
    assert [problem.key for problem in problems] == ["tasks.a.bad", "tasks.b.bad"]


def test_a_mistake_in_a_merged_mapping_is_told_where_it_stands() -> None:
    problems = problems_of("version: 1\ntasks:\n  a: &a {budget: 1}\n  b: {<<: *a}\n")
    assert [(problem.line, problem.key) for problem in problems] == [
        (3, "tasks.a.budget"),
        (3, "tasks.b.budget"),
    ]


def test_merged_keys_are_read_and_own_keys_win() -> None:
    text = (
        "version: 1\ntasks:\n  a: &a {budget: 1s, expected_tokens: 7}\n"
        "  b: &b {<<: *a, budget: 2s}\n  c: {<<: [*b, *a]}\n"
    )
    tasks = parse_policy(text, "p").tasks
    assert (tasks["b"].budget, tasks["b"].expected_tokens) == (2.0, 7)
    assert (tasks["c"].budget, tasks["c"].expected_tokens) == (2.0, 7)


def test_merges_cannot_blow_up() -> None:
    lines = ["version: 1", "a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    (problem,) = problems_of("\n".join(lines))
    assert "more than 20000 values" in problem.message


def test_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = problems_of("\n".join(lines))
    assert "more than 20000 values" in problem.message


PIECES = [": ", "\n", "  ", "\t", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "!", "!!", "%YAML "]
PIECES += ["---\n", "...", "? ", "|", ">", "'", '"', "#", "<<: *a", "~", "\\", "é", "\x00", "1.5"]
PIECES += ["version: 1", "tasks", "rules", "draft", "max_denoising_steps", "from: 1", "null", "1e"]


@given(st.sampled_from(["", "version: 1\n"]), st.lists(st.sampled_from(PIECES), max_size=14))
def test_any_text_is_a_policy_or_a_policy_error(head: str, pieces: list[str]) -> None:
    text = head + "".join(pieces)
    try:
        parse_policy(text, "p.yaml")
    except PolicyError as error:
        last = text.count("\n") + 1
        assert all(p.message and p.line <= last for p in error.problems)
