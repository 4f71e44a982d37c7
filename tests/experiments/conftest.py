"""A small experiment on scripted models, and a folder of records made from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.backends import Models
from hybrid.cli import main
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.experiments.conditions import list_conditions
from hybrid.experiments.definition import Load, parse_experiment
from hybrid.experiments.items import list_items
from hybrid.experiments.manifest import build_manifest
from hybrid.experiments.records import read_manifest, recording
from hybrid.experiments.runner import Pipelines, list_trials, run_trials
from hybrid.experiments.scorers import Scorers
from hybrid.refiners.scripted import ScriptedRefiner

TEXT = """
version: 1
name: small
tasks: {file: items.jsonl}
policies:
  draft:
    inline: {defaults: {refine: {mode: none}}, tasks: {}}
    vary: {defaults.draft.max_denoising_steps: [1, 2, 4]}
  verify: {inline: {defaults: {draft: {max_denoising_steps: 2}, refine: {mode: verify}}}}
  refiner: {inline: {defaults: {refine: {mode: generate}}}}
baseline: refiner
"""
SMALL_GRID = """
version: 1
name: conditions
tasks: {embedded: [list, question, add], items: 30}
policies:
  draft:
    inline: {defaults: {refine: {mode: none}}}
    vary: {defaults.draft.max_denoising_steps: [2, 8]}
  verify: {inline: {defaults: {draft: {max_denoising_steps: 8}, refine: {mode: verify}}}}
  cascade: {inline: {defaults: {draft: {max_denoising_steps: 8}, refine: {mode: cascade}}}}
  refiner: {inline: {defaults: {refine: {mode: generate}}}}
"""
ANSWERS = {f"say {word}": word * 3 for word in ("one", "two", "three", "four", "five", "six")}


def scripted_models(*chosen: Any) -> Models:
    return Models(ScriptedDrafter(ANSWERS), ScriptedRefiner(ANSWERS))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("hybrid.policies.calibration.SHORT", "say one")
    monkeypatch.setattr("hybrid.policies.calibration.LONG", "say three")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an experiment's files are: items of two tasks."""
    lines = [
        f'{{"prompt": "{prompt}", "reference": "{answer}", "task": "{"ab"[place % 2]}"}}\n'
        for place, (prompt, answer) in enumerate(ANSWERS.items())
    ]
    (tmp_path / "items.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def run_small(folder: Path) -> Callable[..., Path]:
    """Run the experiment, or another text, on scripted models; the folder of its records."""

    def run(text: str = TEXT, out: str = "out", load: Load | None = None) -> Path:
        experiment, document = parse_experiment(text, "small.yaml")
        conditions = list_conditions(experiment, document, folder)
        scorers = Scorers(folder)
        items = list_items(experiment.tasks, document, folder, scorers)
        trials = list_trials(conditions, items, experiment.seeds, experiment.repeats)
        where = folder / out
        before = read_manifest(where) if (where / "experiment.json").is_file() else {}
        pipelines = Pipelines(where, before.get("costs"), scripted_models)
        for condition in conditions:
            pipelines.pipeline(condition)
        manifest = build_manifest(experiment, text, conditions, items, pipelines.costs)
        with recording(where, manifest) as recorder:
            run_trials(trials, pipelines, scorers, recorder, load or experiment.load)
        return where

    return run


@pytest.fixture(scope="session")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pair under every condition, run by the command."""
    folder = tmp_path_factory.mktemp("conditions")
    (folder / "conditions.yaml").write_text(SMALL_GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert (
            main(["experiment", "run", str(folder / "conditions.yaml"), "--out", str(folder)]) == 0
        )
    return folder
