"""Single instructions against values worked out by hand."""

import numpy as np
import pytest

from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from tests.kernels.emulate.conftest import Run


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.s32 %r5, 0xFFFFFFFF, 2", 1),
        ("sub.s32 %r5, 3, 5", 0xFFFFFFFE),
        ("mul.lo.s32 %r5, 0x10001, 0x10001", 0x20001),
        ("mul.hi.u32 %r5, 0x80000000, 6", 3),
        ("mul.hi.s32 %r5, -2, 6", 0xFFFFFFFF),
        ("mad.lo.s32 %r5, 7, 6, 5", 47),
        ("div.s32 %r5, -7, 2", 0xFFFFFFFD),
        ("rem.s32 %r5, -7, 2", 0xFFFFFFFF),
        ("min.s32 %r5, -7, 2", 0xFFFFFFF9),
        ("min.u32 %r5, -7, 2", 2),
        ("shl.b32 %r5, 3, 33", 0),
        ("shr.u32 %r5, 0x80000000, 31", 1),
        ("shr.s32 %r5, 0x80000000, 40", 0xFFFFFFFF),
        ("shf.l.wrap.b32 %r5, 0x80000000, 1, 1", 3),
        ("shf.r.wrap.b32 %r5, 2, 1, 1", 0x80000001),
        ("bfe.u32 %r5, 0xABCD, 4, 8", 0xBC),
        ("bfe.s32 %r5, 0xABCD, 4, 8", 0xFFFFFFBC),
        ("bfi.b32 %r5, 0xF, 0, 8, 2", 0x300),
        ("prmt.b32 %r5, 0x44332211, 0x88776655, 0x7410", 0x88552211),
        ("prmt.b32 %r5, 0x80, 0, 0x0008", 0x808080FF),
        ("lop3.b32 %r5, 12, 10, 6, 0x96", 0),
        ("lop3.b32 %r5, 12, 10, 6, 0xE8", 14),
        ("popc.b32 %r5, 0xF0F0", 8),
        ("not.b32 %r5, 0", 0xFFFFFFFF),
        ("add.f32 %r5, 0f3F800000, 0f33800000", 0x3F800000),  # a tie to even
        ("add.f32 %r5, 0f3F800001, 0f33800000", 0x3F800002),
        ("mul.ftz.f32 %r5, 0f00800000, 0f3F000000", 0),
        ("mul.f32 %r5, 0f00800000, 0f3F000000", 0x00400000),
        ("fma.rn.f32 %r5, 0f3F800001, 0f3F800001, 0fBF800002", 0x28800000),
        ("max.f32 %r5, 0f7FC00000, 0f3F800000", 0x3F800000),
        ("max.NaN.f32 %r5, 0f3F800000, 0f3F800000", 0x3F800000),
        ("mul.bf16x2 %r5, 0x3F804000, 0x40403F80", 0x40404000),
        ("cvt.rn.bf16x2.f32 %r5, 0f3F808000, 0f3F818000", 0x3F803F82),
        ("cvt.rzi.s32.f32 %r5, 0fC0200000", 0xFFFFFFFE),
        ("cvt.rni.s32.f32 %r5, 0f40200000", 2),
        ("cvt.rzi.s32.f32 %r5, 0f7F800000", 0x7FFFFFFF),
        ("cvt.rn.f32.s32 %r5, 16777217", 0x4B800000),
    ],
)
def test_one_thread(run: Run, instruction: str, expected: int) -> None:
    outcome = run(f"{instruction};\n st.global.b32 [%rd5], %r5;")
    assert not outcome.hazards
    assert (outcome.words[:32] == expected).all(), hex(outcome.words[0])


@pytest.mark.parametrize(
    ("comparison", "a", "b", "holds"),
    [
        ("lt.s32", "-1", "0", True),
        ("lt.u32", "-1", "0", False),
        ("eq.f32", "0f7FC00000", "0f7FC00000", False),
        ("ne.f32", "0f7FC00000", "0f3F800000", False),
        ("neu.f32", "0f7FC00000", "0f3F800000", True),
        ("ltu.f32", "0f7FC00000", "0f3F800000", True),
        ("nan.f32", "0f7FC00000", "0f3F800000", True),
        ("num.f32", "0f7FC00000", "0f3F800000", False),
    ],
)
def test_comparisons(run: Run, comparison: str, a: str, b: str, holds: bool) -> None:
    outcome = run(
        f"setp.{comparison} %p1, {a}, {b};\n selp.b32 %r5, 1, 0, %p1;\n st.global.b32 [%rd5], %r5;"
    )
    assert (outcome.words[:32] == holds).all()


