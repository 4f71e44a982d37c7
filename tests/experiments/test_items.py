"""Task files: what they may hold, and that data from them runs nothing."""

import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.cli import main
from hybrid.errors import PolicyError, RequestError
from hybrid.experiments.definition import COLUMNS, parse_experiment
from hybrid.experiments.items import Item, list_items
from hybrid.experiments.records import read_records
from hybrid.experiments.scorers import Scorers
from hybrid.types import Message
from tests.experiments.conftest import TEXT


def items_of(tasks: str, folder: Path) -> list[Item]:
    experiment, document = parse_experiment(TEXT.replace("{file: items.jsonl}", tasks), "x.yaml")
    return list_items(experiment.tasks, document, folder, Scorers(folder))


DEEP = '{"prompt": "x", "metadata": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "at least one item"), ("{oops", "items.jsonl:2"), ("[1]", "items.jsonl:2.*an object"),
        ('{"text": "x"}', "known are prompt"), ('{"reference": "x"}', "with a prompt"),
        ('{"prompt": 3}', "a prompt, which is text"), ('{"prompt": ""}', "at least one word"),
        ('{"prompt": "\\ud800"}', "UTF-8"), ('{"prompt": "x", "messages": []}', "or messages"),
        ('{"messages": [{"role": "user"}]}', "a role"), ('{"messages": "x"}', ":2"),
        ('{"prompt": "x", "referenc": "y"}', "did you mean 'reference'"),
        ('{"prompt": "x", "scorer": "exakt"}', "did you mean 'exact'"),
        ('{"prompt": "x", "scorer": ["exact"]}', "one of"),
        ('{"prompt": "x", "scorer": ":"}', "data runs no code"),
        ('{"prompt": "x", "scorer": ".x:y"}', "data runs no code"),
        ('{"prompt": "x", "scorer": "os:execv"}', "data runs no code"),
        ('{"prompt": "x", "scorer": "ours:f"}', "data runs no code"),
        ('{"prompt": "x", "scorer": "timeit:timeit", "reference": "1/0"}', "data runs no code"),
        ('{"prompt": "x", "scorer": "code", "reference": "1/0"}', "data runs no code"),
        ('{"prompt": "x", "scorer": "reasoning_gym"}', "one of"),
        ('{"prompt": "x", "task": ["a"]}', "items.jsonl:2: task"),
        ('{"prompt": "x", "task": {"a": 1}}', "items.jsonl:2: task"),
        ('{"prompt": "x", "metadata": 3}', "items.jsonl:2: metadata"),
        ('{"prompt": "x", "metadata": {"a": NaN}}', "NaN is no JSON"),
        (DEEP, "one JSON object a line"),
    ],
)  # fmt: skip
def test_a_broken_or_hostile_line_is_named_and_nothing_runs(
    folder: Path, line: str, said: str
) -> None:
    (folder / "ours.py").write_text("raise SystemExit('imported')")
    (folder / "items.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(RequestError, match=said):
        items_of("{file: items.jsonl}", folder)


@pytest.mark.parametrize("name", ["no.jsonl", "", ".", "a\\0b", "pipe", "/dev/zero", "/dev/stdin"])
def test_only_regular_files_are_read(folder: Path, name: str) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(RequestError, match=r"tasks\.file"):
        items_of(f'{{file: "{name}"}}', folder)


def test_a_large_file_is_refused_with_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.experiments.task_files.MAX_BYTES", 100)
    with pytest.raises(RequestError, match="limit"):
        items_of("{file: items.jsonl}", folder)


@pytest.mark.parametrize("scorer", [":", ".x:y", "os:execv", "no_such_package_at_all:f", "exakt"])
def test_a_scorer_of_the_experiment_is_named_with_its_line(folder: Path, scorer: str) -> None:
    with pytest.raises(PolicyError, match=r"x\.yaml:4:\d+: tasks\.scorer"):
        items_of(f'{{file: items.jsonl, scorer: "{scorer}"}}', folder)
    with pytest.raises(PolicyError, match=r"x\.yaml:4:\d+: tasks\.1\.scorer"):
        items_of(f'[{{embedded: add}}, {{file: items.jsonl, scorer: "{scorer}"}}]'.replace(
            "embedded: add", "embedded: [add]"), folder)  # fmt: skip


def test_items_are_numbered_by_task_and_cut_to_the_number_wanted(folder: Path) -> None:
    items = items_of("[{file: items.jsonl, items: 2}]", folder)
    assert [(item.task, item.number) for item in items] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {item.scorer for item in items} == {"exact"}


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say one"}]


def test_lines_may_have_a_conversation_an_id_and_metadata(folder: Path) -> None:
    line = {"messages": TURNS, "reference": [1], "id": 7, "metadata": {"level": 2}, "task": "t"}
    (folder / "items.jsonl").write_text(json.dumps(line))
    (item,) = items_of("{file: items.jsonl}", folder)
    assert item.messages == (Message("system", "Be brief."), Message("user", "say one"))
    assert (item.prompt, item.reference, item.id) == ("say one", "[1]", "7")
    assert item.metadata == {"level": 2}


def write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    pandas = pytest.importorskip("pandas")
    if file.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        pandas.DataFrame(rows).to_parquet(file)
    else:
        pandas.DataFrame(rows).to_csv(file, index=False)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_tables_are_read_with_their_own_columns(folder: Path, name: str) -> None:
    write_table(
        folder / name,
        [{"question": "say \"one\",\ntwo", "answer": "4", "subject": "maths", "task": "q"},
         {"question": "say two", "answer": "5", "subject": "art", "task": "q"}],
    )  # fmt: skip
    one, two = items_of(
        f"{{file: {name}, columns: {{prompt: question, reference: answer}}}}", folder
    )
    assert (one.prompt, one.reference, one.task) == ('say "one",\ntwo', "4", "q")
    assert two.metadata == {"subject": "art"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,reference\nx\n", "x.csv:2"), ("prompt\nx,y\n", "x.csv:2"),
        ("a,b\n1,2\n", "x.csv:2"),
        ('prompt\n"x\n', "x.csv"), ("prompt,messages\n,[{oops\n", "x.csv:2: messages"),
        ("", "one item"),
    ],
)  # fmt: skip
def test_broken_tables_are_named_with_their_line(folder: Path, text: str, said: str) -> None:
    (folder / "x.csv").write_text(text)
    with pytest.raises(RequestError, match=said):
        items_of("{file: x.csv}", folder)


