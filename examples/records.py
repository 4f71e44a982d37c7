"""Read an experiment's records with pandas: `python examples/records.py runs/frontier`.

Every request is one JSON object a line in `records.jsonl` (or `records.jsonl.gz`). Without a folder
the committed records of the demo pair are read. pandas is not a requirement of hybrid.
"""

import sys
from pathlib import Path

import pandas as pd

COMMITTED = Path(__file__).parents[1] / "results" / "curves"


def read(folder: Path) -> pd.DataFrame:
    """A row for each request, with the columns that every record has."""
    compressed, plain = folder / "records.jsonl.gz", folder / "records.jsonl"
    return pd.read_json(plain if plain.exists() else compressed, lines=True)


def by_policy(records: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers, and latency in milliseconds, of every policy."""
    groups = records.groupby("condition", sort=False)
    milliseconds = groups["seconds"].quantile([0.5, 0.95]).unstack() * 1000
    table = pd.DataFrame({"requests": groups.size(), "right": groups["score"].mean()})
    return table.assign(p50_ms=milliseconds[0.5], p95_ms=milliseconds[0.95])


def main(folder: Path) -> None:
    """Print the table, and the slowest requests of the whole run."""
    records = read(folder)
    print(by_policy(records).round({"right": 3, "p50_ms": 1, "p95_ms": 1}).to_string())
    slowest = records.nlargest(5, "seconds")[["condition", "task", "steps", "passes", "seconds"]]
    print(slowest.to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else COMMITTED)