@pytest.mark.parametrize(
    ("shuffle", "expected"),
    [
        ("bfly.b32 %r5, %r1, 3, 31, -1", lambda t: t ^ 3),
        ("up.b32 %r5, %r1, 2, 0, -1", lambda t: t - 2 if t >= 2 else t),
        ("down.b32 %r5, %r1, 2, 31, -1", lambda t: t + 2 if t < 30 else t),
        ("idx.b32 %r5, %r1, 1, 0x1C03, -1", lambda t: t // 4 * 4 + 1),
    ],
)
def test_shuffles(run: Run, shuffle: str, expected: object) -> None:
    outcome = run(f"shfl.sync.{shuffle};\n st.global.b32 [%rd5], %r5;")
    assert outcome.words[:32].tolist() == [expected(t) for t in range(32)]  # type: ignore[operator]


def test_votes_and_reductions(run: Run) -> None:
    outcome = run("""
 setp.lt.u32 %p1, %r1, 3;
 vote.sync.ballot.b32 %r5, %p1, -1;
 redux.sync.add.s32 %r6, %r1, -1;
 add.s32 %r5, %r5, %r6;
 st.global.b32 [%rd5], %r5;""")
    assert (outcome.words[:32] == 7 + 31 * 16).all()


def test_threads_that_part_meet_again(run: Run) -> None:
    outcome = run("""
 mov.b32 %r5, 0;
 mov.b32 %r6, 0;
again:
 add.s32 %r5, %r5, %r6;
 add.s32 %r6, %r6, 1;
 setp.le.u32 %p1, %r6, %r1;
 @%p1 bra again;
 bar.sync 0;
 st.global.b32 [%rd5], %r5;""")
    assert outcome.words[:32].tolist() == [t * (t + 1) // 2 for t in range(32)]


def test_bfloat16_products_of_a_warp(run: Run) -> None:
    """A [16, 16] and B [16, 8] are loaded as ldmatrix lays them out, from row-major memory."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)), rng.integers(-4, 5, (16, 8))

    def bits(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    given = np.concatenate([bits(a).reshape(-1), bits(b).reshape(-1)])
    outcome = run(
        """
 shl.b32 %r2, %r1, 4;
 cvt.u64.u32 %rd6, %r2;
 add.s64 %rd6, %rd1, %rd6;
 mov.b32 %r3, global_smem;
 add.s32 %r4, %r3, %r2;
 cp.async.cg.shared.global [%r4], [%rd6], 16;
 setp.lt.u32 %p1, %r1, 16;
 add.s32 %r5, %r4, 512;
 @%p1 cp.async.cg.shared.global [%r5], [%rd6 + 512], 16;
 cp.async.commit_group;
 cp.async.wait_group 0;
 bar.sync 0;
 and.b32 %r6, %r1, 15;
 shl.b32 %r6, %r6, 5;
 and.b32 %r7, %r1, 16;
 add.s32 %r6, %r6, %r7;
 add.s32 %r6, %r6, %r3;
 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];
 and.b32 %r7, %r1, 15;
 shl.b32 %r7, %r7, 4;
 add.s32 %r7, %r7, %r3;
 ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r7 + 512];
 mov.b32 %r16, 0;
 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r20, %r21, %r22, %r23},
   {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r16, %r16, %r16, %r16};
 mul.wide.u32 %rd7, %r1, 8;
 add.s64 %rd7, %rd2, %rd7;
 st.global.v2.b32 [%rd7], {%r20, %r21};
 st.global.v2.b32 [%rd7 + 256], {%r22, %r23};""",
        given,
    )
    assert not outcome.hazards
    assert np.array_equal(outcome.words[:128].view(np.float32).reshape(16, 8), a @ b)


def test_stmatrix_is_the_inverse_of_ldmatrix(run: Run) -> None:
    outcome = run("""
 mov.b32 %r3, global_smem;
 and.b32 %r4, %r1, 7;
 shl.b32 %r4, %r4, 4;
 add.s32 %r4, %r4, %r3;
 stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r4], {%r1};
 bar.warp.sync -1;
 ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r5}, [%r4];
 st.global.b32 [%rd5], %r5;""")
    assert not outcome.hazards
    assert outcome.words[:32].tolist() == list(range(32))


@pytest.mark.parametrize(
    "instruction",
    [
        "nanosleep.u32 20",
        "add.sat.s32 %r5, 1, 2",
        "add.rz.f32 %r5, %r1, %r1",
        "cvt.rz.bf16.f32 %rs1, %r1",
        "ld.global.acquire.gpu.b32 %r5, [%rd1]",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r5}, {%r5}, {%r5}, {%r5}",
    ],
)
def test_what_is_not_modelled_is_said(run: Run, instruction: str) -> None:
    with pytest.raises(NotModelled):
        run(f"{instruction};")


@pytest.mark.parametrize(
    "instruction",
    [
        "st.global.b32 [%rd2 + 16384], %r1",
        "st.global.b32 [%rd2 + 2], %r1",
        "ld.global.b32 %r5, [%rd1 + 4096]",
        "ld.shared.b32 %r5, [40000]",
    ],
)
def test_bad_addresses_are_faults(run: Run, instruction: str) -> None:
    with pytest.raises(Fault):
        run(f"{instruction};")
