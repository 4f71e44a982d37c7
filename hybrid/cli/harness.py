"""`hybrid lm-eval`: lm-evaluation-harness's own command line, with the model `hybrid` in it."""

import sys
from typing import Annotated

from cyclopts import Parameter

from hybrid.errors import CapabilityError


def lm_eval(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run lm-evaluation-harness; `--model hybrid --model_args policy=balanced,budget=1s`.

    Parameters
    ----------
    arguments
        What lm_eval itself takes.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        import hybrid.experiments.harness  # registers the model
    except ModuleNotFoundError as error:
        hint = f"{error.name} is missing: pip install 'hybrid-gemma[lm-eval]'"
        raise CapabilityError("lm-eval", "this installation", hint) from None
    assert hybrid.experiments.harness
    before = sys.argv
    sys.argv = ["hybrid lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
