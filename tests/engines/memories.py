"""Where a trainer's weights and optimizer state lie, as ENGINES_MEMORY says: updates.py lists the kinds."""

import contextlib
import ctypes
import os

import torch
from files import DEVICE, ON_GPU

from awex_colocate import WrongRequest
from awex_colocate._matching import register_tensors
from awex_colocate._tensors import _DeviceBytes

KIND = os.environ.get("ENGINES_MEMORY", "arena")
#: As `awex_colocate.attach` takes it.
OWN = {"arena": None, "pool": None, "moves": "moves"}.get(KIND, "stays")
#: The driver's pages.
PAGE_BYTES = 2 << 20


def sizes(wanted):
    """What to ask for, of what the tensors have."""
    if OWN:
        return {"optimizer": wanted["optimizer"]}
    if KIND == "pool":  # PyTorch takes segments of 2 and 20 MiB, and fills them as well as it can.
        return {tag: count * 5 // 4 + (64 << 20) for tag, count in wanted.items()}
    return wanted


def hold(engine, trainer):
    """Declares the trainer's tensors, in the job's memory or in its own."""
    if KIND == "pool":
        return to_pool(engine, trainer.model)
    if not OWN:
        return trainer.adopt(engine)
    if KIND == "private":
        private_is_refused(engine)
    if not ON_GPU:
        trainer.model.share_memory()
    trainer.register(engine, trainer.optimizer)
    if KIND == "moves":
        move_by_hooks(engine, trainer)


def to_pool(engine, model):
    """Has PyTorch allocate the weights in the job's memory, where they stay."""
    memory = engine.memory("weights")
    with memory:
        model.to(DEVICE)
    for place in engine.layout():
        offset = model.get_parameter(place.name).data_ptr() - memory.address
        engine.declare(place.name, place.dtype, place.rows, place.cols, offset)


def first_state(engine, version):
    """Around the optimizer's first step, which makes its state."""
    return engine.memory("optimizer") if KIND == "pool" and version == 1 else contextlib.nullcontext()


def move_by_hooks(engine, trainer):
    @engine.before_release
    def leave(tag, _version):
        if tag == "weights":
            trainer.leave()

    @engine.after_resume
    def come_back(tag, _version):
        if tag == "weights":
            trainer.come_back()
            trainer.register(engine)


def away(tensor):
    return tensor.cpu().pin_memory() if ON_GPU else tensor.clone()


def back(tensor):
    return tensor.to(DEVICE) if ON_GPU else tensor.clone().share_memory_()


# Memory that no other process can map


class Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class Properties(ctypes.Structure):
    """CUmemAllocationProp. Without `handle_types` there is nothing to export."""

    _fields_ = [("type", ctypes.c_int), ("handle_types", ctypes.c_int), ("location", Location),
                ("windows", ctypes.c_void_p), ("flags", ctypes.c_uint8 * 8)]  # fmt: skip


class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


def driver(name, *arguments):
    status = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    assert status == 0, (name, status)


def private_bytes(count):
    """A tensor in virtual memory as torch_memory_saver takes it. It is never given back."""
    size = ctypes.c_size_t(-(-count // PAGE_BYTES) * PAGE_BYTES)
    here = Location(1, torch.device(DEVICE).index)
    handle, address, none = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_size_t(0)
    wanted, read_write = Properties(type=1, location=here), Access(here, 3)
    driver("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(wanted), none)
    driver("cuMemAddressReserve", ctypes.byref(address), size, none, none, none)
    driver("cuMemMap", address, size, none, handle, none)
    driver("cuMemSetAccess", address, size, ctypes.byref(read_write), ctypes.c_size_t(1))
    return torch.as_tensor(_DeviceBytes(address.value, count), device=DEVICE)


def private_is_refused(engine):
    place = min(engine.layout(), key=lambda one: one.bytes)
    tensor = private_bytes(place.bytes)
    try:
        register_tensors(engine, [(place, [lambda: tensor])])
        raise AssertionError("memory that no other process can map was registered")
    except WrongRequest as error:
        assert place.name in str(error) and "adopt" in error.hint and "cudaMalloc" in error.hint, error
        print("refused:", error, flush=True)
    with contextlib.suppress(WrongRequest):  # It begins a new list.
        engine.seal()
