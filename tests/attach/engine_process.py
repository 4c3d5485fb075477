"""Plays an engine in a process of its own: does what its parent asks for, a JSON object a line, and answers alike.

The library is used by ctypes, and so is CUDA's driver where memory is a GPU's; tensors are numpy's. Weights are filled
by a generator with known content (`pattern`), so that what comes elsewhere can be told from what is meant.
"""

import argparse
import ctypes
import json
import mmap
import os
import resource
import sys
import time
import zlib

import numpy as np

TAGS = ("weights", "optimizer", "kv_cache")
ELEMENTS = {"bf16": np.uint16, "f16": np.uint16, "f32": np.uint32, "f8_e4m3": np.uint8}


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("job", ctypes.c_char_p), ("role", ctypes.c_int),
                ("name", ctypes.c_char_p), ("gpu_uuid", ctypes.c_char_p), ("device", ctypes.c_int32),
                ("bytes", ctypes.c_uint64 * 3), ("timeout_s", ctypes.c_double), ("own_weights", ctypes.c_int)]


class Place(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int32), ("role_rank", ctypes.c_int32), ("host", ctypes.c_char_p),
                ("model", ctypes.c_char_p), ("layout", ctypes.c_char_p), ("backend", ctypes.c_char_p),
                ("reattached", ctypes.c_int32), ("version", ctypes.c_uint64)]


class MemoryInfo(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("is_mapped", ctypes.c_int32)]


class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("rows", ctypes.c_uint64),
                ("cols", ctypes.c_uint64), ("offset_bytes", ctypes.c_uint64), ("tag", ctypes.c_int)]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)


class Failed(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def own_file(count):
    fd = os.memfd_create("own")
    os.ftruncate(fd, count)
    return fd


def map_pages(begin, fd, count):
    """A file from its last page to its first, so that each is a mapping of its own."""
    map_fixed = 0x10
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    for at in range(0, count, mmap.PAGESIZE):
        libc.mmap(ctypes.c_void_p(begin + at), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE,
                  mmap.MAP_SHARED | map_fixed, fd, ctypes.c_long(count - mmap.PAGESIZE - at))


class HostMemory:
    """What lies at addresses on the `host` backend."""

    uuid = None

    def __init__(self, _device):
        """No GPU has to be opened."""

    @staticmethod
    def read(address, count):
        """Bytes, not copied."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))

    @staticmethod
    def write(address, data):
        """An array without gaps."""
        ctypes.memmove(address, data.ctypes.data, data.nbytes)

    @staticmethod
    def is_mapped(address):
        """Whether the kernel has a job's memory there."""
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            ranges = [line.split()[0].split("-") for line in maps if "memfd:awex" in line]
        return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)

    @staticmethod
    def take(count, kind):
        """Memory of the process's own, and what holds it: "shared" with others, "private", or shared page by page."""
        if kind == "shared":
            block = mmap.mmap(own_file(count), count, mmap.MAP_SHARED)
        else:
            block = mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if kind == "pages":
            map_pages(ctypes.addressof(ctypes.c_char.from_buffer(block)), own_file(count), count)
        return ctypes.addressof(ctypes.c_char.from_buffer(block)), block


