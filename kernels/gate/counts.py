"""Recorded instruction counts of loops around matrix instructions, by Triton version and launch."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hybrid.kernels.gate.findings import Finding

_COUNTS = Path(__file__).with_name("counts.json")


def read_counts() -> dict[str, dict[str, list[int]]]:
    """Instruction counts of all loops by version of Triton and key."""
    return dict(json.loads(_COUNTS.read_text())) if _COUNTS.exists() else {}


def write_counts(version: str, findings: Sequence[Finding]) -> None:
    """Keep the loops' instruction counts under this version of Triton, a line a launch."""
    counts = read_counts()
    for finding in findings:
        if finding.compiled and finding.compiled.loops:
            sizes = [loop.instructions for loop in finding.compiled.loops]
            counts.setdefault(version, {})[finding.job.key] = sizes
    text = json.dumps(counts, indent=1, sort_keys=True)
    text = re.sub(r"\[[^]]*\]", lambda sizes: str([*map(int, sizes[0][1:-1].split(","))]), text)
    _COUNTS.write_text(text + "\n")
