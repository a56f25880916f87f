"""The torch op: registration, dispatch, the packed copy behind it, errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from qlinear_cases import ALL, Case, make_case, supported_paths

from ditpress.errors import InputError
from ditpress.kernels import cpu
from ditpress.kernels.activations import ACTIVATIONS
from ditpress.kernels.arguments import LinearArguments
from ditpress.kernels.cpu.weights import packed_weight
from ditpress.kernels.qlinear import qlinear
from ditpress.kernels.reference import qlinear_reference

needs_library = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

OP = torch.ops.ditpress.qlinear.default


@pytest.mark.parametrize("activation", ["int8", "none", "fp4-e2m1"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fold", [False, True])
def test_opcheck(activation: str, bias: bool, fold: bool) -> None:
    case = make_case("fp4" if fold else "fp4-e2m1", 6, 10, 16, 2, half=True, bias=bias)
    torch.library.opcheck(OP, case.all_arguments(activation, fold))


def test_leading_dimensions_and_strides() -> None:
    case = make_case("int4", 24, 10, 16, 2)
    flat = qlinear(*case.arguments("int8"))
    _, *rest = case.arguments("int8")
    assert torch.equal(qlinear(case.x.view(2, 3, 4, 32), *rest), flat.view(2, 3, 4, 10))
    assert torch.equal(qlinear(case.x[0], *rest), flat[0])
    transposed = case.x.T.contiguous().T
    assert not transposed.is_contiguous()
    assert torch.equal(qlinear(transposed, *rest), flat)
    assert qlinear(case.x[:0].view(0, 3, 32), *rest).shape == (0, 3, 10)


def test_op_equals_its_definition() -> None:
    case = make_case("nf4", 40, 70, 16, 3, half=True)
    assert torch.equal(qlinear(*case.arguments("int8")), qlinear_reference(*case.arguments("int8")))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
@pytest.mark.parametrize("fold", [False, True])
def test_every_coding_equals_its_definition(name: str, activation: str, fold: bool) -> None:
    arguments = make_case(name, 5, 9, 16, 3, half=True).all_arguments(activation, fold)
    assert torch.equal(qlinear(*arguments), qlinear_reference(*arguments))


def test_folding_matters_only_with_groups_and_int8() -> None:
    grouped, single = make_case("int4", 5, 9, 16, 3), make_case("int4", 5, 9, 48, 1)
    exact, folded = (qlinear(*grouped.arguments("int8"), fold) for fold in (False, True))
    assert not torch.equal(folded, exact)
    torch.testing.assert_close(folded, exact, rtol=0, atol=0.01 * float(exact.abs().max()))
    others = [grouped.arguments(name) for name in ACTIVATIONS if name != "int8"]
    for arguments in (single.arguments("int8"), single.arguments("none"), *others):
        assert torch.equal(qlinear(*arguments, True), qlinear(*arguments, False))


def linear_arguments(case: Case) -> LinearArguments:
    return LinearArguments(*case.all_arguments("int8")[1:])


@needs_library
@pytest.mark.skipif(cpu.isa() == "reference", reason="the C++ kernels are switched off")
def test_packed_copy_follows_the_tensors() -> None:
    case = make_case("int4", 4, 8, 16, 2)
    arguments = (32, linear_arguments(case))
    first = packed_weight(*arguments)
    assert first is not None
    assert packed_weight(*arguments) is first

    case.scale.mul_(2)  # in place
    assert packed_weight(*arguments) is not first
    assert torch.equal(qlinear(*case.arguments("int8")), qlinear_reference(*case.arguments("int8")))
    case.codes.data = case.codes.flip(0)  # other memory
    assert torch.equal(qlinear(*case.arguments("int8")), qlinear_reference(*case.arguments("int8")))
    other = packed_weight(32, linear_arguments(case)._replace(scale=case.scale.clone()))
    assert other is not first
    assert packed_weight(32, linear_arguments(case)._replace(activation="none")) is not other

    with torch.inference_mode():
        inside = make_case("int4", 4, 8, 16, 2)
        assert torch.equal(qlinear(*inside.arguments("int8")), qlinear_reference(*inside.arguments("int8")))


@needs_library
@pytest.mark.skipif(cpu.isa() == "reference", reason="the C++ kernels are switched off")
def test_packed_copy_dies_with_the_codes() -> None:
    case = make_case("int4", 4, 8, 16, 2)
    qlinear(*case.arguments("int8"))
    packed = weakref.ref(packed_weight(32, linear_arguments(case)))
    assert packed() is not None
    del case
    gc.collect()
    assert packed() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 32, dtype=torch.float64)}, "input is torch.float64"),
        ({"x": torch.zeros(2, 31)}, r"G a divisor of in_features=31"),
        ({"codes": torch.zeros(8, 15, dtype=torch.uint8)}, r"expected torch.uint8 \[N, 16\]"),
        ({"codes": torch.zeros(8, 16)}, "codes are torch.float32"),
        ({"scale": torch.zeros(8, 3)}, r"scale is torch.float32 \[8, 3\]"),
        ({"scale": torch.zeros(8, 2, dtype=torch.bfloat16)}, "scale is torch.bfloat16"),
        ({"codebook": torch.zeros(15, 1, dtype=torch.int8)}, r"codebook is torch.int8 \[15, 1\]"),
        ({"codebook": torch.zeros(64, 1, dtype=torch.int8)}, r"expected torch.uint8 \[N, 24\]"),
        ({"codebook": torch.zeros(3, 1, dtype=torch.int8)}, r"expected torch.uint8 \[N, 7\]"),
        ({"codebook": torch.zeros(16, 3, dtype=torch.int8)}, "vectors of 3 do not divide in_features=32"),
        ({"bias": torch.zeros(7)}, r"bias is torch.float32 \[7\], expected torch.float32 \[8\]"),
        ({"activation": "int5"}, "activation is 'int5'"),
        ({"table": torch.zeros(8, dtype=torch.uint8)[:7]}, r"table is torch.uint8 \[7\], expected .* \[8\]"),
        ({"table": torch.zeros(8)}, "table is torch.float32"),
        (
            {"codebook": torch.zeros(24, 1, dtype=torch.int8), "table": torch.zeros(8, dtype=torch.uint8)},
            r"codebook is torch.int8 \[24, 1\], expected torch.int8 \[tables \* 16, 1\]",
        ),
    ],
)
def test_bad_arguments_name_the_tensor(change: dict[str, object], message: str) -> None:
    case = make_case("int4", 2, 8, 16, 2)
    names = ("x", "codes", "scale", "codebook", "bias", "activation")
    arguments = dict(zip(names, case.arguments("int8"), strict=True)) | change
    for device in ("cpu", "meta"):
        on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        with pytest.raises(InputError, match=message):
            OP(**on_device)


@pytest.mark.parametrize("function", [qlinear, qlinear_reference])
def test_tables_that_are_not_there(function: Callable[..., torch.Tensor]) -> None:
    case = make_case("fp4", 2, 8, 16, 2)
    assert case.table is not None
    case.table[5] = 3
    with pytest.raises(InputError, match="table 3 is not in a codebook of 3 tables of 16"):
        function(*case.all_arguments("int8"))


def test_groups_that_could_overflow_are_refused() -> None:
    k = 2**17 + 1
    with pytest.raises(InputError, match="can overflow int32"):
        qlinear(
            torch.zeros(1, k),
            torch.zeros(1, k, dtype=torch.uint8),
            torch.ones(1, 1),
            torch.zeros(256, 1, dtype=torch.int8),
            None,
            "int8",
        )
    k = 2**17 + 2
    folded = (torch.zeros(1, k), torch.zeros(1, k, dtype=torch.uint8), torch.ones(1, 2))
    table = torch.zeros(256, 1, dtype=torch.int8)
    with pytest.raises(InputError, match=r"folded scales: .* set fold_scales to false"):
        qlinear(*folded, table, None, "int8", True)
    assert qlinear(*folded, table, None, "int8").item() == 0


SCRIPT = """
import torch
from ditpress.kernels import cpu
from ditpress.kernels.activations import ACTIVATIONS
from ditpress.kernels.arguments import LinearArguments
from ditpress.kernels.formats import get_format
from ditpress.kernels.qlinear import qlinear
from ditpress.kernels.reference import qlinear_reference
arguments = (torch.randn(3, 32), torch.full((5, 16), 0x3A, dtype=torch.uint8), torch.rand(5, 2),
             get_format("int4").codebook_tensor(), None, "int8")
