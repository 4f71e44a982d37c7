"""Registers of a product in flight: what breaks the rules, and what does not."""

import pytest

from hybrid.kernels.gate.compilation import grouped_assembly
from hybrid.kernels.gate.hazards import register_hazards

PRODUCT = "HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
SHARED = "HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
WAIT, WAIT_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def assembled(*lines: str) -> str:
    """Lines as the disassembler prints them; labels end with a colon."""
    text, address = [], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(text)


@pytest.mark.parametrize(
    "touch",
    [
        "IMAD R7, R40, 0x2, RZ",
        "LDS.128 R4, [R60]",
        "LDSM.16.M88.4 R4, [R60]",
        "IMAD.WIDE R6, R40, 0x4, R42",
        "SHFL.BFLY PT, R5, R40, 0x1, 0x1f",
        "FADD R60, R24, R25",
        "STG.E desc[UR4][R60.64], R39",
        "HGMMA.64x32x16.F32.BF16 R4, R64, gdesc[UR8], R4, gsb0",
        "HGMMA.64x32x16.F32.BF16 R32, R64, gdesc[UR8], R32, gsb0",
    ],
)
def test_a_register_in_flight_is_not_touched_before_its_wait(touch: str) -> None:
    (found,) = register_hazards(assembled(PRODUCT, touch, WAIT, "EXIT"))
    assert touch.split(" ")[0] in found
    waiting_first = assembled(PRODUCT, WAIT, touch, WAIT, "EXIT")
    assert register_hazards(waiting_first) == ()


@pytest.mark.parametrize(
    "harmless",
    [
        "IMAD R8, R4, 0x2, RZ",
        "STS [R4], R5",
        "ISETP.NE.AND P0, PT, R4, RZ, PT",
        "LDS.64 R40, [R60]",
        "HGMMA.64x32x16.F32.BF16 R24, R64, gdesc[UR12], R24, gsb0",
        "HGMMA.64x32x16.F32.BF16 R80, R64, gdesc[UR12], R80, gsb0",
    ],
)
def test_first_operands_may_be_read_and_sums_added_to(harmless: str) -> None:
    assert register_hazards(assembled(PRODUCT, harmless, WAIT, "EXIT")) == ()


def test_operands_in_shared_memory_have_no_registers() -> None:
    write = "IMAD R4, R40, 0x2, RZ"
    assert register_hazards(assembled(SHARED, write, WAIT, "EXIT")) == ()


def test_a_wait_leaves_the_newest_groups_in_flight() -> None:
    other = "HGMMA.64x32x16.F32.BF16 R80, R64, gdesc[UR8], R80, gsb0"
    old, new = "IMAD R4, R40, 0x2, RZ", "IMAD R64, R40, 0x2, RZ"
    lines = (PRODUCT, other, WAIT_BUT_ONE)
    assert register_hazards(assembled(*lines, old, "EXIT")) == ()
    assert len(register_hazards(assembled(*lines, new, "EXIT"))) == 1


def test_the_next_turn_of_a_loop_counts() -> None:
    """The write stands before the product, and meets it in the turn that follows."""
    turn = (".L_x_1:", "IMAD R4, R40, 0x2, RZ", PRODUCT)
    leave = ("@P0 BRA `(.L_x_1)", WAIT, "EXIT")
    (found,) = register_hazards(assembled(*turn, *leave))
    assert found == "0000 IMAD R4, R40, 0x2, RZ"
    assert register_hazards(assembled(*turn, WAIT, *leave)) == ()


def test_assembly_that_takes_elements_in_register_order_is_counted() -> None:
    line = (
        'tt.elementwise_inline_asm "mov.b32 $0, $1;" {packed_element = %d : i32, pure = true} %%x'
    )
    assert grouped_assembly(line % 2) == 1
    assert grouped_assembly(line % 1) == 0
    assert grouped_assembly("tt.dot %a, %b") == 0
