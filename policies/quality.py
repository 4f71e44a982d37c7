"""What was measured of a pair: accuracy by task and steps, for the planner to weigh.

Measured accuracy belongs to the models, so it ships beside them; a policy's own `quality` section
overrides it task by task.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from hybrid.policies.schema import QualitySection


def read_quality(file: Path) -> Mapping[str, QualitySection]:
    """The tables in the `quality` part of an evaluation, by task."""
    tables = json.loads(file.read_text("utf-8"))["quality"]
    return {
        task: QualitySection.model_validate_json(json.dumps(table))
        for task, table in tables.items()
    }
