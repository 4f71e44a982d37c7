"""Loops in machine code: those that branches make, and nothing else."""

import pytest

from hybrid.kernels.gate.machine_code import Loop, count_instructions, is_matrix, matrix_loops


def code(*lines: str) -> str:
    """As the disassembler prints it; labels end with a colon."""
    return "\n".join(
        line if line.endswith(":") else f"        /*{number:04x}*/                   {line} ;"
        for number, line in enumerate(lines)
    )


INNER = [".L_x_1:", "LDGSTS.E [R1], [R2]", "HGMMA.64x8 R0, R1", "@!P0 BRA `(.L_x_1)"]


def test_instructions_are_counted_without_their_predicates() -> None:
    counts = count_instructions(code("@!P0 LDG.E R1, [R2]", "LDG.E R3, [R2]", "@UP1 EXIT"))
    assert counts == {"LDG.E": 2, "EXIT": 1}
    assert is_matrix("UTCOMMA.4X") and is_matrix("OMMA.SF.16864") and not is_matrix("WARPGROUP.MMA")


def test_a_loop_and_the_one_around_it() -> None:
    outer = [".L_x_0:", "LDG.E R4, [R5]", *INNER, "@P1 BRA `(.L_x_0)", "EXIT"]
    inner, around = Loop(3, 0, encloses=False), Loop(5, 1, encloses=True)
    assert matrix_loops(code("MOV R0, R1", *outer)) == (inner, around)


def test_every_loop_is_found_the_smallest_first() -> None:
    second = [".L_x_2:", "LDG.E R4, [R5]", "MOV R1, R2", "HMMA.16816 R0", "BRA.U UP0, `(.L_x_2)"]
    loops = matrix_loops(code(*INNER, *second, "EXIT"))
    assert loops == (Loop(3, 0, encloses=False), Loop(4, 1, encloses=False))


def test_loops_without_matrix_instructions_do_not_count() -> None:
    plain = [".L_x_3:", "LDG.E R4, [R5]", "@P0 BRA `(.L_x_3)"]
    assert matrix_loops(code(*plain, *INNER, "EXIT")) == (Loop(3, 0, encloses=False),)
    assert matrix_loops(code(*plain, "EXIT")) == ()


def test_a_block_that_waits_behind_the_end_belongs_to_its_loop() -> None:
    """It leads back to a label in the loop, which makes no loop of what lies between."""
    inner = [".L_x_1:", "@!P3 BRA `(.L_x_8)", ".L_x_2:", "UTCHMMA gdesc[UR4]", "@P0 BRA `(.L_x_1)"]
    behind = ["LDG.E R4, [R5]", "UTCHMMA gdesc[UR4]", "EXIT", ".L_x_8:", "SYNCS", "BRA `(.L_x_2)"]
    assert matrix_loops(code(*inner, *behind)) == (Loop(5, 0, encloses=False),)


@pytest.mark.parametrize(("load", "loads"), [("LDG.E R1, [R2]", 1), ("MOV R1, R2", 0)])
def test_unrolled_turns_are_one_stretch(load: str, loads: int) -> None:
    turns = ["LDG.E R9, [R2]", "HMMA.16816 R0", load, "HMMA.16816 R0", "LDG.E R9, [R2]", "EXIT"]
    assert matrix_loops(code(*turns)) == (Loop(3, loads, encloses=False),)
