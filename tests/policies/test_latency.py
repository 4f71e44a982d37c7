"""What plans cost: measured through the protocols, kept between runs, distrusted when wrong."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.policies.latency import (
    LatencyModel,
    cache_file,
    load_or_measure,
    measure,
    read_cache,
    still_holds,
    write_cache,
)
from hybrid.policies.loader import parse_policy
from hybrid.refiners.scripted import ScriptedRefiner

POLICY = parse_policy("version: 1\n", "p")
PROBES = {"add 12 + 34": "46", "add 12 + 34 " * 8: "46"}
DRAFTER = ScriptedDrafter(PROBES, steps_needed=4, step_s=0.002)
REFINER = ScriptedRefiner(PROBES)
COSTS = LatencyModel(0.0, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_draft_is_prefill_steps_and_commits() -> None:
    latency = COSTS.draft(prompt_tokens=10, steps_p50=3, cap=8, canvases=2)
    assert latency.p50_s == pytest.approx(0.01 + 10 * 0.001 + 2 * 3 * 0.002 + 0.003)
    assert latency.p95_s == pytest.approx((0.01 + 10 * 0.001 + 2 * 8 * 0.002 + 0.003) * 1.5)


def test_refining_is_reading_and_writing() -> None:
    both = COSTS.read(20) + COSTS.write(5, 8)
    assert both.p50_s == pytest.approx(0.004 + 20 * 0.0005 + 5 * 0.006)
    assert both.p95_s == pytest.approx((0.004 + 20 * 0.0005 + 8 * 0.006) * 1.5)


def test_measuring_finds_the_cost_of_a_step() -> None:
    costs = measure(DRAFTER, REFINER)
    assert costs.step_s >= 0.002
    assert costs.canvas_length == DRAFTER.canvas_length
    assert costs.token_s < costs.step_s
    assert costs.spread >= 1.15


def test_a_policy_may_lack_either_model() -> None:
    assert measure(DRAFTER, None).token_s == 0.0
    assert measure(None, REFINER).step_s == 0.0


def test_costs_are_kept_and_found_again() -> None:
    file = cache_file(POLICY)
    assert read_cache(file) is None
    write_cache(file, COSTS)
    assert read_cache(file) == COSTS
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_kept_costs_that_hold_are_not_measured_again() -> None:
    kept = replace(measure(DRAFTER, REFINER), spread=7.0)
    write_cache(cache_file(POLICY), kept)
    assert load_or_measure(POLICY, DRAFTER, REFINER) == kept


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_file(POLICY).parent == cache / "hybrid" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(cache))
    assert cache_file(POLICY).parent == cache / ".cache" / "hybrid" / "latency"


def test_a_cache_file_that_is_a_folder_costs_a_measurement_only() -> None:
    cache_file(POLICY).mkdir(parents=True)
    assert read_cache(cache_file(POLICY)) is None
    assert load_or_measure(POLICY, DRAFTER, REFINER).step_s >= 0.002


def test_a_prompt_costs_by_its_length() -> None:
    short, long = (COSTS.draft(tokens, 1, 1, 1).p50_s for tokens in (10, 110))
    assert long - short == pytest.approx(100 * COSTS.prefill_token_s)
    assert COSTS.read(110).p50_s - COSTS.read(10).p50_s == pytest.approx(100 * COSTS.read_token_s)


def test_other_models_have_other_costs() -> None:
    other = parse_policy("version: 1\nmodels: {refiner: null}\n", "p")
    assert cache_file(other) != cache_file(POLICY)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[]",
        "{}",
        json.dumps({**asdict(COSTS), "step_s": -1}),
        json.dumps({**asdict(COSTS), "step_s": "fast"}),
        json.dumps({**asdict(COSTS), "step_s": 1e9}),
        json.dumps({**asdict(COSTS), "more": 1}),
        json.dumps(asdict(COSTS)).replace("0.002", "NaN"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_ignored(content: str) -> None:
    file = cache_file(POLICY)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert read_cache(file) is None


def test_kept_costs_that_no_longer_hold_are_measured_anew() -> None:
    measured = measure(DRAFTER, REFINER)
    assert still_holds(measured, DRAFTER, REFINER)
    assert not still_holds(replace(measured, step_s=1.0), DRAFTER, REFINER)
    write_cache(cache_file(POLICY), replace(measured, step_s=1.0))
    assert load_or_measure(POLICY, DRAFTER, REFINER).step_s < 0.5
    kept = read_cache(cache_file(POLICY))
    assert kept is not None
    assert kept.step_s < 0.5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_costs_a_measurement_only(cache: Path) -> None:
    cache.chmod(0o500)
    assert load_or_measure(POLICY, DRAFTER, REFINER).step_s >= 0.002
    cache.chmod(0o700)


def test_a_cache_that_is_a_file_costs_a_measurement_only(cache: Path) -> None:
    (cache / "hybrid").write_text("in the way")
    assert load_or_measure(POLICY, DRAFTER, REFINER).step_s >= 0.002
