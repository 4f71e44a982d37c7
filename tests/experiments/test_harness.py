"""hybrid under lm-evaluation-harness; skipped where that is not installed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybrid.cli import main
from hybrid.embedded.tasks import evaluation_set


def test_without_the_harness_its_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.delitem(__import__("sys").modules, "hybrid.experiments.harness", raising=False)
    assert main(["lm-eval", "run", "--model", "hybrid"]) != 0
    assert "pip install 'hybrid-gemma[lm-eval]'" in capsys.readouterr().err


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
"""
HOOK = "process_docs: !function hybrid.experiments.harness.documents\n"
CHOSEN = """
output_type: multiple_choice
doc_to_target: 0
doc_to_choice: "{{[answer|string, wrong|string]}}"
target_delimiter: ""
"""


def write_tasks(folder: Path) -> tuple[Path, Path]:
    """Sums, to be written and to be chosen: the files of two tasks."""
    lines = [
        {"prompt": i.prompt, "answer": i.answer, "wrong": str(int(i.answer) + 1)}
        for i in evaluation_set("add", 6)
    ]
    file, written, chosen = (folder / name for name in ("add.jsonl", "add.yaml", "choice.yaml"))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written.write_text(TASK.format(name="our_add", file=file, metric="exact_match") + WRITTEN)
    chosen.write_text(TASK.format(name="our_choice", file=file, metric="acc") + CHOSEN)
    return written, chosen


@pytest.mark.slow
def test_a_local_task_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path)
    rows = tmp_path / "rows.jsonl"
    arguments = f"policy=balanced,out={rows}"
    command = ["run", "--model", "hybrid", "--model_args", arguments]
    tasks = ["--tasks", "our_add,our_choice", "--include_path", str(tmp_path)]
    assert main(["lm-eval", *command, *tasks]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"\|our_\w+ *\|.*\|↑ *\| *1\|", shown)) == 2
    recorded = [json.loads(line) for line in rows.read_text().splitlines()]
    assert sorted(row["doc_id"] for row in recorded) == [*range(6)]
    assert all(row["seconds"] > 0 and row["plan"] for row in recorded)


def test_a_prefix_of_the_answer_is_continued() -> None:
    """`gen_prefix`, as humaneval_instruct has it: the last message is the assistant's."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from hybrid.experiments.harness import HybridLM

    model = HybridLM(policy="refiner_only")
    turns = [{"role": "user", "content": "add 12 + 34"}, {"role": "assistant", "content": "4"}]
    context = model.apply_chat_template(turns, add_generation_prompt=False)

    def asked(wanted: object) -> SimpleNamespace:
        return SimpleNamespace(args=(context, wanted), task_name="t", doc_id=0)

    limits = {"until": ["\n"], "max_gen_toks": 16}
    assert model.generate_until([asked(limits)], disable_tqdm=True) == ["6"]
    right, wrong = model.loglikelihood([asked("6"), asked("7")], disable_tqdm=True)
    assert right[1] and right[0] > -0.1 > wrong[0]


@pytest.mark.slow
def test_the_harness_knows_the_model_in_python_and_by_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    written, _ = write_tasks(tmp_path)
    written.write_text(written.read_text() + HOOK)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hybrid"]
    shown = subprocess.run(
        [*command, "--model_args", "policy=balanced", "--tasks", str(written)],
        capture_output=True,
        text=True,
    )
    assert re.search(r"\|our_add *\|.*\|↑ *\| *1\|", shown.stdout), shown.stderr[-2000:]

    from lm_eval.tasks import TaskManager

    import hybrid.experiments.harness

    assert hybrid.experiments.harness
    found = lm_eval.simple_evaluate(
        model="hybrid",
        model_args="policy=balanced",
        tasks=["our_add", "our_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert found["results"]["our_add"]["exact_match,none"] == 1
    assert found["results"]["our_choice"]["acc,none"] == 1