def test_a_file_that_is_no_parquet_is_named(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    (folder / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(RequestError, match=r"x\.parquet"):
        items_of("{file: x.parquet}", folder)


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "import no_such", "1 / 0", "f = 3"])
def test_a_scorer_that_cannot_be_imported_is_an_error_and_nothing_is_recorded(
    folder: Path, body: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ours.py").write_text(f"{body}\ndef g(): pass\nif False:\n    pass\nf = 3\n")
    text = TEXT.replace("{file: items.jsonl}", "{file: items.jsonl, scorer: 'ours:f'}")
    (folder / "small.yaml").write_text(text)
    assert main(["experiment", "run", str(folder / "small.yaml"), "--out", str(folder / "o")]) == 2
    assert "scorer: 'ours:f'" in capsys.readouterr().err
    assert not (folder / "o").exists()


def test_a_dry_run_imports_no_scorer_and_a_run_scores_with_the_item(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.experiments.conftest import scripted_models

    monkeypatch.setattr("hybrid.experiments.runner.load_models", scripted_models)
    (folder / "ours.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.seen').touch()\n"
        "def f(prompt, reference, text, item): return item.metadata['level'] / 10\n"
    )
    lines = [{"messages": TURNS[1:], "id": "x1", "metadata": {"level": 5}}]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = TEXT.replace("{file: items.jsonl}", "{file: items.jsonl, scorer: 'ours:f'}")
    (folder / "small.yaml").write_text(text)
    command = ["experiment", "run", str(folder / "small.yaml"), "--out", str(folder / "out")]
    assert main([*command, "--dry-run"]) == 0
    assert not (folder / "ours.seen").exists()
    assert main(command) == 0
    records = read_records(folder / "out")
    assert {(one.score, one.item_id, one.messages[0].content) for one in records} == {
        (0.5, "x1", "say one")
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
lines = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(st.sampled_from([*COLUMNS, "x"]), json_values).map(
        lambda values: json.dumps(values).encode()
    ),
)


@given(st.lists(lines, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_a_file_holds_is_items_or_an_error(contents: list[bytes]) -> None:
    with TemporaryDirectory() as name:
        for ending in (".jsonl", ".csv"):
            Path(name, f"x{ending}").write_bytes(b"\n".join(contents))
            with suppress(RequestError):
                items = items_of(f"{{file: x{ending}}}", Path(name))
                assert all(isinstance(one.digest, str) and one.scorer != "code" for one in items)
