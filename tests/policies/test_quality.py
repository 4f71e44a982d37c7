"""Measured accuracies are read from beside the models they belong to."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from hybrid.policies.quality import read_quality
from hybrid.policies.schema import QualitySection


def test_tables_are_read_by_task_and_number_of_steps(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    table = {"draft": {"4": 0.5, "16": 0.8}, "refiner": 0.9, "steps_used": {"16": 5.5}}
    table["agreement"] = {"16": 0.7}
    file.write_text(json.dumps({"seed": 1, "quality": {"sort": table}}))
    measured = QualitySection(
        draft={4: 0.5, 16: 0.8}, refiner=0.9, steps_used={16: 5.5}, agreement={16: 0.7}
    )
    assert read_quality(file) == {"sort": measured}


@pytest.mark.parametrize("table", [{}, {"draft": {"few": 1.0}, "refiner": 1.0}, {"refiner": 2.0}])
def test_a_table_that_is_none_is_refused(tmp_path: Path, table: dict[str, object]) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"quality": {"sort": table}}))
    with pytest.raises(ValidationError):
        read_quality(file)
