"""How an answer came about, in a line each: decision, draft, verdict, refinement, time."""

from rich.table import Table
from rich.text import Text

from hybrid.cli.render import clock, edited, printable
from hybrid.deadline import format_duration
from hybrid.types import Draft, Plan, Refinement, Result, Timing, Verdict


def summary(result: Result) -> Table:
    """The record of a result for people; `record.to_json` has all of it."""
    rows: list[tuple[str, Text | str]] = [("decision", _decision(result.plan))]
    if result.draft is not None:
        rows.append(("draft", _draft(result.draft, result.plan, result.timing)))
    if result.verdict is not None:
        rows.append(("verdict", _verdict(result.verdict)))
    if result.refinement is not None:
        rows.append(("refinement", _refinement(result.refinement)))
        if result.draft is not None and result.refinement.edits:
            rows.append(("edits", edited(result.draft.text, result.refinement.edits)))
    rows += [("time", _time(result.timing)), ("answer", _answer(result))]
    rows += [("note", note) for note in result.notes]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(printable(value)))
    return table


def steps_used(draft: Draft, plan: Plan) -> str:
    """'3 of 16 steps', or each canvas's own where there are several: '9 + 16 of 16 steps'."""
    used = " + ".join(str(canvas.steps) for canvas in draft.canvases)
    cap = plan.draft.max_denoising_steps if plan.draft else 0
    return f"{used} of {cap} steps"


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 edit', '2 edits', '2 passes'."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _decision(plan: Plan) -> str:
    choice = f" of {len(plan.rejected) + 1} plans" if plan.rejected else ""
    return f"{plan.label}{choice} ({plan.rule})"


def _draft(draft: Draft, plan: Plan, timing: Timing) -> str:
    settled = all(canvas.converged for canvas in draft.canvases)
    entropy = sum(draft.entropy) / max(1, len(draft.entropy))
    return ", ".join(
        [
            steps_used(draft, plan),
            "converged" if settled else "not converged",
            f"entropy {entropy:.3f} nats",
            format_duration(timing.draft_s),
        ]
    )


def _verdict(verdict: Verdict) -> str:
    judge = "the refiner" if verdict.scorer == "refiner" else "the drafter itself"
    scores = f"log-probability {verdict.mean_logprob:.2f} mean, {verdict.min_logprob:.2f} least"
    return f"{'accepted' if verdict.accepted else 'rejected'} by {judge}: {scores}"


def _refinement(refinement: Refinement) -> str:
    promise = {"ar_or_draft": "AR or draft"}
    return ", ".join(
        [
            f"{refinement.mode} ({promise.get(refinement.guarantee, refinement.guarantee)})",
            count(len(refinement.edits), "edit"),
            f"{count(refinement.accepted_tokens, 'token')} kept",
            count(refinement.forward_passes, "pass", "passes"),
            format_duration(refinement.seconds),
        ]
    )


def _time(timing: Timing) -> Text:
    text = clock(timing.total_s, timing.budget_s)
    if not timing.within_budget:
        text.append(" over", "bold red")
    predicted = format_duration(timing.predicted_p50_s)
    return text.append(f"  predicted {predicted}, p95 {format_duration(timing.predicted_p95_s)}")


def _answer(result: Result) -> str:
    ending = {
        "stop": "complete",
        "length": "cut at the most tokens allowed",
        "budget": "cut by the budget: the best so far",
    }[result.finish_reason]
    return f"{count(result.usage.completion_tokens, 'token')}, {ending}, seed {result.seed}"