assert torch.equal(qlinear(*arguments), qlinear_reference(*arguments))
print(cpu.isa())
"""


def run_with(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DITPRESS_ISA": isa}
    return subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", [*supported_paths(), "reference"])
def test_environment_forces_a_path(isa: str) -> None:
    result = run_with(isa)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa
    assert "Warning" not in result.stderr


def test_unknown_path_in_the_environment_is_an_error() -> None:
    result = run_with("sse9")
    assert result.returncode != 0
    assert (
        "InputError: DITPRESS_ISA is 'sse9', expected one of avx512vnni, avxvnni, avx2, neon, "
        in result.stderr
    )


def test_without_library_the_reference_runs_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library_path", lambda: None)
    monkeypatch.delenv("DITPRESS_ISA", raising=False)
    cpu.isa.cache_clear()
    cpu.load.cache_clear()
    try:
        case = make_case("int4", 2, 8, 16, 2)
        with pytest.warns(RuntimeWarning, match=r"without its C\+\+ kernels"):
            first = qlinear(*case.arguments("int8"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = qlinear(*case.arguments("int8"))
        assert torch.equal(first, second)
        monkeypatch.setenv("DITPRESS_ISA", "avx2")
        cpu.isa.cache_clear()
        with pytest.raises(InputError, match="were not built"):
            qlinear(*case.arguments("int8"))
    finally:
        cpu.isa.cache_clear()
        cpu.load.cache_clear()
