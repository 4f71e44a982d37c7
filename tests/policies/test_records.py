"""What a task's latest requests are remembered as, and what follows from them."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hybrid.policies.latency import Quantiles, TaskStatistics, cap_range
from hybrid.policies.records import MAX_AGE_S, MAX_TASKS, WINDOW, Obsolete, Record, Records
from hybrid.types import Result

MakeResult = Callable[..., Result]
NONE, NOW = Quantiles(1.0, 1.0), 1.7e9


def learn(*results: Result) -> Record:
    record = Record()
    for result in results:
        record.add(result)
    return record


def test_too_few_requests_say_nothing(make_result: MakeResult) -> None:
    found = learn(make_result()).statistics(TaskStatistics())
    assert found.requests == 1
    assert (found.lengths, found.used, found.written) == (None, {}, {})
    assert found.corrections == {"none": NONE}


def test_many_requests_say_what_is_usual(make_result: MakeResult) -> None:
    results = [make_result(tokens=tokens, steps=2, cap=8) for tokens in range(1, 41)]
    found = learn(*results).statistics(TaskStatistics())
    assert found.lengths is not None
    assert found.used == {cap_range(8): Quantiles(0.25, 0.25)}
    assert found.corrections["none"].p50 == pytest.approx(1.0)


def test_corrections_are_relative_to_the_prediction_without_them(make_result: MakeResult) -> None:
    late = [make_result(total_s=0.04, predicted=(0.02, 0.03), service=(0.013, 0.025))] * 30
    found = learn(*late).statistics(TaskStatistics()).corrections["none"]
    assert found.p50 == pytest.approx(0.04 / 0.013)
    assert found.p95 == pytest.approx(0.04 / 0.025)


def test_waiting_is_not_service_time(make_result: MakeResult) -> None:
    waited = [make_result(total_s=9.02, predicted=(0.02, 0.02), draft_wait_s=4, refine_wait_s=5)]
    found = learn(*waited * 30).statistics(TaskStatistics()).corrections["none"]
    assert found.p50 == pytest.approx(1.0)


def test_one_absurd_time_counts_as_a_factor_of_ten(make_result: MakeResult) -> None:
    record = learn(make_result(total_s=1e9), make_result(total_s=1e-9))
    assert [round(math.exp(median)) for median, _ in record.errors["none"]] == [10, 0]


def test_a_p95_takes_more_requests_than_a_median(make_result: MakeResult) -> None:
    others = TaskStatistics(corrections={"none": Quantiles(5.0, 6.0)})
    few = learn(*[make_result(total_s=0.04)] * 10).statistics(others).corrections["none"]
    assert few.p50 == pytest.approx(2.0)
    assert few.p95 == 6.0


def test_what_the_refiner_wrote_is_its_passes_after_the_first(make_result: MakeResult) -> None:
    results = [make_result(mode="verify", passes=5, tokens=8)] * 10
    assert learn(*results).statistics(TaskStatistics()).written == {
        ("verify", 4): Quantiles(0.5, 0.5)
    }
    alone = [make_result(mode="generate", cap=0, passes=5, tokens=5)] * 10
    found = learn(*alone).statistics(TaskStatistics())
    assert (found.written, found.used) == ({}, {})


def test_an_infills_length_is_no_tasks(make_result: MakeResult) -> None:
    assert not learn(make_result(blank_tokens=3)).lengths


def test_a_request_cut_short_counts_only_where_it_was_late_already(make_result: MakeResult) -> None:
    early, late = make_result(0.01, reason="budget"), make_result(0.05, reason="budget")
    record = learn(early, late)
    assert [math.exp(error) for error, _ in record.errors["none"]] == pytest.approx([2.5])
    assert (len(record.lengths), record.used) == (0, {})


def test_what_follows_is_due_at_every_request_at_first_then_now_and_then(
    make_result: MakeResult,
) -> None:
    record, due = Record(), []
    for number in range(1, 61):
        record.add(make_result())
        if record.is_due:
            due.append(number)
    assert due == [*range(1, 41), 45, 50, 55, 60]


def test_old_requests_are_forgotten(make_result: MakeResult) -> None:
    record = learn(*[make_result(tokens=1)] * 200, *[make_result(tokens=9)] * WINDOW)
    assert record.requests == 200 + WINDOW
    assert {tokens for *_, tokens in record.lengths} == {9}


@pytest.mark.parametrize("tells", ["prompt_tokens", "amount"])
def test_what_tells_an_answers_length_is_found(make_result: MakeResult, tells: str) -> None:
    rng, results = random.Random(2), []
    for _ in range(WINDOW):
        prompt, amount = rng.randint(5, 30), rng.randint(1, 9)
        result = make_result(tokens=3 * (amount if tells == "amount" else prompt))
        signals = replace(result.signals, prompt_tokens=prompt, length_hint=amount)
        results.append(replace(result, signals=signals))
    lengths = learn(*results).statistics(TaskStatistics()).lengths
    assert lengths is not None
    assert lengths.tells == tells
    assert lengths.expect(7, 7).p50 == pytest.approx(21, abs=4)


def test_lengths_kept_before_there_were_amounts_are_read(make_result: MakeResult) -> None:
    values = learn(*[make_result(tokens=4)] * 9).to_json()
    values["lengths"] = [[prompt, answer] for prompt, _, answer in values["lengths"]]
    lengths = Record.from_json(values).statistics(TaskStatistics()).lengths
    assert lengths is not None
    assert lengths.expect(20, 0).p50 == 4


def test_records_are_written_and_read(make_result: MakeResult) -> None:
    records = Records()
    for task in ("sums", None):
        for mode in ("none", "verify", "cascade"):
            records.add(make_result(task=task, mode=mode, passes=3), 0.25)
    text = json.dumps(records.to_json("b", NOW))
    found = Records.from_json(json.loads(text), "b", NOW)
    assert json.dumps(found.to_json("b", NOW)) == text
    assert found.tasks.keys() == {"sums", None}


def test_errors_relative_to_other_costs_are_left_out(make_result: MakeResult) -> None:
    records = Records()
    records.add(make_result(), 0.25)
    found = Records.from_json(json.loads(json.dumps(records.to_json("old", NOW))), "new", NOW)
    assert found.all.lengths
    assert found.tasks["sums"].lengths
    assert not (found.slowdowns or found.all.errors or found.tasks["sums"].errors)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1}, "another version"),
        ({"saved_at": NOW - MAX_AGE_S - 1}, "30 days old"),
        ({"saved_at": NOW + 1e6}, "-12 days old"),
    ],
)
def test_what_is_old_or_of_the_future_is_obsolete(
    make_result: MakeResult, changes: dict[str, Any], said: str
) -> None:
    records = Records()
    records.add(make_result(), 0.25)
    values = json.loads(json.dumps(records.to_json("b", NOW)))
    with pytest.raises(Obsolete, match=said):
        Records.from_json({**values, **changes}, "b", NOW)
    first_format = {**values, "version": 1, "paces": values["slowdowns"]}
    assert Records.from_archive(first_format, "b").slowdowns == {"none": [0.25]}


def test_of_too_many_tasks_those_that_had_no_request_longest_are_forgotten(
    make_result: MakeResult,
) -> None:
    records = Records()
    for number in range(MAX_TASKS + 10):
        later = Records()
        later.add(make_result(task=f"task {number}"), 0.0)
        later.add(make_result(task="task 0"), 0.0)
        records.extend(later)
    assert len(records.tasks) == MAX_TASKS
    assert "task 0" in records.tasks
    assert "task 1" not in records.tasks
    assert records.all.requests == 2 * (MAX_TASKS + 10)


def test_a_full_record_is_small(make_result: MakeResult) -> None:
    record = Record()
    for cap in (1, 2, 4, 8, 16, 32, 48):
        for mode in ("none", "score", "cascade", "verify", "generate"):
            for _ in range(WINDOW):
                record.add(make_result(cap=cap, mode=mode, passes=2))
    assert len(json.dumps(record.to_json())) < 60_000


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": -1},
        {"requests": "many"},
        {"lengths": [[1]]},
        {"lengths": [[1, 2, 3, 4]]},
        {"lengths": [[1, -1]]},
        {"used": {"four": [0.5]}},
        {"used": {"4": [float("nan")]}},
        {"used": {"4": ["half"]}},
        {"written": {"verify": [0.5]}},
        {"written": {"polish/4": [0.5]}},
        {"used": {"4": [1e4]}},
        {"used": {"4": [-0.1]}},
        {"written": {"verify/4": [1e5]}},
        {"lengths": [[1, 10**9]]},
        {"errors": {"none": [[1e5, 1.0]]}},
        {"errors": {"none": [[True, 1.0]]}},
        {"errors": {"none": [[1.0]]}},
        {"errors": {"none": [[1.0, float("inf")]]}},
        {"errors": {"polish": []}},
        {"errors": []},
    ],
)
def test_what_cannot_be_a_record_is_refused(
    make_result: MakeResult, changes: dict[str, Any]
) -> None:
    good = learn(make_result(mode="verify", passes=2)).to_json()
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Record.from_json({**good, **changes})
