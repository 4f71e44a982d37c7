"""Every setting of a policy refuses values of another kind, and says where the value stands."""

import pytest

from hybrid.errors import PolicyError
from hybrid.policies.loader import parse_policy
from hybrid.policies.schema import MAX_RULES, MAX_TASKS

NOT_TEXT = ("3", "1.5", "true", "[x]", "{x: y}")
NOT_A_NUMBER = ("x", "'1'", "true", "[1]", "{x: 1}", ".nan", ".inf", "1" * 41)
NOT_A_COUNT = ("x", "'1'", "1.5", "true", "[1]", "{x: 1}", "-1", "9" * 10_000)
NOT_A_DURATION = ("1", "x", "1 s s", "-1s", "0s", "1d", "[1s]", "{s: 1}", "true", "1e3s")
NOT_A_SECTION = ("x", "3", "true", "[]", "''")
NOT_STEPS = ("0", "1025", "1.5", "x", "true", "[]", "[0]", "[[1]]", "{from: 1}", "{from: 2, to: 1}")
DRAFT = {
    "max_denoising_steps": NOT_STEPS,
    "entropy_bound": (*NOT_A_NUMBER, "-0.1"),
    "t_min": (*NOT_A_NUMBER, "-1", "0"),
    "t_max": NOT_A_NUMBER,
    "stability_threshold": NOT_A_COUNT,
    "confidence_threshold": (*NOT_A_NUMBER, "-1"),
}
REFINE = {
    "mode": ("3", "true", "{x: y}", "[]", "verfy", "[none, verfy]", "[3]"),
    "scorer": (*NOT_TEXT, "selv"),
    "min_mean_logprob": (*NOT_A_NUMBER, "0.5"),
    "min_token_logprob": (*NOT_A_NUMBER, "1"),
    "temperature": (*NOT_A_NUMBER, "-1"),
    "repair_with": (*NOT_TEXT, "nobody"),
    "guide_every": (*NOT_A_COUNT, "0"),
    "drafts": (*NOT_A_COUNT, "1", "17"),
}
SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("version",): ("2", "'1'", "1.0", "true", "[1]", "x"),
    ("extends",): (
        "3",
        "true",
        "[x]",
        "{x: y}",
        "balancd",
        "none.yaml",
        "'a\\0.yaml'",
        "../x.yaml",
    ),
    ("description",): NOT_TEXT,
    ("on_deadline",): (*NOT_TEXT, "return"),
    **{(name,): NOT_A_SECTION for name in ("models", "defaults", "tasks", "quality")},
    ("rules",): ("x", "3", "true", "{}", "''"),
    ("models", "refiner"): NOT_A_SECTION,
    ("models", "drafter", "backend"): (*NOT_TEXT, "vllm"),
    ("models", "drafter", "model"): (*NOT_TEXT, "''"),
    ("models", "drafter", "device"): (*NOT_TEXT, "gpu", "cuda:x"),
    ("models", "drafter", "activations"): (*NOT_TEXT, "int8"),
    ("defaults", "budget"): NOT_A_DURATION,
    ("defaults", "max_new_tokens"): (*NOT_A_COUNT, "0"),
    ("defaults", "expected_tokens"): (*NOT_A_COUNT, "0"),
    ("defaults", "draft"): NOT_A_SECTION,
    ("tasks", "a"): NOT_A_SECTION,
    ("tasks", "a", "description"): NOT_TEXT,
    ("tasks", "a", "budget"): NOT_A_DURATION,
    ("tasks", "a", "refine"): NOT_A_SECTION,
    **{("defaults", "draft", name): wrong for name, wrong in DRAFT.items()},
    **{("tasks", "a", "draft", name): wrong[:3] for name, wrong in DRAFT.items()},
    **{("defaults", "refine", name): wrong for name, wrong in REFINE.items()},
}
CASES = [(location, wrong) for location, values in SETTINGS.items() for wrong in values]


