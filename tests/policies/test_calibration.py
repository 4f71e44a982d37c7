"""Timing through the protocols: quickly or well, kept while it holds, distrusted when wrong."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.policies.calibration import (
    LONG,
    LONGEST,
    SHORT,
    load_or_measure,
    measure,
    measure_well,
    now,
    still_holds,
)
from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.measurements import (
    Measurement,
    Method,
    cache_file,
    read_measurement,
    write_measurement,
)
from hybrid.refiners.scripted import ScriptedRefiner

pytestmark = pytest.mark.serial

POLICY = parse_policy("version: 1\n", "p")
PROBES = {SHORT: "46", LONG: "46", LONGEST: "46"}
DRAFTER = ScriptedDrafter(PROBES, steps_needed=4, step_s=0.002)
REFINER = ScriptedRefiner(PROBES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def keep(costs: LatencyModel, method: Method = "quick") -> Measurement:
    measurement = Measurement(costs, method, "2026-01-02T03:04:05+00:00")
    assert write_measurement(cache_file(POLICY), measurement, POLICY)
    return measurement


def test_measuring_finds_the_cost_of_a_step() -> None:
    costs = measure(DRAFTER, REFINER)
    assert costs.step_s >= 0.002
    assert costs.canvas_length == DRAFTER.canvas_length
    assert costs.token_s < costs.step_s
    assert costs.spread >= 1.15


def test_measuring_well_gives_every_part_its_spread() -> None:
    told: list[float] = []
    costs = measure_well(DRAFTER, REFINER, 0.0, told.append)
    assert costs.step_s + costs.step_token_s * len(LONG) >= 0.002
    assert costs.spread >= 1.02
    spreads = (costs.step_spread, costs.read_spread, costs.token_spread, costs.prefill_spread)
    assert all(1 <= spread <= 10 for spread in spreads)
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_policy_may_lack_either_model() -> None:
    assert measure(DRAFTER, None).token_s == 0.0
    assert measure(None, REFINER).step_s == 0.0
    assert measure_well(DRAFTER, None, 0.0).read_s == 0.0
    assert measure_well(None, REFINER, 0.0).canvas_length == 0


def test_a_prompt_that_does_not_fit_is_not_measured() -> None:
    small = ScriptedDrafter({SHORT: "46", LONG: "46"}, max_context=200)
    assert measure_well(small, None, 0.0).canvas_length == 64


def test_stopping_changes_nothing_that_is_kept() -> None:
    kept = keep(measure(DRAFTER, REFINER), "calibrated")

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_well(DRAFTER, REFINER, 60, stop)
    assert read_measurement(cache_file(POLICY)) == kept


def test_kept_costs_that_hold_are_not_measured_again() -> None:
    kept = keep(replace(measure(DRAFTER, REFINER), spread=7.0))
    assert load_or_measure(POLICY, DRAFTER, REFINER) == kept


def test_kept_costs_that_no_longer_hold_are_measured_anew() -> None:
    measured = measure(DRAFTER, REFINER)
    assert still_holds(measured, DRAFTER, REFINER)
    assert not still_holds(replace(measured, step_s=1.0), DRAFTER, REFINER)
    keep(replace(measured, step_s=1.0))
    found = load_or_measure(POLICY, DRAFTER, REFINER)
    assert found.costs.step_s < 0.5
    assert read_measurement(cache_file(POLICY)) == found


def test_a_calibration_that_does_not_hold_is_kept_for_when_it_does() -> None:
    kept = keep(replace(measure(DRAFTER, REFINER), step_s=1.0), "calibrated")
    assert load_or_measure(POLICY, DRAFTER, REFINER).method == "quick"
    assert read_measurement(cache_file(POLICY)) == kept


def test_a_cache_file_that_is_a_folder_costs_a_measurement_only() -> None:
    cache_file(POLICY).mkdir(parents=True)
    assert load_or_measure(POLICY, DRAFTER, REFINER).costs.step_s >= 0.002


def test_a_cache_that_is_a_file_costs_a_measurement_only(cache: Path) -> None:
    (cache / "hybrid").write_text("in the way")
    assert load_or_measure(POLICY, DRAFTER, REFINER).costs.step_s >= 0.002


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_costs_a_measurement_only(cache: Path) -> None:
    cache.chmod(0o500)
    assert load_or_measure(POLICY, DRAFTER, REFINER).costs.step_s >= 0.002
    cache.chmod(0o700)


def test_the_date_is_in_utc_to_the_second() -> None:
    assert now().endswith("+00:00")
    assert len(now()) == len("2026-01-02T03:04:05+00:00")
