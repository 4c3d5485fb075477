"""What a machine's GPUs hold, asked of the driver's own library, which takes microseconds."""

import ctypes


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _call(library, name, *arguments):
    code = getattr(library, name)(*arguments)
    if code != 0:
        raise RuntimeError(f"{name}: error {code} of libnvidia-ml")


def used_gpu_bytes():
    """Of all GPUs together, and all processes."""
    library = ctypes.CDLL("libnvidia-ml.so.1")
    _call(library, "nvmlInit_v2")
    try:
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        used = 0
        for index in range(count.value):
            device, memory = ctypes.c_void_p(), _Memory()
            _call(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
            _call(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
            used += memory.used
        return used
    finally:
        library.nvmlShutdown()
