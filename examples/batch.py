"""Answer many prompts at once, drafted together: `python examples/batch.py prompts.txt`.

Without a file a few built-in prompts are answered. The results come in the prompts' order.
"""

import sys
from pathlib import Path

from hybrid import Hybrid

PROMPTS = ["sort up: 4 8 1 9 3", "sort down: 4 8 1 9 3", "add 45 + 67", "in words: 345"]


def main(prompts: list[str]) -> None:
    """Print one line an answer: the text, the plan, and the milliseconds it took."""
    with Hybrid.from_policy("balanced") as hybrid:
        for prompt, result in zip(
            prompts, hybrid.generate_batch(prompts, budget="1s", seed=7), strict=True
        ):
            milliseconds = 1000 * result.timing.total_s
            print(f"{prompt} -> {result.text}  [{result.plan.label}, {milliseconds:.0f} ms]")


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text("utf-8").splitlines() if sys.argv[1:] else PROMPTS)
