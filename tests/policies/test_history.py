"""Learning from requests: predictions that hold, a pace that is followed, a file that survives."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.modes import MODES
from hybrid.policies.forecast import MAX_FACTOR, forecast
from hybrid.policies.history import MAX_BYTES, History, cost_of, next_level
from hybrid.policies.latency import LatencyModel, Quantiles, quantile
from hybrid.policies.waits import MAX_WAIT_S
from hybrid.types import RefineMode, Result

MakeResult = Callable[..., Result]
COSTS = LatencyModel(0.001, 0.002, 0.0001, 0.004, 0.002, 0.003, 0.0001, 0.002, 1.15, 32)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Pair = tuple[float, float]


def predict(history: History, task: str, mode: RefineMode = "none") -> tuple[Pair, Pair]:
    """A draft of at most 12 steps: seconds at p50 and p95, and those without corrections."""
    used, kept = (9.0,), np.array([0.5])
    request = forecast(history.latency, task, 20, Quantiles(5, 8), 1, (12,), used, kept)
    found = request.generate() if mode == "generate" else request.draft_and(mode)
    p50_s, p95_s, *service = (column.item() for column in found)
    return (p50_s, p95_s), (service[0], service[1])


def test_predictions_hold_on_a_machine_unlike_the_costs(make_result: MakeResult) -> None:
    """Costs 40 % too low, tasks that stop at different steps, and a pace that wanders."""
    rng, clock = random.Random(5), Clock()
    history = History(COSTS, clock=clock)
    steps = {"easy": (2, 2, 2, 3), "hard": (4, 6, 9, 12)}
    wander, errors, within = 0.0, [], []
    for number in range(1500):
        task = rng.choice(["easy", "hard"])
        predicted, service = predict(history, task)
        used = rng.choice(steps[task])
        wander = 0.95 * wander + rng.gauss(0, 0.05)
        result = make_result(predicted=predicted, task=task, cap=12, steps=used)
        total_s = 1.4 * cost_of(COSTS, result) * math.exp(wander + rng.gauss(0, 0.05))
        clock.now += total_s
        history.learn(make_result(total_s, predicted, task, cap=12, steps=used, service=service))
        if number >= 200:
            errors.append(math.log(total_s / predicted[0]) if task == "easy" else 0.0)
            within.append(total_s <= predicted[1])
    assert 0.93 <= sum(within) / len(within) <= 0.97
    easy = sorted(abs(error) for error in errors if error)
    assert easy[len(easy) // 2] < 0.1


def test_one_in_twenty_is_late_even_where_plans_are_chosen_for_looking_fast() -> None:
    """Of three plans the one with the lowest p95 is taken: the one that errors flatter most."""
    rng, level, late = random.Random(3), 0.95, []
    for _ in range(4000):
        guesses = [sorted(rng.gauss(0, 1) for _ in range(40)) for _ in range(3)]
        p95 = min(quantile(errors, level) for errors in guesses)
        late.append(rng.gauss(0, 1) > p95)
        level = next_level(level, late[-1])
    assert 0.045 <= sum(late[500:]) / len(late[500:]) <= 0.055


def test_a_slower_machine_is_noticed_at_once(make_result: MakeResult) -> None:
    clock = Clock()
    history = History(COSTS, clock=clock)
    usual = cost_of(COSTS, make_result())
    for _ in range(30):
        history.learn(make_result(usual))
    assert history.latency.slowdown == pytest.approx(1.0)
    for _ in range(5):
        history.learn(make_result(2 * usual))
    assert 1.8 < history.latency.slowdown < 2.0
    clock.now += 3600  # of what was seen long ago, little is left
    assert 1.0 <= history.latency.slowdown < 1.15


def test_a_slow_first_request_is_not_the_machines_slowdown(make_result: MakeResult) -> None:
    history = History(COSTS, clock=Clock())
    usual = cost_of(COSTS, make_result())
    for total_s in (50 * usual, *[usual] * 30):
        history.learn(make_result(total_s))
    assert 0.9 < history.latency.slowdown < 1.3


def test_a_clock_that_goes_backwards_does_no_harm(make_result: MakeResult) -> None:
    clock = Clock()
    history = History(COSTS, clock=clock)
    for _ in range(10):
        clock.now -= 1e6
        history.learn(make_result())
    assert 0.1 < history.latency.slowdown < 10


@pytest.mark.parametrize("total_s", [0.0, -1.0, math.nan, math.inf])
def test_impossible_times_are_not_learned(make_result: MakeResult, total_s: float) -> None:
    history = History(COSTS)
    history.learn(make_result(total_s))
    assert history.requests == 0


def test_a_plan_that_was_not_followed_is_not_learned(make_result: MakeResult) -> None:
    history = History(COSTS)
    history.learn(make_result(mode="verify", is_refined=False))
    assert history.requests == 0


def test_the_value_given_to_the_planner_does_not_change(make_result: MakeResult) -> None:
    history = History(COSTS)
    before = history.latency
    for _ in range(30):
        history.learn(make_result(tokens=9))
    assert before.tasks == {}
    assert before.lengths("sums", 20, 0, 5, 64).p50 == 5
    assert history.latency.lengths("sums", 20, 0, 5, 64).p50 == 9


def test_many_threads_learn_together(make_result: MakeResult) -> None:
    history = History(COSTS)

    def learn() -> None:
        for _ in range(50):
            history.learn(make_result())
            assert history.latency.slowdown > 0

    threads = [Thread(target=learn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history.requests == 400


def test_what_is_learned_is_kept(tmp_path: Path, make_result: MakeResult) -> None:
    file = tmp_path / "deep" / "history.json"
    history = History(COSTS, file)
    history.save()
    assert not file.exists()
    for _ in range(30):
        history.learn(make_result(0.05, tokens=9))
    history.save()
    found = History(COSTS, file).latency
    assert found.lengths("sums", 20, 0, 5, 64).p50 == 9
    known, kept = history.latency.tasks["sums"], found.tasks["sums"]
    assert kept.corrections["none"].p50 == pytest.approx(known.corrections["none"].p50, rel=1e-3)
    assert kept.used == known.used


def test_two_that_learn_at_once_lose_nothing(tmp_path: Path, make_result: MakeResult) -> None:
    file = tmp_path / "history.json"
    first, second = History(COSTS, file), History(COSTS, file)
    for _ in range(3):
        first.learn(make_result(task="sums"))
        second.learn(make_result(task="chat"))
    first.save()
    second.save()
    second.save()
    first.learn(make_result(task="sums"))
    first.save()
    found = History(COSTS, file)
    assert found.requests == 7
    assert {task: work.requests for task, work in found.latency.tasks.items()} == {
        "sums": 4,
        "chat": 3,
    }


def test_after_measuring_anew_errors_start_again(tmp_path: Path, make_result: MakeResult) -> None:
    file = tmp_path / "history.json"
    history = History(COSTS, file)
    for _ in range(30):
        history.learn(make_result(0.05, tokens=9))
    history.save()
    other = LatencyModel(0.001, 0.002, 0.0001, 0.008, 0.002, 0.003, 0.0001, 0.002, 1.15, 32)
    found = History(other, file).latency
    assert found.tasks["sums"].corrections == {}
    assert found.tasks["sums"].lengths is not None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[]",
        "null",
        "[" * 5000,
        '{"version": 2}',
        '{"version": 1}',
        '{"version": 1, "basis": "", "slowdowns": {}, "all": {}, "tasks": []}',
        " " * (MAX_BYTES + 1),
    ],
)
def test_a_damaged_file_is_started_anew(
    tmp_path: Path, make_result: MakeResult, content: str
) -> None:
    file = tmp_path / "history.json"
    file.write_text(content)
    history = History(COSTS, file)
    assert history.requests == 0
    assert str(file) in history.note and "starts anew" in history.note
    history.learn(make_result())
    history.save()
    assert json.loads(file.read_text())["version"] == 2
    assert History(COSTS, file).requests == 1


def test_a_file_that_cannot_be_written_is_tried_again(
    tmp_path: Path, make_result: MakeResult
) -> None:
    blocked = tmp_path / "in the way"
    blocked.write_text("")
    history = History(COSTS, blocked / "history.json")
    history.learn(make_result())
    history.save()
    blocked.unlink()
    history.save()
    assert History(COSTS, blocked / "history.json").requests == 1


def test_what_a_request_came_to_has_a_cost(make_result: MakeResult) -> None:
    drafted = cost_of(COSTS, make_result(steps=4, prompt_tokens=20))
    assert drafted == pytest.approx(COSTS.draft(20, 4, 4, 1).p50_s)
    alone = cost_of(COSTS, make_result(mode="generate", cap=0, passes=5, prompt_tokens=20))
    assert alone == pytest.approx(0.001 + COSTS.read(20).p50_s + 4 * COSTS.token_s)
    free = LatencyModel(0, 0, 0, 0, 0, 0, 0, 0, 1.15, 32)
    assert cost_of(free, make_result()) > 0


def test_learning_does_not_run_away_where_many_are_answered_at_once(
    make_result: MakeResult,
) -> None:
    """A burst is planned before the first of it is learned: its errors are of that prediction."""
    history = History(COSTS, clock=Clock())
    for _ in range(40):
        predicted, service = predict(history, "sums")
        for _ in range(100):
            history.learn(make_result(30 * predicted[0], predicted, cap=12, service=service))
    (p50_s, p95_s), (service_50, service_95) = predict(history, "sums")
    assert p50_s <= MAX_FACTOR * service_50 and p95_s <= MAX_FACTOR * service_95


def test_waiting_in_a_burst_is_predicted_and_soon_forgotten(make_result: MakeResult) -> None:
    clock = Clock()
    history = History(COSTS, clock=clock)
    (before, _), _ = predict(history, "sums")
    for _ in range(300):
        predicted, service = predict(history, "sums")
        total_s = 5.0 + cost_of(COSTS, make_result(cap=12))
        result = make_result(total_s, predicted, cap=12, service=service, draft_wait_s=5.0)
        history.learn(result)
    assert predict(history, "sums")[0][0] > 4.0
    assert history.latency.tasks["sums"].corrections["none"].p50 < 1.2
    clock.now += 120.0
    assert predict(history, "sums")[0][0] < 2 * before


_TIMES = st.floats(allow_nan=True) | st.sampled_from([1e-12, 1e-3, 0.02, 5.0, 1e9, 1e300])
_EVENTS = st.tuples(
    st.sampled_from(get_args(RefineMode)),
    _TIMES,
    _TIMES,
    st.sampled_from(["stop", "budget"]),
    st.integers(0, 48),
    st.floats(-1e6, 1e6),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(st.lists(_EVENTS, max_size=60), st.booleans())
def test_whatever_was_seen_predictions_stay_possible_and_recover(
    make_result: MakeResult, events: list[Any], many: bool
) -> None:
    clock = Clock()
    history = History(COSTS, clock=clock)
    for mode, total_s, wait_s, reason, steps, passed_s in events * (3 if many else 1):
        predicted, service = predict(history, "sums", mode)
        cap = 0 if mode == "generate" else 12
        clock.now += passed_s
        history.learn(
            make_result(
                total_s,
                predicted,
                mode=mode,
                cap=cap,
                steps=steps,
                passes=3,
                reason=reason,
                service=service,
                draft_wait_s=wait_s,
            )
        )
    everything = {mode: predict(history, "sums", mode) for mode in get_args(RefineMode)}
    for mode, ((p50_s, p95_s), _) in everything.items():
        assert 0 < p50_s <= p95_s < 3 * 2 * MAX_WAIT_S + 60
        for part in MODES[mode].contains:
            assert p50_s >= everything[part][0][0] and p95_s >= everything[part][0][1]
    clock.now += 600.0
    for _ in range(150):
        predicted, service = predict(history, "sums")
        result = make_result(predicted=predicted, cap=12, steps=6, service=service)
        usual = cost_of(COSTS, result)
        history.learn(make_result(usual, predicted, cap=12, steps=6, service=service))
        clock.now += 1.0
    assert 0.5 < predict(history, "sums")[0][0] / usual < 2.0