def text_with(location: tuple[str, ...], value: str) -> tuple[str, int, int]:
    """A policy with the value, and the line and column where it stands."""
    head = "" if location == ("version",) else "version: 1\n"
    outer = [f"{'  ' * depth}{key}:\n" for depth, key in enumerate(location[:-1])]
    last = f"{'  ' * len(outer)}{location[-1]}: "
    text = head + "".join(outer) + last
    return f"{text}{value}\n", text.count("\n") + 1, len(last) + 1


@pytest.mark.parametrize(
    ("location", "wrong"), CASES, ids=lambda part: str(part)[:40] if part else "empty"
)
def test_a_wrong_value_is_refused_where_it_stands(location: tuple[str, ...], wrong: str) -> None:
    text, line, column = text_with(location, wrong)
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("p.yaml", line)
    assert problem.column >= column  # in a list or mapping, of the part that is wrong
    assert problem.key.startswith(".".join(location))
    assert len(problem.message) < 310 and "ruamel" not in problem.message


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 250


@pytest.mark.parametrize("key", ["tasks", "defaults", "models", "rules", "quality"])
@pytest.mark.parametrize("tag", ["!!omap", "!!set", "!!python/name:os.system", "!x", "!!map"])
def test_no_tag_is_obeyed(key: str, tag: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(f"version: 1\n{key}: {tag}\n  a: 1\n", "p.yaml")
    assert (2, key) in {(problem.line, problem.key) for problem in caught.value.problems}
    assert any(f"no tags such as {tag}" in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "such as http://localhost:8000/v1"),
        ("ftp://host/", "such as http"),
        ("http://", "such as http"),
        ("http:///v1", "such as http"),
        ("http://[::1", "Invalid IPv6"),
        ("http://[x]:80/", "address"),
        ("http://host:0/", "such as http"),
        ("http://host:99999/", "Port"),
        ("http://host:abc/", "Port"),
        ("http://a b/", "such as http"),
        ("http://a..b/", "address"),
        ("http://ho$t/", "such as http"),
        ("http://user:word@host/", "api_key_env"),
        ("http://host/v1?key=x", "no ?"),
        ("http://" + "a" * 300 + "/", "address"),
        ("http://host\\@other/", "such as http"),
    ],
)
def test_an_address_that_no_client_could_use_is_refused(url: str, said: str) -> None:
    text = f"version: 1\nmodels:\n  refiner: {{backend: vllm, model: x, url: '{url}'}}\n"
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "models.refiner.url")
    assert said in problem.message


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://[::1]:80/", "http://bücher.example/v1"]
)
def test_addresses_of_servers_are_accepted(url: str) -> None:
    text = f"version: 1\nmodels: {{refiner: {{backend: vllm, model: x, url: '{url}'}}}}\n"
    policy = parse_policy(text, "p.yaml")
    assert policy.models.refiner is not None and policy.models.refiner.url == url


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HOME", "hybrid_x", "HYBRID_A B", "''"])
def test_a_servers_key_comes_from_few_variables(name: str) -> None:
    refiner = f"{{backend: vllm, model: x, url: 'http://h', api_key_env: {name}}}"
    with pytest.raises(PolicyError, match=r"api_key_env: .*HYBRID_"):
        parse_policy(f"version: 1\nmodels: {{refiner: {refiner}}}\n", "p.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: {" + "".join(f"t{n}: {{}}, " for n in range(MAX_TASKS + 1)) + "}", "at most 500"),
        (
            "rules: ["
            + "".join(
                f"{{name: r{n}, when: {{load: {{above: {n}, below: {n + 2}}}}}}}, "
                for n in range(MAX_RULES + 1)
            )
            + "]",
            "at most 200",
        ),
        ("quality: [" + "x, " * 20_000, "more than 20000 keys, values and brackets"),
        ("tasks:\n  " + "- " * 60 + "x", "nested deeper than 50 levels"),
    ],
)
def test_a_limit_is_told_with_its_number(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        parse_policy(f"version: 1\n{text}\n", "p.yaml")


def test_a_file_full_of_mistakes_tells_the_first_of_them() -> None:
    text = "version: 1\ntasks:\n" + "".join(f"  t{n}: {{bugdet: 1s}}\n" for n in range(400))
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    assert [problem.line for problem in caught.value.problems] == [*range(3, 53)]
