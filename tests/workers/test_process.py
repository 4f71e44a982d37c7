"""What a worker process may import."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from hybrid import Hybrid

if __name__ == "__main__":
    with Hybrid.from_policy("draft_only", workers=1) as hybrid:
        print(hybrid.generate("sort up: 4 8 1").text)
"""


def test_a_worker_does_not_import_from_the_current_folder(tmp_path: Path) -> None:
    """Not instead of the standard library: the program's own folder is searched last."""
    for name in ("queue", "pickle", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open('{name}-was-run', 'w')\n")
    elsewhere = tmp_path / "program"
    elsewhere.mkdir()
    program = elsewhere / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip(), done.stderr
    assert not [*tmp_path.glob("*-was-run")]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] == ["program"]


def test_a_program_read_from_its_folder_has_workers_that_are_not_shadowed(tmp_path: Path) -> None:
    """Where the program itself finds them first, its workers still do not."""
    shadow = "open('queue-was-run', 'a').write('x')\nfrom _queue import *\n"
    (tmp_path / "queue.py").write_text(shadow)
    code = "import queue, sys; sys.path.insert(0, ''); " + PROGRAM.replace("\n\n", "\n").strip()
    code = code.replace("; from", "\nfrom")
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip(), done.stderr
    assert not (tmp_path / "queue-was-run").exists()
