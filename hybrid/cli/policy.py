"""`hybrid policy`: check, show, explain and compare policies without answering anything.

Only `explain` loads models, because a decision needs this machine's latency.
"""

import json
import sys
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich import box
from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML

from hybrid.cli import OK, WRONG_INPUT
from hybrid.cli.render import printable
from hybrid.cli.run import Flag, option_name, read_prompt, read_signals, read_text
from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import PolicyError, RequestError
from hybrid.policies.loader import load_policy, value_at
from hybrid.policies.schema import Policy, policy_schema
from hybrid.requests import Options, make_request
from hybrid.serialization import to_json
from hybrid.types import Plan

app = App(name="policy", help="Check, show, explain and compare policies.")
app.command(
    "hybrid.cli.diff:diff", name="diff", help="Compare what two policies decide for requests."
)


@app.command
def check(*files: str) -> int:
    """Say for every file (or preset) whether it is a valid policy, with every problem's place.

    Parameters
    ----------
    files
        Policy files or presets.
    """
    if not files:
        raise RequestError("FILE", "nothing", "name at least one policy file")
    code = OK
    for file in files:
        try:
            policy = load_policy(file)
        except PolicyError as error:
            code = WRONG_INPUT
            for problem in error.problems:  # the form that editors jump by: nothing before it
                print(printable(" ".join(str(problem).splitlines())), file=sys.stderr)
            continue
        print(f"{printable(file)}: OK")
        for note in policy.notes:
            print(f"{printable(file)}: note: {printable(note)}")
    return code


@app.command
def show(policy: str, /, *, as_json: Annotated[Flag, Parameter(name="--json")] = False) -> None:
    """Print a policy as it was understood, with the defaults of every setting.

    Parameters
    ----------
    policy
        A preset's name or a policy file.
    as_json
        Print JSON instead of YAML.
    """
    values = settled(load_policy(policy))
    if as_json:
        print(json.dumps(values))
        return
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.dump(values, Terminal().file)


def settled(policy: Policy) -> dict[str, Any]:
    """All that the policy says and all that it leaves as it is, as a policy file says it.

    Tasks and rules keep to what they change; values from the environment are written as their
    variables. Reading it back gives the same policy.
    """
    values = policy.model_dump(mode="json", exclude_defaults=True)
    values |= {"on_deadline": policy.on_deadline, "models": {}}
    for role, model in (("drafter", policy.models.drafter), ("refiner", policy.models.refiner)):
        named = {} if model is None else {"backend": model.backend, "model": model.model}
        said = {} if model is None else model.model_dump(mode="json", exclude_defaults=True)
        values["models"][role] = {**named, **said} or None
    values["defaults"] = policy.defaults.model_dump(mode="json", exclude_none=True)
    for location, text in policy.variables.items():
        section = value_at(values, location[:-1])
        if value_at(values, location) is not None:
            section[location[-1]] = text
    return {name: values[name] for name in Policy.model_fields if name in values}


@app.command
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    print(json.dumps(policy_schema(), indent=2))


@app.command
def explain(
    policy: str,
    prompt: str,
    /,
    *,
    task: str | None = None,
    budget: str | None = None,
    steps: int | None = None,
    refine: str | None = None,
    infill: str | None = None,
    deterministic: Flag = False,
    signal: list[str] | None = None,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
) -> None:
    """Show what a policy would decide for a prompt, and why not otherwise; answers nothing.

    Parameters
    ----------
    policy
        A preset's name or a policy file.
    prompt
        The prompt to decide for; `-` reads it from standard input (UTF-8).
    task
        The policy's task to treat it as; recognised from the prompt if left out.
    budget
        Longest time the answer may take, with a unit: 500ms, 2s.
    steps
        Most denoising steps a canvas (max_denoising_steps).
    refine
        What the refiner does: one of the modes in docs/refining.md, such as none or verify.
    infill
        A template of the answer with blanks to fill in, written <blank:N> (N tokens).
    deterministic
        Plan by the calibrated costs alone: not by what was learned of latency.
    signal
        A signal of the application that rules ask for, as NAME=VALUE; may be repeated.
    as_json
        Print one JSON object.
    """
    try:
        options = Options(
            task=task,
            budget=budget,
            max_denoising_steps=steps,
            refine=refine,
            infill=infill and read_text(infill.encode(errors="surrogateescape"), "--infill"),
            deterministic=deterministic,
        )
        request = make_request(read_prompt(prompt, sys.stdin), options)
        from hybrid.api import Hybrid  # imports the pipeline

        with Hybrid.from_policy(policy, signals=read_signals(signal)) as hybrid:
            plan, basis = hybrid.explain(request), hybrid.latency_basis
    except RequestError as error:
        raise RequestError(option_name(error.field), error.given, error.allowed) from error
    if as_json:
        print(to_json(plan))
        return
    console = Terminal()
    within = "" if plan.budget_s is None else f" within {format_duration(plan.budget_s)}"
    console.print(f"[bold]{escape(plan.label)}[/bold]{within} ({escape(printable(plan.rule))})")
    console.print(candidates(plan))
    console.print(f"[dim]latency: {escape(printable(basis))}[/dim]")


def candidates(plan: Plan) -> Table:
    """The plan and what it was preferred to, with the reasons."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("plan", no_wrap=True)
    for name in ("p50", "p95", "quality"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("why not")
    chosen = (plan.label, plan.predicted, "chosen")
    for label, predicted, why in (
        chosen,
        *((r.candidate, r.predicted, r.why) for r in plan.rejected),
    ):
        table.add_row(
            label,
            format_duration(predicted.latency_p50_s),
            format_duration(predicted.latency_p95_s),
            f"{predicted.quality:.2f}",
            predicted.quality_source,
            why,
            style="bold" if why == "chosen" else None,
        )
    return table
