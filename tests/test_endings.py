"""However a program ends, its process ends by itself, with the exit status that Python gives it."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.serial

PRELUDE = """
import asyncio, os, sys, threading, time
from hybrid import AsyncHybrid, Hybrid
PROMPT = "sort up: 4 8 1 9 3"
LONG = dict(max_denoising_steps=1000, confidence_threshold=0.0, max_new_tokens=400)
"""
ENDINGS = {
    "breaking out of an async stream": """
        async def main():
            hybrid = AsyncHybrid.from_policy("draft_only")
            async for event in hybrid.stream(PROMPT, **LONG):
                break
        asyncio.run(main())
        """,
    "a stream that is never closed": """
        stream = Hybrid.from_policy("draft_only").stream(PROMPT, **LONG)
        next(stream), next(stream)
        """,
    "daemon threads inside generate": """
        hybrid = Hybrid.from_policy("balanced").load()
        def ask():
            while True:
                hybrid.generate(PROMPT, **LONG)
        for _ in range(3):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.3)
        """,
    "daemon threads in which a refiner writes": """
        hybrid = Hybrid.from_policy("refiner_only").load()
        def ask():
            while True:
                hybrid.generate(PROMPT)
        for _ in range(3):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.3)
        """,
    "a server that is down": """
        import tempfile
        file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        file.write("version: 1\\nmodels: {refiner: {backend: vllm, url: 'http://127.0.0.1:9/v1'}}\\n"
                   "defaults: {budget: 300ms, refine: {mode: verify}}\\n")
        file.flush()
        result = Hybrid.from_policy(file.name).generate(PROMPT)
        assert result.text and any("refiner failed" in note for note in result.notes)
        """,
}


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """The program in a process of its own; one that hangs fails the test."""
    program = PRELUDE + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_by_itself(ending: str) -> None:
    done = run(ENDINGS[ending])
    assert done.returncode == 0, done.stderr


def test_a_forked_process_is_told_so_and_does_not_hang() -> None:
    done = run(
        """
        from hybrid.errors import BackendError
        hybrid = Hybrid.from_policy("draft_only")
        assert hybrid.generate(PROMPT).text
        child = os.fork()
        if child == 0:
            try:
                hybrid.generate(PROMPT, budget="300ms")
            except BackendError as error:
                os._exit(7 if "forked" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert hybrid.generate(PROMPT).text
        """
    )
    assert done.returncode == 0, done.stderr
