"""What the TPU report counts: bytes, products and runs of each operation."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parents[2]

# A line end and a brace inside of an attribute, as splash attention has them; a
# product of three matrices each, in six passes; a loop of seven runs.
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
  %f = bf16[8,16]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  ROOT %g = bf16[8,16]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
}
"""


@pytest.fixture(scope="module")
def found():
    path = ROOT / "benchmarks/tpu_compiler/hlo_operations.py"
    spec = importlib.util.spec_from_file_location("hlo_operations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {o.name: o for o in module.operations(PROGRAM)}


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
    assert times == {"three": 1, "n": 7, "f": 1, "g": 1}


def test_equal_operations_are_twins(found):
    assert found["f"].twin == found["g"].twin != found["three"].twin
