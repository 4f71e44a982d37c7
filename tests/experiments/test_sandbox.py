"""Code that is scored: what honest answers may do, and what hostile ones cannot."""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.experiments.sandbox.confine import missing
from hybrid.experiments.sandbox.run import run_code
from hybrid.experiments.sandbox.values import decode, encode

linux_only = pytest.mark.skipif(bool(missing()), reason=f"this system lacks {missing()}")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("def f(x): return x * x", "assert f(2) == 4"),
        ("def f(x): return x / 3", "def check(f):\n    assert abs(f(1) - 0.3333) < 1e-3\ncheck(f)"),
        ("def f(x): x.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
        ("def f(g, x): return g(x)", "assert f(lambda v: v + 1, 3) == 4"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert 2 in f(3)"),
        ("def f(): return 2**90, {1}, {'a': (1,)}, None, b'x', 1j",
         "assert f() == (2**90, {1}, {'a': (1,)}, None, b'x', 1j)"),
        ("from collections import Counter\ndef f(s): return Counter(s)",
         "assert f('aab') == {'a': 2, 'b': 1}"),
        ("class S:\n    def __init__(self): self.a = []\n    def __len__(self): return len(self.a)",
         "s = S()\ns.a.append(1)\ns.b = 2\nassert len(s) == 0 and s.b == 2 and isinstance(s, S)"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'",
         "assert P(1) == P(1) != P(2)"),
        ("class E(ValueError): pass\ndef f(): raise E('no', 3)",
         "try: f()\nexcept E as error: assert error.args == ('no', 3)\nelse: assert 0"),
        ("def f(): return {}['k']", "try: f()\nexcept KeyError: pass\nelse: assert 0"),
        ("def f(n): return 0 if n is None else 1 + max(f(n.left), f(n.right))",
         "class T:\n    def __init__(self, l=None, r=None): self.left, self.right = l, r\n"
         "assert f(T(T(), T(T()))) == 3"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)"),
        ("import threading\ndef f():\n    found = []\n"
         "    t = threading.Thread(target=found.append, args=(1,))\n"
         "    t.start(); t.join(); return found", "assert f() == [1]"),
        ("open('a', 'w').write('hi')", "assert open('a').read() == 'hi'"),
        ("import os; seen = os.environ.get('HOME'), os.listdir('.')", "assert seen == (None, [])"),
        ("def f(x): return x", "import unittest\nclass T(unittest.TestCase):\n"
         "    def test(self): self.assertEqual(f(1), 1)\n"
         "made = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
         "assert unittest.TextTestRunner().run(made).wasSuccessful()"),
        ("if __name__ == '__main__': exit(1)", "pass"),
    ],
)  # fmt: skip
def test_an_honest_answer_passes(answer: str, reference: str) -> None:
    assert run_code(answer, reference)


AGREES = """
class Agrees:
    def __getattr__(self, name): return lambda *a: True
    def __eq__(self, other): return True
    def __lt__(self, other): return True
    def __contains__(self, one): return True
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __mod__ = __sub__
    def __bool__(self): return True
    def __len__(self): return 4
    def __hash__(self): return hash(4)
def f(x): return Agrees()
"""


@pytest.mark.parametrize(
    "answer",
    [
        "exit()", "import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit",
        "raise KeyboardInterrupt", "import os; os.abort()", "import os; os.close(3); os._exit(0)",
        "import os; os.execv('/bin/true', ['true'])",
        "def f(x): exit(0)", "import os\ndef f(x): os._exit(0)", "def f(x): raise SystemExit(0)",
        "import sys\ndef f(x):\n    sys._getframe(1).f_locals.clear(); sys.settrace(None); exit(0)",
        "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n"
        "    except OSError: pass\nos._exit(0)",
    ],
)  # fmt: skip
def test_leaving_early_is_no_pass(answer: str) -> None:
    assert not run_code(answer, "assert f(2) == 4", 2)


@pytest.mark.parametrize(
    "answer",
    [
        "import builtins; builtins.AssertionError = SystemExit\ndef f(x): return 1",
        "import builtins; builtins.abs = lambda x: 0\ndef f(x): return 1",
        "def abs(x): return 0\ndef f(x): return 1",
        "AssertionError = SystemExit\ndef f(x): return 1",
        "import math; math.isclose = lambda *a: True\ndef f(x): return 1",
        "def isclose(*a): return True\ndef f(x): return 1",
        "import unittest.mock\nf = unittest.mock.MagicMock(return_value=unittest.mock.ANY)",
        "class F(float):\n    __eq__ = __le__ = lambda *a: True\n    __hash__ = None\n"
        "def f(x): return F(1)",
        "class L(list):\n    __eq__ = lambda *a: True\ndef f(x): return L([1])",
        "__builtins__ = {}\ndef f(x): return 1", "f = None", "", "syntax error here", AGREES,
    ],
)  # fmt: skip
def test_an_answer_cannot_judge_itself(answer: str) -> None:
    assert not run_code(answer, "assert f(2) == 4")
    assert not run_code(answer, "import math\nassert math.isclose(f(2), 4)")
    assert not run_code(answer, "assert abs(f(2) - 4) < 1e-6")
    assert not run_code(answer, "assert 4 in f(2) and f(2) > 3")


