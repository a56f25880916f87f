"""The CPU kernels: a plain C shared library, reached by ctypes.

The library picks its instruction set at run time. ``DITPRESS_ISA`` forces one of ``avx512vnni``, ``avxvnni``,
``avx2``, ``neon`` (with dot products), ``portable`` or ``reference`` (no C++ at all); a value that is unknown
or that this CPU lacks is an error.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path

import torch

from ditpress.errors import InputError

ABI_VERSION = 5

ISAS = ("avx512vnni", "avxvnni", "avx2", "neon", "portable", "reference")


def library_path() -> Path | None:
    """The built shared library, or None where the package was installed without a compiler."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for folder in __path__:
        path = Path(folder) / f"libditpress{suffix}"
        if path.is_file():
            return path
    return None


@functools.cache
def isa() -> str:
    """The instruction set that the op runs on, decided once: one of ISAS.

    Raises:
        InputError: DITPRESS_ISA names an instruction set that is unknown or not available here.
    """
    forced = os.environ.get("DITPRESS_ISA", "")
    if forced and forced not in ISAS:
        raise InputError(f"DITPRESS_ISA is {forced!r}, expected one of {', '.join(ISAS)}")
    if forced == "reference":
        return forced
    library = load()
    if library is None:
        if forced:
            raise InputError(
                f"DITPRESS_ISA is {forced!r}, but the C++ kernels were not built: reinstall with a compiler"
            )
        warnings.warn(
            "ditpress was installed without its C++ kernels, low-bit layers run on the slow PyTorch "
            "reference: install a C++17 compiler and reinstall ditpress (or set DITPRESS_ISA=reference)",
            RuntimeWarning,
            stacklevel=2,
        )
        return "reference"
    name = library.ditpress_isa()
    if name is None:
        raise InputError(last_error(library))
    return name.decode()


@functools.cache
def load() -> ctypes.CDLL | None:
    """The shared library with its signatures declared, or None where there is none."""
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    i32, i64, f32 = ctypes.c_int32, ctypes.c_int64, ctypes.c_float
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "ditpress_last_error": (text, []),
        "ditpress_isa": (text, []),
        "ditpress_use_openmp": (i32, [text]),
        "ditpress_weight_create": (
            pointer,
            [pointer, i64, i64, i32, i32, pointer, i32, pointer, pointer, i32, i64, i32, i32, text],
        ),
        "ditpress_weight_bytes": (i64, [pointer]),
        "ditpress_weight_destroy": (None, [pointer]),
        "ditpress_weight_run": (
            i32,
            [
                pointer,
                pointer,
                i64,
                pointer,
                pointer,
                pointer,
                i64,
                f32,
                i32,
                pointer,
                pointer,
                i64,
                pointer,
                i32,
            ],
        ),
        "ditpress_attention": (i32, [pointer] * 5 + [i64] * 5 + [f32, i32, pointer, text, i32]),
        "ditpress_nearest": (i32, [pointer, pointer, i64, i64, pointer, i64, pointer, pointer, text, i32]),
        "ditpress_best_scales": (
            i32,
            [pointer, i64, i64, pointer, i64, pointer, i64, i32, i32, pointer, pointer, pointer, text, i32],
        ),
    }
    if library.ditpress_abi_version() != ABI_VERSION:  # first: another version may lack some of the others
        raise InputError(
            f"{path} has ABI {library.ditpress_abi_version()}, expected {ABI_VERSION}: rebuild ditpress"
        )
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for pool in (*torch_openmp_libraries(), None):  # None: whatever runtime the process has loaded
        if library.ditpress_use_openmp(str(pool).encode() if pool else None):
            break
    return library


def torch_openmp_libraries() -> list[Path]:
    """OpenMP runtimes that lie beside torch's own libraries: the pool that torch works on."""
    folder = Path(torch.__file__).parent / "lib"
    return sorted(path for name in ("libgomp", "libiomp", "libomp") for path in folder.glob(f"{name}*"))


def last_error(library: ctypes.CDLL) -> str:
    """The message of the last call on this thread that failed."""
    return library.ditpress_last_error().decode()
