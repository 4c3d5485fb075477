"""An engine without a job, for tests of what moves tensors: memory of its own, a layout as the test says."""

import mmap

from awex_colocate._library import TAGS
from awex_colocate.engine import Engine, Place, Tensor


class FakeLibrary:
    """The calls that moving tensors makes."""

    def __init__(self, sizes):
        self.memory = {tag: mmap.mmap(-1, max(sizes.get(tag, 0), 4096)) for tag in TAGS}
        self.sizes = {tag: sizes.get(tag, 0) for tag in TAGS}
        self.used = dict.fromkeys(TAGS, 0)
        self.tag = TAGS[0]
        self.declared = {}
        self.lent = {}  # Declared at an address, by name.
        self.is_mapped = True

    def address(self, tag):
        import ctypes

        return ctypes.addressof(ctypes.c_uint8.from_buffer(self.memory[tag]))

    def awex_memory(self, _, tag, info):
        info._obj.address = self.address(TAGS[tag])
        info._obj.bytes = self.sizes[TAGS[tag]]
        info._obj.is_mapped = self.is_mapped
        return 0

    def awex_use(self, _, tag):
        self.tag = TAGS[tag]
        return 0

    def awex_alloc(self, count, device, stream):
        begin = self.used[self.tag]
        if begin + count > self.sizes[self.tag]:
            return None
        self.used[self.tag] = -(-(begin + count) // 512) * 512
        return self.address(self.tag) + begin

    def awex_declare(self, _, tensor):
        t = tensor._obj
        self.declared[t.name.decode()] = (t.dtype.decode(), t.rows, t.cols, t.offset_bytes, TAGS[t.tag])
        return 0

    def awex_declare_own(self, _, tensor, address):
        t = tensor._obj
        self.lent[t.name.decode()] = (t.dtype.decode(), t.rows, t.cols, address)
        return 0

    def awex_seal(self, _, timeout):
        return 0

    def awex_error(self):
        return b""


def make(layout, reattached=False, own=None, **sizes):
    """An Engine of `layout`: (name, dtype, rows, cols) each, placed one behind the other; with `own` its weights are
    its own."""
    tensors, end = [], 0
    for name, dtype, rows, cols in layout:
        tensors.append(Tensor(name, dtype, rows, cols, end))
        end = -(-(end + tensors[-1].bytes) // 256) * 256
    sizes.setdefault("weights", end)
    engine = object.__new__(Engine)
    engine._lib = FakeLibrary(sizes)
    engine._handle = 1
    engine.role, engine.name, engine.device_index, engine.own_weights = "trainer", "fake", 0, own
    engine._served, engine._hooks, engine._c_callbacks, engine._hook_error = 0, {}, {}, None
    engine._used = set()
    engine._checks, engine._support, engine._placed_ahead, engine._when_closed = [], {}, {}, []
    engine._place = Place(0, 0, "here", "model", "hf", "host", reattached, 0)
    engine._layout = tuple(tensors)
    return engine
