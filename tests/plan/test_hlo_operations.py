"""What the TPU report counts: bytes, products and runs of each operation."""

import pytest

from keras_griffin.plan import hlo_operations

pytestmark = pytest.mark.backend_independent

# A line end and a brace inside of an attribute, as splash attention has them; a
# product of three matrices each, in six passes; a loop of seven runs, and one
# that compares its counter with five; memory that nothing is written to.
PROGRAM = """HloModule m

%fused (p0: bf16[8,4], p1: bf16[4,16]) -> bf16[8,16] {
  %p0 = bf16[8,4]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[4,16]{1,0:T(8,128)} parameter(1)
  ROOT %c = bf16[8,16]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %n = bf16[8,4]{1,0} negate(%p), metadata={op_name="a
}
b"}
}

%counted (i: s32[]) -> s32[] {
  %i = s32[] parameter(0)
  ROOT %one_more = s32[] add(%i, %i)
}

%until (j: s32[]) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %j = s32[] parameter(0)
  ROOT %lt = pred[] compare(%j, %five), direction=LT
}

ENTRY %main (a: bf16[8,4], b: bf16[4,16], q: f32[3,8,4], r: f32[3,4,5]) -> x {
  %a = bf16[8,4]{1,0:T(8,128)} parameter(0)
  %b = bf16[4,16]{1,0:T(8,128)} parameter(1)
  %q = f32[3,8,4]{2,1,0} parameter(2)
  %r = f32[3,4,5]{2,1,0} parameter(3)
  %three = f32[3,8,5]{2,1,0} convolution(%q, %r), window={size=3 stride=2 \
pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf, \
operand_precision={highest,highest}
  %w = bf16[8,4]{1,0} while(%a), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %zero = s32[] constant(0)
  %v = s32[] while(%zero), condition=%until, body=%counted
  %room = f32[9,9]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %f = bf16[8,16]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  ROOT %g = bf16[8,16]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
}
"""


@pytest.fixture(scope="module")
def found():
    return {o.name: o for o in hlo_operations.operations(PROGRAM)}


def test_products(found):
    assert found["f"].flops == 2 * 8 * 4 * 16
    assert found["three"].flops == 6 * 3 * (2 * 8 * 4 * 5)
    assert found["n"].flops == 0


def test_bytes_have_whole_tiles(found):
    # Each of the three is one tile of 8 x 128 numbers of two bytes.
    assert found["f"].bytes == 3 * 8 * 128 * 2
    assert found["n"].bytes == 2 * 8 * 4 * 2


def test_loops_run_as_often_as_they_say(found):
    times = {name: operation.times for name, operation in found.items()}
    assert times == {"three": 1, "n": 7, "one_more": 5, "f": 1, "g": 1}


def test_equal_operations_are_twins(found):
    assert found["f"].twin == found["g"].twin != found["three"].twin
