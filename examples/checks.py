"""Say what an answer must satisfy, and see which check it failed: `python examples/checks.py`.

A draft that fails a check is never accepted. Refine modes then work on it within the budget, and
the result says for each check whether the answer passes.
"""

from hybrid import Hybrid


def no_number_twice(text: str) -> bool:
    """A check of your own: True if the text passes."""
    return len(set(text.split())) == len(text.split())


def main() -> None:
    """Answer one prompt under checks that pass, and under one that cannot pass."""
    checks = [{"regex": "^[0-9 ]+$"}, no_number_twice]
    with Hybrid.from_policy("balanced") as hybrid:
        for wanted in (checks, [*checks, {"contains": "7"}]):
            result = hybrid.generate("sort up: 4 8 1 9 3", checks=wanted, budget="2s", seed=7)
            print(result.text)
            for outcome in result.checks:
                print(f"  {outcome.name}: {outcome.problem or 'passed'}")


if __name__ == "__main__":
    main()
