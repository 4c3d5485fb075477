"""An engine, a trainer or an inference engine, that takes part in a resident job.

The job is `mpirun … awex-colocate serve --job DIR --attach trainer,inference`. Its ranks own the memory
that weights, optimizer state and KV cache lie in; attached engines use it in turns. Memory of a tag is
touched only while it is mapped: until the engine's next `hand_over`, `take_back`, `wait`, `release` or
`ready`, which are its consent. Nothing here needs PyTorch; `adopt`, `adopt_optimizer` and `empty` use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _library
from ._library import MOST_KEPT_BYTES, OWN_WEIGHTS, ROLES, TAGS
from .errors import AwexError, DeadlinePassed, EngineLost, Failed, Status, WrongRequest, error_of

if TYPE_CHECKING:
    import torch

__all__ = ["Engine", "Memory", "Place", "Tensor", "attach"]

#: Seconds that a call waits unless told otherwise.
PATIENCE_S = 600.0

#: Between tries of a call that needs an engine which is lost, the first time and in the end.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0

#: Bytes of an element, by the names that the job's reports have.
ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f8_e4m3": 1, "f8_e5m2": 1}

MemoryHook = Callable[[str, int], None]
VersionHook = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """Where an engine stands in its job."""

    rank: int  #: World rank of its rank.
    role_rank: int  #: Position among the ranks of its role.
    host: str
    model: str  #: Name of the job's model.
    layout: str  #: "megatron:tp=2": the role's layout, as the job prints it.
    backend: str  #: "cuda" or "host".
    reattached: bool  #: Whether the memory holds what a former engine left.
    version: int  #: Last committed version, 0 for none.


@dataclass(frozen=True)
class Tensor:
    """A tensor and its place. Vectors are a matrix of one row or one column, stacks of matrices have all
    their rows."""

    name: str
    dtype: str  #: "bf16", "f16", "f32", "f8_e4m3", "f8_e5m2"
    rows: int
    cols: int
    offset: int  #: Bytes from the start of its tag's memory.
    tag: str = "weights"

    @property
    def elements(self) -> int:
        return self.rows * self.cols

    @property
    def bytes(self) -> int:
        return self.elements * ELEMENT_BYTES[self.dtype]


def attach(
    role: str,
    job: str | os.PathLike[str] | None = None,
    *,
    device: str | int | torch.device | None = None,
    memory: Mapping[str, int] | None = None,
    own_weights: str | None = None,
    name: str = "",
    gpu_uuid: str | None = None,
    before_release: MemoryHook | None = None,
    after_resume: MemoryHook | None = None,
    weights_changed: VersionHook | None = None,
    timeout: float = PATIENCE_S,
    restart_timeout: float = 0.0,
) -> Engine:
    """Attaches this process to a job and returns its Engine.

    role: "trainer" or "inference". job: the DIR of `serve --job DIR`; None takes what AWEX_COLOCATE_JOB says,
    else the only job of this user on this host, and raises WrongRequest that names all where there are
    several. device: "cuda:1", or "host:1" (also
    "cpu:1") for a job without GPUs, where the number is the engine's position among those of its role on
    this host; None takes the current CUDA device where PyTorch has one, else the host at the position that
    LOCAL_RANK says. memory: bytes by tag ("weights", "optimizer", "kv_cache") that the engine needs; what
    is left out is none, for weights what the job's layout holds. own_weights: a trainer whose weights stay in
    memory that it has taken itself (`Engine.register`): "stays" where that stays on the GPU, "moves" where its
    hooks before_release and after_resume move it away and back; None for weights in the job's memory.
    name: what people know the engine by, at
    most 31 bytes. gpu_uuid: of the GPU, where PyTorch is not there to be asked. The hooks are those of the
    Engine's methods of the same name. timeout: seconds. restart_timeout: seconds, beyond their own timeout, for
    which `hand_over` and `take_back` wait for another engine of the job that is lost, and that somebody starts
    again; 0 raises EngineLost at once.

    Waits for the rank of this role and device, also where its job has not begun yet; a line on stderr tells
    so after 3 s. A trainer's memory is mapped then (see `Engine.place` for
    whether it holds anything), unless a trainer before this one died while its memory was handed over:
    call `take_back` before the first touch, which returns at once where all is mapped. Raises AwexError:
    WrongRequest for what does not fit the job, DeadlinePassed when the rank does not answer.
    """
    if not restart_timeout >= 0:
        raise WrongRequest(f"restart_timeout {restart_timeout!r} is no number of seconds")
    engine = Engine._attached(role, job, device, memory or {}, own_weights, name, gpu_uuid, timeout)
    engine._restart_timeout = restart_timeout
    for hook, method in (
        (before_release, engine.before_release),
        (after_resume, engine.after_resume),
        (weights_changed, engine.weights_changed),
    ):
        if hook is not None:
            method(hook)  # type: ignore[operator]
    return engine


class Memory:
    """A tag's memory in this process. As a context manager (CUDA alone) it makes PyTorch allocate here,
    what this thread makes inside of it: `with engine.memory("optimizer"): …`."""

    def __init__(self, engine: Engine, tag: str) -> None:
        self._engine = engine
        self.tag = tag
        self._pools: list[Any] = []

    @property
    def address(self) -> int:
        """Fixed while the engine is attached; 0 where it has no such memory."""
        self._engine._used.add(self.tag)
        return self._engine._memory_info(self.tag).address or 0

    @property
    def bytes(self) -> int:
        return int(self._engine._memory_info(self.tag).bytes)

    @property
    def is_mapped(self) -> bool:
        """Whether it may be touched."""
        return bool(self._engine._memory_info(self.tag).is_mapped)

    def map_placeholder(self) -> None:
        """Inference, before `Engine.seal`: where the memory is not there yet, makes its addresses such as
        can be computed with, over one chunk's memory (1 GiB at the most) again and again: what is written at
        one place is read at others. For engines that capture CUDA graphs over a KV cache while they start; it
        goes in `seal`. Raises WrongRequest for a trainer, after `seal`, and where the engine has no such
        memory."""
        self._engine._call("awex_map_placeholder", TAGS.index(self.tag))

    def view(self) -> memoryview:
        """All of it as bytes, on `host` alone, not copied. Touch it while it is mapped."""
        if self._engine.place.backend != "host":
            raise WrongRequest("GPU memory has no view on the host", "use awex_colocate.torch")
        self._engine._used.add(self.tag)
        info = self._engine._memory_info(self.tag)
        if not info.bytes:
            return memoryview(b"")
        return memoryview((ctypes.c_uint8 * info.bytes).from_address(info.address)).cast("B")

    def alloc(self, count: int) -> int:
        """The address of `count` bytes of it, 512-byte aligned. Not to be mixed with offsets of one's own
        in `Engine.declare`, nor, in one tag, what was allocated before it was first mapped (a KV cache)
        with PyTorch's pools. Raises WrongRequest when its bytes are used up."""
        engine = self._engine
        engine._used.add(self.tag)
        if self.tag in engine._placed_ahead or not self.is_mapped:
            return self._alloc_ahead(count)
        engine._call("awex_use", TAGS.index(self.tag))
        address = engine._lib.awex_alloc(count, engine.device_index, None)
        if not address:
            raise self._used_up(count, engine._error_text())
        return int(address)

    def _alloc_ahead(self, count: int) -> int:
        """The library gives out memory that is mapped; addresses are known before."""
        begin = self._engine._placed_ahead.get(self.tag, 0)
        if begin + count > self.bytes:
            raise self._used_up(count, "")
        self._engine._placed_ahead[self.tag] = -(-(begin + count) // 512) * 512
        return self.address + begin

    def _used_up(self, count: int, text: str) -> AwexError:
        if text:
            return error_of(Status.WRONG_REQUEST, text)
        has = f"{self.bytes} bytes of it were asked for, which do not suffice" if self.bytes else "none was asked for"
        return WrongRequest(
            f"no room for {count} bytes in the {self.tag} memory: {has}",
            f"ask for more: attach(…, memory={{'{self.tag}': bytes}})",
        )

    def free(self, address: int, count: int) -> None:
        """Gives back what `alloc` returned."""
        if self.tag not in self._engine._placed_ahead:
            self._engine._lib.awex_free(address, count, self._engine.device_index, None)

    def __enter__(self) -> Memory:
        from . import torch as support

        self._engine._used.add(self.tag)
        pool = support.memory_pool(self._engine, self.tag)
        pool.__enter__()
        self._pools.append(pool)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pools.pop().__exit__(kind, error, trace)


class Engine:
    """An attached engine; `attach` makes it. Its calls come from one thread at a time. Those that wait
    take `timeout` in seconds, and raise DeadlinePassed when it is over, EngineLost when the rank or the job is
    gone (see `attach` for restart_timeout); they first wait for what PyTorch has queued on the GPU. An exception in a hook fails the job's
    command and is raised by the call."""

    def __init__(self) -> None:
        raise TypeError("use awex_colocate.attach(role, job)")

    @classmethod
    def _attached(
        cls,
        role: str,
        job: str | os.PathLike[str] | None,
        device: str | int | torch.device | None,
        memory: Mapping[str, int],
        own_weights: str | None,
        name: str,
        gpu_uuid: str | None,
        timeout: float,
    ) -> Engine:
        if role not in ROLES:
            raise WrongRequest(f"role {role!r} is not one of {', '.join(ROLES)}")
        if unknown := [tag for tag in memory if tag not in TAGS]:
            raise WrongRequest(f"memory {unknown[0]!r} is not one of {', '.join(TAGS)}")
        if own_weights not in OWN_WEIGHTS:
            raise WrongRequest(f"own_weights {own_weights!r} is not one of None, 'stays', 'moves'")
        kind, index = _device(device, gpu_uuid)
        if kind == "cuda" and gpu_uuid is None:
            gpu_uuid = _uuid_of(index)
        name = name or _default_name(role)
        if len(name.encode()) > 31:
            raise WrongRequest(f"the name {name!r} has more than 31 bytes", "shorten name=")
        options = _library.AttachOptions(
            struct_size=ctypes.sizeof(_library.AttachOptions),
            job=os.fsencode(job) if job is not None else None,
            role=ROLES.index(role),
            name=name.encode(),
            gpu_uuid=gpu_uuid.encode() if gpu_uuid else None,
            device=index,
            timeout_s=timeout,
            own_weights=OWN_WEIGHTS.index(own_weights),
        )
        for tag, count in memory.items():
            options.bytes[TAGS.index(tag)] = count
        self = object.__new__(cls)
        self._lib = _library.library()
        handle = ctypes.c_void_p()
        status = self._lib.awex_attach(ctypes.byref(options), ctypes.byref(handle))
        if status:
            raise error_of(status, self._error_text())
        self._handle: ctypes.c_void_p | None = handle
        self.role = role
        self.name = name
        self.device_index = index
        self.own_weights = own_weights
        self._served = 0
        self._restart_timeout = 0.0
        self._hooks: dict[str, list[Callable[..., None]]] = {}
        self._c_callbacks: dict[str, Any] = {}
        self._hook_error: BaseException | None = None
        #: Run before each consent: they raise when what was declared is so no longer.
        self._checks: list[Callable[[], None]] = []
        #: Run when it has left: what would touch its memory later.
        self._when_closed: list[Callable[[], None]] = []
        self._used: set[str] = set()  # Tags whose memory somebody has asked for.
        self._placed_ahead: dict[str, int] = {}  # Bytes used of tags that were not mapped then.
        self._support: dict[str, Any] = {}  # What awex_colocate.torch keeps for this engine.
        self._place = self._ask_place()
        self._layout: tuple[Tensor, ...] | None = None
        return self

    # Where it is

    @property
    def place(self) -> Place:
        """Where it stood in the job when it attached."""
        return self._place

    @property
    def version(self) -> int:
        """The version that it last served or handed over, 0 for none since it attached."""
        return self._served

    def layout(self) -> tuple[Tensor, ...]:
        """What the rank's layout holds, in its order: every tensor of weights that must be declared, each
        with a place where it may lie."""
        if self._layout is None:
            count = self._lib.awex_layout_size(self._alive())
            self._layout = tuple(self._layout_tensor(index) for index in range(count))
        return self._layout

    def memory(self, tag: str) -> Memory:
        """A tag's memory here."""
        if tag not in TAGS:
            raise WrongRequest(f"memory {tag!r} is not one of {', '.join(TAGS)}")
        return Memory(self, tag)

    # Declaring

    def declare(
        self, name: str, dtype: str, rows: int, cols: int, offset: int, tag: str = "weights"
    ) -> None:
        """Says where a tensor lies: `offset` bytes into the tag's memory, a multiple of its element. For
        weights the name is the layout's; all of the layout's must be declared before `seal`. Of optimizer
        state what is declared is proven over an offload, what is not is moved all the same."""
        tensor = _library.CTensor(
            name.encode(), dtype.encode(), rows, cols, offset, TAGS.index(tag)
        )
        self._used.add(tag)
        self._call("awex_declare", ctypes.byref(tensor))

    def declare_own(self, name: str, dtype: str, rows: int, cols: int, address: int) -> None:
        """Says at which address a tensor of weights lies that is in this process's own memory (attached with
        `own_weights`). Raises WrongRequest, with the remedy, for memory that no other process can map. The memory
        stays what it is from then on, or until the hook before_release where it moves; the hook after_resume
        declares all tensors again where they lie elsewhere."""
        tensor = _library.CTensor(name.encode(), dtype.encode(), rows, cols, 0, TAGS.index("weights"))
        self._call("awex_declare_own", ctypes.byref(tensor), address)

    def book(self, what: str, count: int) -> None:
        """Tells that `count` bytes of the GPU are this engine's own, for `what` ("CUDA graphs", "NCCL"), so that
        `awex-colocate status` knows whose they are. Again under the same name replaces it."""
        self._call("awex_book", what.encode(), count)

    def seal(self, timeout: float = PATIENCE_S) -> None:
        """Ends the declaration. Raises WrongRequest that names what is missing, unknown or of another shape,
        and the likely cause; declare it again and seal again then. Inference that is admitted by digest has
        its loaded weights in place by now."""
        self._check()
        self._tell_of_unused()
        self._synchronize()
        self._call("awex_seal", timeout)

    def _tell_of_unused(self) -> None:
        if self.role != "trainer" or "optimizer" in self._used:
            return
        if count := self.memory("optimizer").bytes:
            warnings.warn(
                f"{count} bytes of optimizer memory are there, and nothing was put into them: an optimizer whose state "
                "was not moved (engine.adopt_optimizer) stays on the GPU, and is lost with this process",
                RuntimeWarning,
                stacklevel=3,
            )

    def adopt(
        self, module: torch.nn.Module, *, copy: bool | None = None, skip: Sequence[str] = ()
    ) -> None:
        """Moves the module's parameters and buffers that the layout names into the job's memory, and
        declares them: plain modules, Transformers models, vLLM's, FSDP2's; for Megatron-core see
        awex_colocate.megatron. See awex_colocate.torch.adopt for arguments and errors."""
        from . import torch as support

        support.adopt(self, module, copy=copy, skip=skip)

    def register(self, module: torch.nn.Module, *, skip: Sequence[str] = ()) -> None:
        """Declares the module's parameters and buffers that the layout names where PyTorch has them, in place of
        moving them (attached with `own_weights`): see awex_colocate.torch.register for errors. Megatron-core's:
        awex_colocate.megatron.register."""
        from . import torch as support

        support.register(self, module, skip=skip)

    def adopt_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves an optimizer's state into the job's memory, and declares it: see
        awex_colocate.torch.adopt_optimizer."""
        from . import torch as support

        support.adopt_optimizer(self, optimizer)

    def empty(self, tag: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor in a tag's memory, its content undefined: see awex_colocate.torch.empty."""
        from . import torch as support

        return support.empty(self, tag, shape, dtype)

    # Taking part

    def hand_over(self, timeout: float = PATIENCE_S, *, keep: bytes | None = None) -> int:
        """A trainer: gives its weights to inference as a version, and its memory with them. Returns the
        version's number when all ranks have committed it; none of the memory is mapped then. On failure
        nothing is lost, and another hand_over may follow. `keep`: see the method."""
        self._settle()
        if keep is not None:
            self.keep(keep)
        version = ctypes.c_uint64()
        self._consent_with_others("awex_hand_over", timeout, ctypes.byref(version))
        self._served = version.value
        return self._served

    def take_back(self, timeout: float = PATIENCE_S, *, optimizer: bool = True) -> None:
        """A trainer: returns when all of its memory is mapped again, with its bytes; at once where it is.

        With `optimizer=False` its weights alone, which is what forward and backward need: the optimizer's state
        stays in host memory, and the GPU has its room for activations, until another `take_back` before the
        optimizer's step. All trainers of a job do the same."""
        self._settle()
        function = "awex_take_back" if optimizer else "awex_take_back_weights"
        self._consent_with_others(function, timeout)

    def wait(self, newer_than: int | None = None, timeout: float = PATIENCE_S) -> int:
        """Inference: gives its memory to whoever needs it, and returns the version that it serves then,
        newer than `newer_than` (what it served last): weights and KV cache are mapped, the KV cache with
        undefined content."""
        self._settle()
        version = ctypes.c_uint64()
        newer_than = self._served if newer_than is None else newer_than
        self._consent("awex_wait", newer_than, timeout, ctypes.byref(version))
        self._served = version.value
        return self._served

    def release(self, timeout: float = PATIENCE_S) -> None:
        """Inference: gives its memory up; returns when a take-back of the job has taken it, at once where
        none is mapped or no command takes it (`serve --no-offload`)."""
        self._settle()
        self._consent("awex_release", timeout)

    def ready(self, timeout: float = PATIENCE_S) -> None:
        """Either: consents to one command of the job, whichever comes, and returns when it is over."""
        self._settle()
        self._consent("awex_ready", timeout)

    def restore(self) -> bool:
        """A trainer whose rank, or job, is lost (EngineLost): brings back, to the same addresses, what was away at
        that time, or on its way, from the host memory that the rank had shared. All is then as it was handed over:
        save it, `close()`, and attach to another job. Returns whether all that came back was proven by the digests
        that were taken on its way out. Raises Mismatch where bytes differ (start from a checkpoint), Failed where
        the GPU has no room (it may be called again), WrongRequest while the rank is there, or where another engine
        has had this one's place since."""
        proven = ctypes.c_int32()
        self._consent("awex_restore", ctypes.byref(proven))
        return bool(proven.value)

    def check(self) -> None:
        """Raises EngineLost where the job is gone. Does not wait: for loops that wait for something else, a queue
        of rollouts say, and would not hear of a loss."""
        self._call("awex_check")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A trainer, around what writes its weights and optimizer state:

            with engine.writing():
                optimizer.step()

        Counts as a training step, by which the job knows whether weights are still those that were handed over:
        use it for all steps, or for none. If the process dies inside, the memory counts as torn, and the next
        engine gets that of the last hand-over. Where an exception has left it, calls that consent are refused
        (WrongRequest) until another step is whole."""
        self._call("awex_writing")
        yield
        self._synchronize()
        self._call("awex_consistent")

    def keep(self, blob: bytes) -> None:
        """A trainer: up to 16 MiB of its own (random state, place in the data) that the rank keeps from now on with
        what the memory holds, for the next engine in its place; one that returns to the last hand-over gets what
        was kept by then."""
        if not isinstance(blob, bytes):
            raise TypeError(f"keep takes bytes, not {type(blob).__name__}")
        if len(blob) > MOST_KEPT_BYTES:
            raise WrongRequest(
                f"{len(blob)} bytes to be kept are more than {MOST_KEPT_BYTES}", "keep less"
            )
        self._call("awex_keep", blob, len(blob))

    def kept(self) -> bytes:
        """What was kept with the state that the memory holds, b"" for nothing."""
        start, count = ctypes.c_void_p(), ctypes.c_size_t()
        self._call("awex_kept", ctypes.byref(start), ctypes.byref(count))
        return ctypes.string_at(start, count.value) if count.value else b""

    # Hooks

    def before_release(self, hook: MemoryHook) -> MemoryHook:
        """Adds `hook(tag, version)`, called before a tag's memory goes: nothing queued may use it on
        return. Also a decorator."""
        return self._add_hook("awex_before_release", hook)

    def after_resume(self, hook: MemoryHook) -> MemoryHook:
        """Adds `hook(tag, version)`, called when a tag's memory is mapped again: a trainer's with its bytes,
        inference's with none yet. Also a decorator."""
        return self._add_hook("awex_after_resume", hook)

    def weights_changed(self, hook: VersionHook) -> VersionHook:
        """Adds `hook(version)`, called when inference's weights are those of a new version: what was derived
        from older ones (a prefix cache) is void. Also a decorator."""
        return self._add_hook("awex_weights_changed", hook)

    # Leaving

    def close(self) -> None:
        """Leaves the job. The memory stays with the rank, for the next engine that attaches in its place,
        and is no longer mapped here: no tensor in it may be touched."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._synchronize()
            for work in self._when_closed:
                work()
            self._lib.awex_detach(handle)
            self._checks.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<awex_colocate.Engine {self.name}: closed>"
        place = self._place
        return (
            f"<awex_colocate.Engine {self.name}: {self.role} {place.role_rank} of rank {place.rank}, "
            f"{place.layout} of {place.model} on {place.backend}>"
        )

    # Within

    def _alive(self) -> ctypes.c_void_p:
        if self._handle is None:
            raise WrongRequest(f"the engine {self.name} is closed", "attach again")
        return self._handle

    def _error_text(self) -> str:
        return (self._lib.awex_error() or b"").decode(errors="replace")

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lib, function)(self._alive(), *arguments)
        if status:
            raise error_of(status, self._error_text())

    def _consent(self, function: str, *arguments: Any) -> None:
        self._hook_error = None
        try:
            self._call(function, *arguments)
        except AwexError as error:
            hook_error, self._hook_error = self._hook_error, None
            if hook_error is not None and not isinstance(hook_error, Exception):
                raise hook_error from error
            raise error from hook_error
        if self._hook_error is not None:  # The job went on without this command.
            hook_error, self._hook_error = self._hook_error, None
            raise Failed(f"a hook failed: {hook_error!r}") from hook_error

    def _consent_with_others(self, function: str, *arguments: Any) -> None:
        """Again while another engine is lost, or is slow to begin in its place, for as long as that may take: the
        next try goes on from whatever the failed one has left."""
        give_up: float | None = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                return self._consent(function, *arguments)
            except (EngineLost, DeadlinePassed) as error:
                if give_up is None and isinstance(error, EngineLost):
                    give_up = time.monotonic() + self._restart_timeout
                if give_up is None or time.monotonic() >= give_up:
                    raise
                self.check()  # Raises where it is the job that is gone.
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _settle(self) -> None:
        self._check()
        self._synchronize()
        self._give_caches_back()

    def _check(self) -> None:
        for check in self._checks:
            check()

    def _synchronize(self) -> None:
        """Waits for what PyTorch has queued on the engine's GPU."""
        torch = sys.modules.get("torch")
        if self._place.backend == "cuda" and torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize(self.device_index)

    def _give_caches_back(self) -> None:
        """What PyTorch's own allocator keeps for later (freed gradients, copies that were adopted from) would
        be missing to the engine whose turn it is."""
        torch = sys.modules.get("torch")
        if self._place.backend == "cuda" and torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _ask_place(self) -> Place:
        raw = _library.PlaceInJob()
        self._call("awex_place", ctypes.byref(raw))
        return Place(
            raw.rank,
            raw.role_rank,
            *(text.decode() for text in (raw.host, raw.model, raw.layout, raw.backend)),
            bool(raw.reattached),
            raw.version,
        )

    def _layout_tensor(self, index: int) -> Tensor:
        raw = _library.CTensor()
        self._call("awex_layout_tensor", index, ctypes.byref(raw))
        return Tensor(
            raw.name.decode(), raw.dtype.decode(), raw.rows, raw.cols, raw.offset_bytes, TAGS[raw.tag]
        )

    def _memory_info(self, tag: str) -> _library.MemoryInfo:
        info = _library.MemoryInfo()
        self._call("awex_memory", TAGS.index(tag), ctypes.byref(info))
        return info

    def _add_hook(self, function: str, hook: Any) -> Any:
        hooks = self._hooks.setdefault(function, [])
        if not hooks:
            self._install(function, hooks)
        hooks.append(hook)
        return hook

    def _install(self, function: str, hooks: list[Callable[..., None]]) -> None:
        about_tag = function != "awex_weights_changed"

        def called(_user: int | None, tag: int, version: int) -> int:
            try:
                for hook in hooks:
                    if about_tag:
                        hook(TAGS[tag], version)
                    else:
                        hook(version)
                if function == "awex_before_release":
                    self._synchronize()
                    if self.own_weights == "moves":  # What the hook has freed.
                        self._give_caches_back()
                return 0
            except BaseException as error:  # noqa: BLE001: nothing may pass through C
                self._hook_error = error
                return 1

        callback = _library.Callback(called)
        self._c_callbacks[function] = callback  # Lives as long as C may call it.
        self._call(function, callback, None)


def _default_name(role: str) -> str:
    torch = sys.modules.get("torch")
    return f"pytorch {torch.__version__.split('+')[0]}" if torch else f"python {role}"


def _device(device: Any, gpu_uuid: str | None) -> tuple[str, int]:
    """"cuda" or "host", and the index."""
    if device is None:
        if gpu_uuid is not None:
            return "cuda", 0
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            return "cuda", int(torch.cuda.current_device())
        return "host", int(os.environ.get("LOCAL_RANK", 0))
    if isinstance(device, int):
        torch = sys.modules.get("torch")
        has_gpu = gpu_uuid is not None or (torch is not None and torch.cuda.is_available())
        return ("cuda" if has_gpu else "host"), device
    kind, _, index = str(device).partition(":")
    kind = "host" if kind == "cpu" else kind
    if kind not in ("cuda", "host") or (index and not index.isdecimal()):
        raise WrongRequest(f"device {str(device)!r} is none", "say cuda:N, or host:N without a GPU")
    if index:
        return kind, int(index)
    if kind == "host":
        return kind, int(os.environ.get("LOCAL_RANK", 0))
    return kind, 0 if gpu_uuid is not None else _current_cuda_device()


def _current_cuda_device() -> int:
    return int(_torch_for_cuda().cuda.current_device())


def _uuid_of(index: int) -> str:
    """"GPU-8f3c…" of a CUDA device of this process."""
    uuid = str(_torch_for_cuda().cuda.get_device_properties(index).uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"


def _torch_for_cuda() -> Any:
    try:
        import torch
    except ImportError as error:
        raise WrongRequest(f"PyTorch is not there to ask about the GPU: {error}", "say gpu_uuid=") from None
    if not torch.cuda.is_available():
        raise WrongRequest("PyTorch finds no GPU here", "check CUDA_VISIBLE_DEVICES, or say device='host'")
    return torch