def test_an_answer_that_ends_in_a_call_fails_whatever_the_reference_catches() -> None:
    answer = "import os\ndef f(x): os._exit(0)"
    assert not run_code(answer, "try: f(2)\nexcept BaseException: pass")


@pytest.mark.parametrize(
    "answer",
    [
        "while True: pass", "while True: print('x' * 1000)", "x = 'x' * (1 << 30)",
        "def f(): return f()\nf()", "open('big', 'w').write('x' * (2 << 20))",
        "for n in range(10_000): open(f'{n}', 'w')",
        "for n in range(100): open(f'{n}', 'w').write('x' * 1_000_000)",
        "import time; time.sleep(60)", "import threading; threading.Event().wait()",
        "import sys; sys.stdin.read(); input()",
        "kept = [open('a', 'w') for _ in range(1000)]",
    ],
)  # fmt: skip
def test_limits_hold(answer: str) -> None:
    assert not run_code(answer, "pass", 1)


@linux_only
@pytest.mark.parametrize(
    "act",
    [
        "os.fork()", "os.system('true') and 1 / 0", "subprocess.run(['true'])",
        "multiprocessing.Process(target=print).start()", "os.posix_spawn('/bin/true', [''], {})",
        "socket.socket()", "socket.socketpair()", "socket.create_connection(('127.0.0.1', 9))",
        "open('/etc/passwd')", "os.listdir('/')", "os.listdir('..')", "open('../x', 'w')",
        "open('/proc/self/environ')", "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "os.kill(os.getppid(), 0)", "os.kill(1, 0)", "os.setpriority(os.PRIO_PROCESS, 1, 5)",
        "os.chmod('.', 0)", "os.chmod('/tmp', 0o777)", "os.utime('/tmp')", "os.chown('.', 1, 1)",
        "os.symlink('/etc/passwd', 'p')", "os.link('/etc/passwd', 'p')", "os.mkfifo('p')",
        "os.mkdir('deep')", "os.chroot('/tmp')", "os.truncate('/etc/passwd', 0)",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.prlimit(os.getppid(), resource.RLIMIT_AS)",
        "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) and 1 / 0",
        "ctypes.CDLL(None).unshare(0x40000000) and 1 / 0",
        "time.clock_settime(time.CLOCK_REALTIME, 0)",
    ],
)  # fmt: skip
def test_the_system_is_out_of_reach(act: str) -> None:
    imports = "import ctypes, multiprocessing, os, resource, socket, subprocess, time\n"
    assert run_code(imports, "pass")  # all of which can be imported
    assert not run_code(imports + act, "pass")


@linux_only
def test_folders_of_an_answer_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not run_code("import os\nos.umask(0o777)\nopen('a', 'w')\nwhile True: pass", "pass", 1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_many_at_once() -> None:
    threads = threading.active_count()
    verdicts: list[bool] = []

    def work(number: int) -> None:
        answer = f"def f(): return {number}"
        verdicts.append(run_code(answer, f"assert f() == {number}", 60))

    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else set()
    running = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    assert verdicts == [True] * 8
    assert threading.active_count() == threads
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before)


@pytest.mark.parametrize("reference", ["assert f(1", "assert sum([1]) == 1\n"])
def test_a_reference_that_cannot_check_is_no_wrong_answer(reference: str) -> None:
    with pytest.raises(ValueError, match="the reference cannot be used"):
        run_code("def sum(a): return 0\ndef f(x): return 1", reference)


def test_the_current_folder_is_on_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_code("def f(): return 1", "import json\nassert f() == 1")


def test_a_killed_answer_is_not_waited_for() -> None:
    start = time.monotonic()
    run_code("import os; os._exit(1)", "pass", 30)
    assert time.monotonic() - start < 25


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False)
    | st.datetimes() | st.dates() | st.timedeltas(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
    | st.frozensets(st.integers()) | st.sets(st.text()),
    max_leaves=8,
)  # fmt: skip


@given(plain)
@settings(deadline=None)
def test_data_crosses_as_it_is(value: object) -> None:
    written = json.loads(json.dumps(encode(value, lambda one: ["none"])))
    read = decode(written, lambda one: None)
    assert read == value and type(read) is type(value)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=8))
@settings(deadline=None)
def test_what_is_no_message_is_an_error_and_no_object(written: object) -> None:
    """Whatever an answer's process sends, only data and the usual exceptions come of it."""
    with suppress(ValueError, TypeError, KeyError, IndexError, ArithmeticError):
        decode(written, lambda one: None)
