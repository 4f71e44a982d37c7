"""`cascade`: take a draft whose score and checks pass, else continue from where they agree.

With `scorer: self` the drafter's own log-probabilities decide, and the refiner reads nothing unless
they fail.
"""

from hybrid.protocols import RefinerSession
from hybrid.refiners.outcome import Assignment, Outcome, continue_from
from hybrid.refiners.verdict import judge
from hybrid.refiners.verify import count_agreed


def cascade(session: RefinerSession, assignment: Assignment) -> Outcome:
    """The draft if it passes, else the refiner's greedy answer.

    A draft without an end token is unfinished and never passes.
    """
    token_ids, params = assignment.token_ids, assignment.params
    scores = None if params.scorer == "self" else session.score(token_ids)
    logprobs = scores.logprobs if scores else assignment.draft.self_logprobs
    verdict = judge(logprobs, params, assignment.failed_checks)
    is_whole = bool(token_ids) and token_ids[-1] in assignment.end_token_ids
    if verdict.accepted and is_whole:
        return Outcome(verdict, token_ids, len(token_ids), "stop")
    scores = scores or session.score(token_ids)
    agreed = count_agreed(token_ids, scores.choices, assignment.end_token_ids)
    following = scores.choices[agreed]
    return continue_from(session, token_ids[:agreed], following, assignment, verdict)
