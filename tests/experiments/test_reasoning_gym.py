"""Tasks of the package reasoning-gym, scored by its own scorers in a process of their own."""

from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from hybrid.errors import PolicyError
from hybrid.experiments.definition import parse_experiment
from hybrid.experiments.items import Item, list_items
from hybrid.experiments.sandbox.confine import missing
from hybrid.experiments.sandbox.score import ConfinedScorer
from hybrid.experiments.scorers import Scorers
from tests.experiments.conftest import TEXT


def items_of(tasks: str) -> list[Item]:
    experiment, document = parse_experiment(TEXT.replace("{file: items.jsonl}", tasks), "x.yaml")
    return list_items(experiment.tasks, document, Path(), Scorers(Path()))


def test_items_are_drawn_from_a_seed_and_scored_by_the_dataset(tmp_path: Path) -> None:
    tasks = "{reasoning_gym: {chain_sum: {max_terms: 3}, countdown: {}}, items: 3, seed: %d}"
    items, again, others = items_of(tasks % 1), items_of(tasks % 1), items_of(tasks % 2)
    assert [one.digest for one in items] == [one.digest for one in again]
    assert [one.digest for one in items] != [one.digest for one in others]
    assert [(one.task, one.number) for one in items][2:4] == [("chain_sum", 2), ("countdown", 0)]
    assert all(one.metadata["metadata"]["num_terms"] <= 3 for one in items[:3])
    scorers = Scorers(tmp_path)
    try:
        score = scorers.find("reasoning_gym")
        assert [score(one, one.reference) for one in items] == [1.0] * 6
        assert score(items[0], "nothing") < 0.5
    finally:
        scorers.close()


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("{reasoning_gym: [chain_sums]}", "did you mean 'chain_sum'"),
        ("{reasoning_gym: {chain_sum: {max_term: 3}}}", "max_term"),
        ("{reasoning_gym: {chain_sum: {max_terms: 0}}}", "chain_sum: "),
        ("{reasoning_gym: {chain_sum: {max_terms: x}}}", "chain_sum: "),
    ],
)
def test_what_the_package_does_not_know_is_named_with_its_line(tasks: str, said: str) -> None:
    with pytest.raises(PolicyError, match=rf"x\.yaml:4:\d+: tasks\.reasoning_gym: .*{said}"):
        items_of(tasks)


@pytest.mark.skipif(bool(missing()), reason=f"this system lacks {missing()}")
def test_an_answer_that_a_scorer_evaluates_reaches_nothing(tmp_path: Path) -> None:
    (item,) = items_of("{reasoning_gym: [countdown], items: 1}")
    scorer = ConfinedScorer()
    try:
        mark = tmp_path / "mark"
        answer = f"__import__('pathlib').Path('{mark}').touch()"
        assert scorer.score(item.task, item.metadata, answer) < 1
        assert not mark.exists()
        assert scorer.score(item.task, item.metadata, item.reference) == 1
        with pytest.raises(ValueError, match="not registered"):
            scorer.score("no_such", item.metadata, "1")
    finally:
        scorer.close()


def test_a_scorer_that_dies_is_an_error_and_the_next_answer_is_scored() -> None:
    (item,) = items_of("{reasoning_gym: [chain_sum], items: 1}")
    scorer = ConfinedScorer()
    try:
        assert scorer.score(item.task, item.metadata, item.reference) == 1
        assert scorer._process is not None
        scorer._process.kill()
        scorer._process.wait()
        with pytest.raises(ValueError, match="failed"):
            scorer.score(item.task, item.metadata, item.reference)
        assert scorer.score(item.task, item.metadata, item.reference) == 1
    finally:
        scorer.close()