class GpuMemory:
    """The same on a GPU, in its primary context, which an engine has before it attaches."""

    def __init__(self, device):
        self.lib = ctypes.CDLL("libcuda.so.1")
        gpu, context, uuid = ctypes.c_int(), ctypes.c_void_p(), (ctypes.c_uint8 * 16)()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(gpu), ctypes.c_int(device))
        self.call("cuDeviceGetUuid_v2", ctypes.byref(uuid), gpu)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu)
        self.call("cuCtxSetCurrent", context)
        self.uuid = bytes(uuid).hex().encode()

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        if status != 0:
            raise Failed(1, f"{name}: error {status} of CUDA's driver")

    def read(self, address, count):
        data = np.empty(count, np.uint8)
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
                  ctypes.c_size_t(count))
        return data

    def write(self, address, data):
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(data.ctypes.data),
                  ctypes.c_size_t(data.nbytes))
        self.call("cuCtxSynchronize")  # The copy may have returned before its bytes are there.

    def is_mapped(self, address):
        """Whether the driver has memory there: only then does it have a handle to give."""
        handle = ctypes.c_uint64()
        if self.lib.cuMemRetainAllocationHandle(ctypes.byref(handle), ctypes.c_void_p(address)) != 0:
            return False
        self.call("cuMemRelease", handle)
        return True


    def take(self, count, _kind):
        """Memory from cudaMalloc."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count))
        return address.value, None


BACKENDS = {"host": HostMemory, "cuda": GpuMemory}


def pattern(name, rank, rows, cols, dtype, seed):
    """What a tensor of a rank holds at a seed: bits that any dtype may have, and no NaN."""
    generator = np.random.default_rng([seed, rank] + list(name.encode()))
    kind = ELEMENTS[dtype]
    bits = generator.integers(0, np.iinfo(kind).max // 4, size=(rows, cols), dtype=kind)
    return bits


class Engine:
    def __init__(self, library):
        self.lib = ctypes.CDLL(library)
        self.lib.awex_error.restype = ctypes.c_char_p
        self.lib.awex_layout_size.restype = ctypes.c_uint64
        self.handle = ctypes.c_void_p()
        self.callbacks = {}
        self.events = []
        self.failing = set()
        self.delays = {}
        self.tensors = []
        self.addresses = {}  # Of tags, also once they are left.
        self.own = {}  # Addresses of weights that are the process's own, by name.
        self.blocks = []  # What holds them.
        self.moves = False

    def call(self, name, *arguments):
        status = getattr(self.lib, "awex_" + name)(*arguments)
        if status != 0:
            raise Failed(status, self.lib.awex_error().decode())

    def attach(self, job, role, device=0, name="player", bytes=(0, 0, 0), timeout=60.0, backend="host", own=None):
        """`own`: "stays" or "moves" for weights of its own."""
        self.moves = own == "moves"
        self.backing = BACKENDS[backend](device)
        options = Options(ctypes.sizeof(Options), job.encode() if job else None, ("trainer", "inference").index(role), name.encode(),
                          self.backing.uuid, device, (ctypes.c_uint64 * 3)(*bytes), timeout,
                          (None, "stays", "moves").index(own))
        self.call("attach", ctypes.byref(options), ctypes.byref(self.handle))
        place = Place()
        self.call("place", self.handle, ctypes.byref(place))
        if place.backend.decode() != backend:
            raise Failed(2, f"the job is one on {place.backend.decode()}, not on {backend}")
        self.addresses = {tag: address for tag in TAGS if (address := self.memory(tag)["address"])}
        for what in ("before_release", "after_resume", "weights_changed"):
            self.callbacks[what] = CALLBACK(self._callback(what))
            self.call(what, self.handle, self.callbacks[what], None)
        self.rank = place.role_rank
        self.layout = []
        for index in range(self.lib.awex_layout_size(self.handle)):
            tensor = Tensor()
            self.call("layout_tensor", self.handle, ctypes.c_uint64(index), ctypes.byref(tensor))
            self.layout.append(dict(name=tensor.name.decode(), dtype=tensor.dtype.decode(), rows=tensor.rows,
                                    cols=tensor.cols, offset=tensor.offset_bytes))
        return dict(rank=place.rank, role_rank=place.role_rank, reattached=place.reattached, version=place.version,
                    layout=place.layout.decode(), model=place.model.decode(), tensors=self.layout, kept=self.kept())

    def _callback(self, what):
        def called(_user, tag, version):
            self.events.append([what, TAGS[tag], version])
            time.sleep(self.delays.get(what + " " + TAGS[tag], 0))
            if what + " " + TAGS[tag] in self.failing:
                return 7
            if self.moves and TAGS[tag] == "weights":
                self.move(what)
            return 0
        return called

    def take_own(self, kind="shared", blocks=2):
        """Room for all of the layout's weights in memory of the process's own, in so many blocks; declares them."""
        self.tensors = self.layout
        self.blocks, self.own = [], {}
        size = sum(-(-self.size_of(one) // 512) * 512 for one in self.tensors)
        share = -(-size // blocks // 4096) * 4096
        begin = end = 0
        for one in self.tensors:
            room = -(-self.size_of(one) // 512) * 512
            if begin + room > end:
                begin, block = self.backing.take(max(share, room), kind)
                end = begin + max(share, room)
                self.blocks.append(block)
            self.own[one["name"]] = begin
            begin += room
        self.declare_own()

    def limit_open_files(self, most):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def declare_own(self):
        for one in self.tensors:
            tensor = Tensor(one["name"].encode(), one["dtype"].encode(), one["rows"], one["cols"], 0, 0)
            self.call("declare_own", self.handle, ctypes.byref(tensor), ctypes.c_void_p(self.own[one["name"]]))

    def move(self, what):
        """As an engine that offloads its weights itself."""
        if what == "before_release":
            self.away = {one["name"]: self.of(one).copy() for one in self.tensors}
            self.blocks, self.own = [], {}
        elif what == "after_resume":
            self.take_own(blocks=3)
            for one in self.tensors:
                self.set(one, self.away[one["name"]])

    @staticmethod
    def size_of(tensor):
        return tensor["rows"] * tensor["cols"] * np.dtype(ELEMENTS[tensor["dtype"]]).itemsize

    def book(self, what, count):
        self.call("book", self.handle, what.encode(), ctypes.c_uint64(count))

    def memory(self, tag="weights"):
        info = MemoryInfo()
        self.call("memory", self.handle, TAGS.index(tag), ctypes.byref(info))
        return dict(address=info.address, bytes=info.bytes, is_mapped=info.is_mapped)

    def read(self, tag, offset=0, count=None):
        """Bytes of a tag's memory, all from `offset` on unless told how many."""
        info = self.mapped(tag)
        return self.backing.read(info["address"] + offset, info["bytes"] - offset if count is None else count)

    def write_at(self, tag, offset, data):
        self.backing.write(self.mapped(tag)["address"] + offset, np.ascontiguousarray(data))

    def mapped(self, tag):
        info = self.memory(tag)
        if not info["is_mapped"]:
            raise Failed(1, f"{tag} is not mapped")
        return info

    def of(self, tensor):
        kind, count = ELEMENTS[tensor["dtype"]], self.size_of(tensor)
        if tensor["name"] in self.own:
            data = self.backing.read(self.own[tensor["name"]], count)
        else:
            data = self.read("weights", tensor["offset"], count)
        return data.view(kind).reshape(tensor["rows"], tensor["cols"])

    def set(self, tensor, bits):
        """`bits`: of all elements, or one for all."""
        bits = np.asarray(bits, dtype=ELEMENTS[tensor["dtype"]])
        shape = tensor["rows"], tensor["cols"]
        bits = bits.reshape(shape) if bits.ndim else np.broadcast_to(bits, shape)
        if tensor["name"] in self.own:
            self.backing.write(self.own[tensor["name"]], np.ascontiguousarray(bits))
        else:
            self.write_at("weights", tensor["offset"], bits)

    def declare(self, tensors=None, optimizer=()):
        """`tensors` in place of the layout's."""
        self.tensors = self.layout if tensors is None else tensors
        for tag, declared in ((0, self.tensors), (1, optimizer)):
            for one in declared:
                tensor = Tensor(one["name"].encode(), one["dtype"].encode(), one["rows"], one["cols"], one["offset"], tag)
                self.call("declare", self.handle, ctypes.byref(tensor))

    def seal(self, timeout=60.0):
        self.call("seal", self.handle, ctypes.c_double(timeout))

    def fill(self, seed):
        for tensor in self.tensors:
            self.set(tensor, pattern(tensor["name"], self.rank, tensor["rows"], tensor["cols"], tensor["dtype"], seed))

    def write(self, name, bits):
        self.set(next(one for one in self.tensors if one["name"] == name), bits)

    def load(self, path):
        """Weights from an .npz, by name; what it does not have stays."""
        with np.load(path) as arrays:
            for tensor in self.tensors:
                if tensor["name"] in arrays:
                    self.set(tensor, arrays[tensor["name"]])

    def save(self, path):
        np.savez(path, **{tensor["name"]: self.of(tensor) for tensor in self.tensors})

    def fill_tag(self, tag, seed):
        size = self.memory(tag)["bytes"]
        self.write_at(tag, 0, np.random.default_rng(seed).integers(0, 120, size=size, dtype=np.uint8))

    def sum_of(self, tag):
        return zlib.crc32(self.read(tag))

    def step(self, seed):
        """A training step that writes everything."""
        self.call("writing", self.handle)
        self.fill(seed)
        if self.memory("optimizer")["bytes"]:
            self.fill_tag("optimizer", seed)
        self.call("consistent", self.handle)

    def half_step(self, seed):
        """One that is never ended, half of it done."""
        self.call("writing", self.handle)
        for tensor in self.tensors[::2]:
            self.set(tensor, 0x1111 + seed)
        return True

    def hand_over(self, timeout=60.0):
        version = ctypes.c_uint64()
        self.call("hand_over", self.handle, ctypes.c_double(timeout), ctypes.byref(version))
        return version.value

    def take_back(self, timeout=60.0):
        self.call("take_back", self.handle, ctypes.c_double(timeout))

    def take_back_weights(self, timeout=60.0):
        self.call("take_back_weights", self.handle, ctypes.c_double(timeout))

    def wait(self, newer_than=0, timeout=60.0):
        version = ctypes.c_uint64()
        self.call("wait", self.handle, ctypes.c_uint64(newer_than), ctypes.c_double(timeout), ctypes.byref(version))
        return version.value

    def release(self, timeout=60.0):
        self.call("release", self.handle, ctypes.c_double(timeout))

    def ready(self, timeout=60.0):
        self.call("ready", self.handle, ctypes.c_double(timeout))

    def keep(self, text):
        self.call("keep", self.handle, text.encode(), ctypes.c_size_t(len(text)))

    def kept(self):
        data, count = ctypes.c_void_p(), ctypes.c_size_t()
        self.call("kept", self.handle, ctypes.byref(data), ctypes.byref(count))
        return ctypes.string_at(data.value, count.value).decode() if count.value else ""

    def differing(self, path):
        """Names of the tensors that are not what an .npz has."""
        with np.load(path) as arrays:
            return [tensor["name"] for tensor in self.tensors
                    if not np.array_equal(self.of(tensor).reshape(-1), arrays[tensor["name"]].reshape(-1))]

    def step_from(self, path):
        """A training step whose result is known."""
        self.call("writing", self.handle)
        self.load(path)
        self.call("consistent", self.handle)

    def train(self, path, step, pause=0.0):
        """The same in pieces, with pauses, also of the optimizer; what was kept tells which step the memory is of."""
        time.sleep(pause)
        self.call("writing", self.handle)
        with np.load(path) as arrays:
            for number, tensor in enumerate(self.tensors):
                self.set(tensor, arrays[tensor["name"]])
                if number % 32 == 0:
                    time.sleep(pause / 4)
        self.fill_tag("optimizer", step)
        self.keep(str(step))
        time.sleep(pause)
        self.call("consistent", self.handle)
        time.sleep(pause)
        return step

    def all_mapped(self):
        return all(info["is_mapped"] for info in map(self.memory, TAGS) if info["bytes"])

    def truly_mapped(self):
        """Tags that have memory at their addresses, whatever the library says; also after it was left."""
        return [tag for tag, address in self.addresses.items() if self.backing.is_mapped(address)]

    def delay(self, what, seconds):
        self.delays[what] = seconds

    def fail(self, what):
        self.failing = set(what)

    def restore(self):
        proven = ctypes.c_int32()
        self.call("restore", self.handle, ctypes.byref(proven))
        return proven.value

    def spoil(self, offset):
        """Writes into host memory that the rank has shared, by a descriptor that came from it."""
        links = {fd: os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
        copies = [int(fd) for fd, path in links.items() if os.path.basename(path).startswith("memfd:awex-copy")]
        for fd in copies:
            os.pwrite(fd, b"\xff\xee\xdd", offset)
        return bool(copies)

    def heard(self):
        events, self.events = self.events, []
        return events

    def detach(self):
        self.lib.awex_detach(self.handle)
        self.handle = ctypes.c_void_p()

    def resident_kb(self):
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    engine = Engine(parser.parse_args().library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(engine, request["do"])(*request["with"], **request["and"])
            answer = {"result": result}
        except Failed as error:
            answer = {"status": error.status, "error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
