"""The command line: `hybrid run`, `demo`, `policy`, `experiment`, `inspect` and others.

Commands are named by import strings and load when they are used, so `hybrid --help` never waits
for a model library. Whatever a command raises on purpose becomes one line and an exit code here.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError, UnusedCliTokensError

from hybrid import __version__
from hybrid.cli.render import printable
from hybrid.cli.terminal import Terminal
from hybrid.errors import HybridError, PolicyError

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="hybrid",
    help="Draft with a diffusion language model, refine with an autoregressive one, in time.",
    help_format="plaintext",
    help_epilogue=(
        "Exit codes: 0 all went well, 1 a check failed or the output could not be written, "
        "2 wrong input, 130 stopped by Ctrl-C or SIGTERM."
    ),
    version=f"hybrid {__version__}",
    console=Terminal(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.command("hybrid.cli.run:run", name="run", help="Answer a prompt within its budget.")
app.command("hybrid.cli.demo:demo", name="demo", help="Watch six requests being answered.")
app.command("hybrid.cli.policy:app", name="policy", help="Check, show and explain policies.")
app.command("hybrid.cli.experiment:app", name="experiment", help="Measure policies on tasks.")
app.command("hybrid.cli.fit:fit", name="fit", help="Fit a policy to an experiment's records.")
app.command("hybrid.cli.harness:lm_eval", name="lm-eval", help="Run lm-evaluation-harness.")
app.command("hybrid.cli.serve:serve", name="serve", help="Answer OpenAI clients over HTTP.")
app.command("hybrid.cli.inspect:inspect", name="inspect", help="Say what a model folder holds.")
app.command("hybrid.cli.quantize:quantize", name="quantize", help="Write a model as NVFP4.")
app.command("hybrid.cli.calibrate:calibrate", name="calibrate", help="Measure this machine.")
app.command("hybrid.cli.compile:compile_models", name="compile", help="Make small models faster.")
app.command("hybrid.cli.doctor:doctor", name="doctor", help="Check this machine, with fixes.")
app.command("hybrid.cli.prove:prove", name="prove", help="Check the kernels on this device.")
app.register_install_completion_command(
    add_to_startup=False, help="Write the shell's completion script; edits no start-up file."
)


def main(tokens: Sequence[str] | None = None) -> int:
    """The exit code of a command line (the process's own by default)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character shows its code instead of failing.
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if tokens is None else tokens)
    with _terminable():
        return exit_code(lambda: app(_standard_input_last(given)))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that a long run keeps what it has."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _standard_input_last(tokens: list[str]) -> list[str]:
    """Move a prompt `-` behind a `--`: cyclopts takes a lone dash for an unknown option."""
    takes_prompt = tokens[:1] == ["run"] or tokens[:2] == ["policy", "explain"]
    if not takes_prompt or "-" not in tokens or "--" in tokens:
        return tokens
    at = tokens.index("-")
    return [*tokens[:at], *tokens[at + 1 :], "--", "-"]


def exit_code(command: Callable[[], object]) -> int:
    """Run a command and return its exit code: its own number, or what its error stands for."""
    code, message = _outcome(command)
    try:
        if message:
            print(message, file=sys.stderr)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        print(_system_line(error), file=sys.stderr)
        return FAILED
    return code


def _outcome(command: Callable[[], object]) -> tuple[int, str]:
    """The exit code, and what there is to say about it on stderr."""
    try:
        code = command()
    except (HybridError, CycloptsError) as error:
        return WRONG_INPUT, "\n".join(_lines(error))
    except KeyboardInterrupt:
        return INTERRUPTED, "stopped"
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return OK, ""
    except OSError as error:  # a full disk, a file without permission
        _drop_output()
        return FAILED, _system_line(error)
    return (code if isinstance(code, int) else OK), ""


def _lines(error: HybridError | CycloptsError) -> list[str]:
    """One line for each problem."""
    if isinstance(error, UnusedCliTokensError):
        rest = " ".join(error.unused_tokens or ())
        return [f"error: {printable(rest)!r} is left over; quote a prompt of several words"]
    problems = error.problems if isinstance(error, PolicyError) else [error]
    return [f"error: {printable(' '.join(str(problem).splitlines()))}" for problem in problems]


def _system_line(error: OSError) -> str:
    return f"error: {printable(str(error.filename or 'standard output'))}: {error.strerror}"


def _drop_output() -> None:
    """Send what is still buffered nowhere, or Python would fail on it once more at exit."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
