"""`cascade`: take a draft whose score and checks pass, else continue from where they agree.

With `scorer: self` or `entropy` the drafter's own numbers decide, and the refiner reads nothing
unless they fail.
"""

from hybrid.refiners.assignment import Assignment, Outcome, continue_from
from hybrid.refiners.verdict import judge
from hybrid.refiners.verify import count_agreed


def cascade(assignment: Assignment) -> Outcome:
    """The draft if it passes, else the refiner's own answer from the first disagreement.

    A draft without an end token is unfinished and never passes.
    """
    draft, token_ids = assignment.draft, assignment.token_ids
    ends = assignment.need_refiner().end_token_ids
    scores = assignment.read(token_ids) if assignment.params.scorer == "refiner" else None
    logprobs = scores.logprobs if scores else assignment.logprobs(draft)
    verdict = judge(logprobs, assignment.params, assignment.failed_checks(draft.text))
    is_whole = bool(token_ids) and token_ids[-1] in ends
    if verdict.accepted and is_whole:
        text = assignment.decode(token_ids)
        return Outcome(verdict, token_ids, text, len(token_ids), "stop")
    scores = scores or assignment.read(token_ids)
    agreed = count_agreed(token_ids, scores.choices, ends)
    return continue_from(assignment, agreed, scores.choices[agreed], verdict)
