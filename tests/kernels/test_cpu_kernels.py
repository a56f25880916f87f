"""Every C++ path that this machine can run, against the definition: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import LIBRARY, Case, expected64, make_case, supported_paths, weights64
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels import cpu
from ditpress.kernels.activations import ACTIVATIONS
from ditpress.kernels.cpu.weights import PackedWeight
from ditpress.kernels.reference import qlinear_reference

pytestmark = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

PATHS = supported_paths()


def run(case: Case, activation: str, path: str) -> Tensor:
    weight = PackedWeight(
        case.x.shape[-1], case.codes, case.scale, case.codebook, activation, path, table=case.table
    )
    return weight.run(case.x, case.bias)


def check(case: Case, activation: str, path: str) -> None:
    y = run(case, activation, path)
    if activation != "none":
        assert torch.equal(y, qlinear_reference(*case.all_arguments(activation)))
        return
    expected, size = expected64(case, activation)
    # Kernels may round x to 2**-24 of the largest magnitude of its row, and what is below 2**-120 to zero.
    step = 2.0**-24 * np.abs(case.x.double().numpy()).max(axis=1, keepdims=True) + 2.0**-120
    step = step * np.abs(weights64(case)).sum(axis=1)
    assert np.all(np.abs(y.numpy() - expected) <= (case.x.shape[-1] + 2) * 2.0**-23 * size + step)


def test_this_machine_runs_something() -> None:
    assert "portable" in PATHS
    assert cpu.isa() in (*PATHS, "reference")


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(LIBRARY),
    activation=st.sampled_from(ACTIVATIONS),
    rows=st.one_of(st.integers(0, 30), st.sampled_from([255, 256, 300])),
    out_features=st.integers(1, 150),
    group=st.one_of(st.integers(1, 40), st.sampled_from([64, 128])),
    groups=st.integers(1, 5),
    half=st.booleans(),
    bias=st.booleans(),
    magnitude=st.sampled_from([1e-36, 1e-30, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    path: str,
    name: str,
    activation: str,
    rows: int,
    out_features: int,
    group: int,
    groups: int,
    half: bool,
    bias: bool,
    magnitude: float,
    seed: int,
) -> None:
    case = make_case(
        name, rows, out_features, group, groups, seed=seed, half=half, bias=bias, magnitude=magnitude
    )
    check(case, activation, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "out_features", "k"), [(1, 1, 1), (3, 1, 9), (0, 5, 16), (2, 65, 33)])
def test_small_corners(rows: int, out_features: int, k: int, activation: str, path: str) -> None:
    check(make_case("int4", rows, out_features, k, 1), activation, path)
    check(make_case("int8", rows, out_features, k, 1), activation, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("groups", [1, 9])
@pytest.mark.parametrize("rows", [64, 260])
@pytest.mark.parametrize("activation", ["int8", "fp4-e2m1", "fp8-e4m3"])
def test_a_layer_of_a_model(rows: int, groups: int, activation: str, path: str) -> None:
    check(make_case("int4", rows, 384, 1152 // groups, groups, half=groups > 1), activation, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(("group", "groups"), [(48, 1), (64, 3), (20, 2)])
@pytest.mark.parametrize("rows", [5, 300])
def test_tables_of_channels(rows: int, group: int, groups: int, fold: bool, path: str) -> None:
    """Columns that use tables of their own, decoded at every use or when the weight is packed."""
    case = make_case("fp4", rows, 150, group, groups, half=True)
    generator = torch.Generator().manual_seed(1)
    case.codebook = torch.randint(-128, 128, (5 * 16, 1), generator=generator).to(torch.int8)
    case.table = torch.randint(0, 5, (150,), generator=generator).to(torch.uint8)
    stored = (group * groups, case.codes, case.scale, case.codebook, "int8", path)
    weight = PackedWeight(*stored, fold_scales=fold, table=case.table)
    assert torch.equal(weight.run(case.x, case.bias), qlinear_reference(*case.all_arguments("int8", fold)))
    case.table[7] = 5
    with pytest.raises(InputError, match="table 5 of row 7 is not in a codebook of 5"):
        PackedWeight(*stored, table=case.table)


@pytest.mark.parametrize("path", PATHS)
def test_extreme_codes_do_not_saturate(path: str) -> None:
    """The largest products that bytes can have, all of one sign, over a long K."""
    k = 2048
    case = make_case("int8", 4, 16, k, 1)
    case.codes[:8], case.codes[8:] = 0, 255  # -128 and 127
    case.x = torch.ones(4, k)
    case.x[2:] = -1.0
    check(case, "int8", path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("groups", [1, 2])
def test_non_finite_rows_match_the_reference_in_kind(groups: int, path: str) -> None:
    case = make_case("nf4", 8, 20, 16, groups)
    case.x[0], case.x[1] = 0.0, 1e-40
    case.x[2, 3], case.x[3, 3], case.x[4, 3] = torch.nan, torch.inf, -torch.inf
    for activation in (*ACTIVATIONS[2:], "int8"):
        y, expected = run(case, activation, path), qlinear_reference(*case.arguments(activation))
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    floats, expected = run(case, "none", path), qlinear_reference(*case.arguments("none"))
    assert torch.equal(floats.isnan(), expected.isnan())
    assert torch.equal(floats.isinf(), expected.isinf())
    assert floats[5:].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ["int8", "none", "int4"])
def test_thread_count_does_not_change_a_bit(activation: str, path: str) -> None:
    before = torch.get_num_threads()
    try:
        for rows, out_features in ((70, 100), (3, 300), (65, 8)):
            case = make_case("int4", rows, out_features, 32, 3, half=True)
            torch.set_num_threads(1)
            one = run(case, activation, path)
            torch.set_num_threads(2)
            assert torch.equal(run(case, activation, path), one)
    finally:
        torch.set_num_threads(before)


def test_torchs_own_thread_pool_is_used() -> None:
    """torch brings an OpenMP runtime on this platform, and the library finds it without loading another."""
    library = cpu.load()
    assert library is not None
    pools = [str(path) for path in cpu.torch_openmp_libraries()]
    if not pools:
        pytest.skip("this torch build has no OpenMP library beside it")
    assert library.ditpress_use_openmp(pools[0].encode()) == 1
    assert library.ditpress_use_openmp(b"/nonexistent/libgomp.so") == 0


def test_packed_size_is_that_of_the_codes() -> None:
    case = make_case("int4", 1, 128, 64, 4, half=True)
    weight = PackedWeight(256, case.codes, case.scale, case.codebook, "int8")
    assert weight.nbytes() == case.codes.numel() + 2 * case.scale.numel()


def test_unknown_path_is_an_error() -> None:
    case = make_case("int4", 1, 1, 4, 1)
    with pytest.raises(InputError, match="'sse9' is unknown"):
        PackedWeight(4, case.codes, case.scale, case.codebook, "int8", "sse9")
