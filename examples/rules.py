"""Let your application decide with the policy: signals and a rule of your own.

    python examples/rules.py

A signal is a function of a request; rules in the policy file may ask for its value. A rule written
in Python is a function of the request and its signals. It returns what a YAML rule would say, or
None to leave the decision to the policy.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from hybrid import Hybrid, Request, Signals

POLICY = """
version: 1
extends: balanced
rules:
  - name: trial customers
    when: {signals: {customer: trial}}
    draft: {max_denoising_steps: 4}
    refine: {mode: none}
"""
CUSTOMERS = {"sort": "trial", "add": "gold"}


def customer(request: Request) -> str:
    """Who asks; an application would look it up."""
    return CUSTOMERS.get(request.prompt.split()[0], "unknown")


def verify_gold(request: Request, signals: Signals) -> Mapping[str, object] | None:
    """Gold customers get the refiner's own answer."""
    return {"refine": {"mode": "verify"}} if signals.custom["customer"] == "gold" else None


def main(folder: Path) -> None:
    """Answer three customers, each under the rule that is theirs."""
    file = folder / "policy.yaml"
    file.write_text(POLICY, "utf-8")
    with Hybrid.from_policy(file, signals={"customer": customer}, rule=verify_gold) as hybrid:
        for prompt in ("sort up: 4 8 1 9 3", "add 45 + 67", "in words: 345"):
            result = hybrid.generate(prompt, budget="5s", seed=7)
            print(f"{result.signals.custom['customer']}: {result.text}  [{result.plan.label}]")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
