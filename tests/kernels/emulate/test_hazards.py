"""What PTX leaves undefined is found, and what it defines is not."""

import pytest

from hybrid.kernels.gate.emulate.faults import Fault
from tests.kernels.emulate.conftest import Run

EXCHANGE = """
 mov.b32 %r3, global_smem;
 shl.b32 %r4, %r1, 2;
 add.s32 %r4, %r4, %r3;
 st.shared.b32 [%r4], %r1;
 {between}
 xor.b32 %r5, %r1, {partner};
 shl.b32 %r5, %r5, 2;
 add.s32 %r5, %r5, %r3;
 ld.shared.b32 %r6, [%r5];
 st.global.b32 [%rd5], %r6;"""


@pytest.mark.parametrize(
    ("between", "partner", "is_hazard"),
    [
        ("", 0, False),
        ("", 1, True),
        ("bar.warp.sync -1;", 1, False),
        ("bar.warp.sync -1;", 32, True),
        ("bar.sync 0;", 32, False),
    ],
)
def test_reading_what_another_thread_wrote(
    run: Run, between: str, partner: int, is_hazard: bool
) -> None:
    outcome = run(EXCHANGE.format(between=between, partner=partner), threads=64)
    assert any("without a barrier after a write" in h for h in outcome.hazards) == is_hazard


def test_writing_what_another_warp_may_still_read(run: Run) -> None:
    body = EXCHANGE.format(between="bar.sync 0;", partner=32) + "\n{} st.shared.b32 [%r4], %r6;"
    assert run(body.replace("{}", ""), threads=64).hazards
    assert not run(body.replace("{}", "bar.sync 0;"), threads=64).hazards


COPY = """
 mov.b32 %r3, global_smem;
 shl.b32 %r4, %r1, 4;
 add.s32 %r5, %r4, %r3;
 cvt.u64.u32 %rd6, %r4;
 add.s64 %rd6, %rd1, %rd6;
 cp.async.cg.shared.global [%r5], [%rd6], 16;
 cp.async.commit_group;
 {wait}
 xor.b32 %r6, %r5, {partner};
 ld.shared.b32 %r7, [%r6];
 st.global.b32 [%rd5], %r7;"""


@pytest.mark.parametrize(
    ("wait", "partner", "words"),
    [
        ("cp.async.wait_group 0;", 0, None),
        ("cp.async.wait_group 1;", 0, "on its way"),
        ("", 0, "on its way"),
        ("cp.async.wait_group 0;", 16, "without a barrier"),
        ("cp.async.wait_group 0; bar.sync 0;", 16, None),
    ],
)
def test_copies_are_there_after_waiting(
    run: Run, wait: str, partner: int, words: str | None
) -> None:
    hazards = run(COPY.format(wait=wait, partner=partner)).hazards
    assert bool(hazards) == (words is not None)
    assert words is None or any(words in hazard for hazard in hazards)


def test_an_undefined_register_matters_where_it_is_stored(run: Run) -> None:
    lacking = "setp.lt.u32 %p1, %r1, 16;\n @%p1 mov.b32 %r5, 1;\n add.s32 %r6, %r5, 1;\n"
    assert not run(lacking + "@%p1 st.global.b32 [%rd5], %r6;").hazards
    assert "what is stored" in run(lacking + "st.global.b32 [%rd5], %r6;").hazards[0]
    chosen = lacking + "selp.b32 %r7, %r6, 0, %p1;\n st.global.b32 [%rd5], %r7;"
    assert not run(chosen).hazards
    moved = "add.s64 %rd6, %rd5, %rd9;\n st.global.b32 [%rd6], %r1;"
    assert "an address" in run(moved).hazards[0]


def test_undefined_shared_memory_matters_where_it_is_stored(run: Run) -> None:
    load = "mov.b32 %r3, global_smem;\n ld.shared.b32 %r4, [%r3];\n add.s32 %r4, %r4, 1;\n"
    assert not run(load).hazards
    assert run(load + "st.global.b32 [%rd5], %r4;").hazards


def test_an_undefined_half_that_is_cut_off_does_not_matter(run: Run) -> None:
    joined = "mov.b64 %rd6, {%r9, %r1};\n shr.u64 %rd7, %rd6, 32;\n cvt.u32.u64 %r5, %rd7;\n"
    assert not run(joined + "st.global.b32 [%rd5], %r5;").hazards
    joined = "mov.b64 %rd6, {%r1, %r9};\n shr.u64 %rd7, %rd6, 32;\n cvt.u32.u64 %r5, %rd7;\n"
    assert run(joined + "st.global.b32 [%rd5], %r5;").hazards


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("st.global.b32 [%rd2], 7;", "two CTAs write"),
        ("st.global.b32 [%rd5], %r1;", "two CTAs write"),
        (
            "mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd6, %r5, 128; add.s64 %rd6, %rd6, %rd5;\n"
            "st.global.b32 [%rd6], %r1; ld.global.b32 %r7, [%rd2];",
            "what another wrote",
        ),
        (
            "mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd6, %r5, 128; add.s64 %rd6, %rd6, %rd5;\n"
            "ld.global.b32 %r7, [%rd2 + 128]; st.global.b32 [%rd6], %r1;",
            "writes what another reads",
        ),
        (
            "mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd6, %r5, 128; add.s64 %rd6, %rd6, %rd5;\n"
            "st.global.b32 [%rd6], %r1; ld.global.b32 %r7, [%rd6];",
            None,
        ),
    ],
)
def test_ctas_share_nothing_that_one_writes(run: Run, body: str, words: str | None) -> None:
    hazards = run(body, ctas=2).hazards
    assert bool(hazards) == (words is not None)
    assert words is None or any(words in hazard for hazard in hazards)


def test_a_barrier_that_a_warp_never_reaches_is_a_deadlock(run: Run) -> None:
    body = "setp.lt.u32 %p1, %r1, 32;\n @%p1 bra here;\nthere:\n bra there;\nhere:\n bar.sync 0;"
    ended = body.replace("bra there;", "ret;")
    assert not run(ended, threads=64).hazards  # a warp that has ended is not waited for
    with pytest.raises(Fault, match="part of a warp"):
        run("setp.lt.u32 %p1, %r1, 5;\n @%p1 shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;")
