"""The C interface (include/awex_colocate.h) by ctypes, and where the library is found."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_size_t, c_ssize_t, c_uint32
from ctypes import c_uint64, c_void_p
from pathlib import Path

from .errors import WrongRequest

ABI_VERSION = 2
NAME = "libawex_colocate.so"
VARIABLE = "AWEX_COLOCATE_LIBRARY"
TAGS = ("weights", "optimizer", "kv_cache")
ROLES = ("trainer", "inference")
OWN_WEIGHTS = (None, "stays", "moves")
MOST_KEPT_BYTES = 16 << 20


class AttachOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("job", c_char_p),
        ("role", c_int),
        ("name", c_char_p),
        ("gpu_uuid", c_char_p),
        ("device", c_int32),
        ("bytes", c_uint64 * len(TAGS)),
        ("timeout_s", c_double),
        ("own_weights", c_int),
    ]


class PlaceInJob(ctypes.Structure):
    _fields_ = [
        ("rank", c_int32),
        ("role_rank", c_int32),
        ("host", c_char_p),
        ("model", c_char_p),
        ("layout", c_char_p),
        ("backend", c_char_p),
        ("reattached", c_int32),
        ("version", c_uint64),
    ]


class MemoryInfo(ctypes.Structure):
    _fields_ = [("address", c_void_p), ("bytes", c_uint64), ("is_mapped", c_int32)]


class CTensor(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("dtype", c_char_p),
        ("rows", c_uint64),
        ("cols", c_uint64),
        ("offset_bytes", c_uint64),
        ("tag", c_int),
    ]


Callback = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_uint64)

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "awex_abi_version": (c_uint32, []),
    "awex_build": (c_char_p, []),
    "awex_error": (c_char_p, []),
    "awex_attach": (c_int, [POINTER(AttachOptions), POINTER(c_void_p)]),
    "awex_detach": (None, [c_void_p]),
    "awex_place": (c_int, [c_void_p, POINTER(PlaceInJob)]),
    "awex_memory": (c_int, [c_void_p, c_int, POINTER(MemoryInfo)]),
    "awex_layout_size": (c_uint64, [c_void_p]),
    "awex_layout_tensor": (c_int, [c_void_p, c_uint64, POINTER(CTensor)]),
    "awex_declare": (c_int, [c_void_p, POINTER(CTensor)]),
    "awex_declare_own": (c_int, [c_void_p, POINTER(CTensor), c_void_p]),
    "awex_map_placeholder": (c_int, [c_void_p, c_int]),
    "awex_seal": (c_int, [c_void_p, c_double]),
    "awex_hand_over": (c_int, [c_void_p, c_double, POINTER(c_uint64)]),
    "awex_take_back": (c_int, [c_void_p, c_double]),
    "awex_take_back_weights": (c_int, [c_void_p, c_double]),
    "awex_wait": (c_int, [c_void_p, c_uint64, c_double, POINTER(c_uint64)]),
    "awex_release": (c_int, [c_void_p, c_double]),
    "awex_ready": (c_int, [c_void_p, c_double]),
    "awex_restore": (c_int, [c_void_p, POINTER(c_int32)]),
    "awex_check": (c_int, [c_void_p]),
    "awex_writing": (c_int, [c_void_p]),
    "awex_consistent": (c_int, [c_void_p]),
    "awex_before_release": (c_int, [c_void_p, Callback, c_void_p]),
    "awex_after_resume": (c_int, [c_void_p, Callback, c_void_p]),
    "awex_weights_changed": (c_int, [c_void_p, Callback, c_void_p]),
    "awex_use": (c_int, [c_void_p, c_int]),
    "awex_alloc": (c_void_p, [c_ssize_t, c_int, c_void_p]),
    "awex_free": (None, [c_void_p, c_ssize_t, c_int, c_void_p]),
    "awex_book": (c_int, [c_void_p, c_char_p, c_uint64]),
    "awex_keep": (c_int, [c_void_p, c_char_p, c_size_t]),
    "awex_kept": (c_int, [c_void_p, POINTER(c_void_p), POINTER(c_size_t)]),
}

_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None


def library_path() -> str:
    """The library's file: what AWEX_COLOCATE_LIBRARY names, else the one beside this package (as in a
    wheel), else the system's, by its name alone."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise WrongRequest(f"{VARIABLE}={named} is no file", f"name {NAME}, or unset {VARIABLE}")
        return named
    beside = Path(__file__).with_name(NAME)
    return str(beside) if beside.is_file() else NAME


def library() -> ctypes.CDLL:
    """The loaded library; once for the process. Raises WrongRequest when there is none, or another
    version of its interface."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load(library_path())
    return _loaded


def _load(path: str) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(path)
    except OSError as error:
        raise WrongRequest(
            f"cannot load {path}: {error}",
            f"install the wheel that carries {NAME}, or name the library by {VARIABLE}",
        ) from None
    _check_version(lib, path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise WrongRequest(f"{path} has no {name}", "install package and library of one release")
        function.restype = result
        function.argtypes = arguments
    return lib


def _check_version(lib: ctypes.CDLL, path: str) -> None:
    try:
        lib.awex_abi_version.restype = c_uint32
        lib.awex_build.restype = c_char_p
        found, build = lib.awex_abi_version(), lib.awex_build().decode()
    except AttributeError as error:
        raise WrongRequest(f"{path} is no {NAME}: {error}", f"check {VARIABLE}") from None
    if found != ABI_VERSION:
        raise WrongRequest(
            f"{path} ({build}) has version {found} of its interface, this package needs {ABI_VERSION}",
            "install package and library of one release",
        )
