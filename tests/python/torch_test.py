"""Moving tensors of modules and optimizers into a job's memory: what follows, what is refused.
Skipped (77) where PyTorch is not there: torch_test.py [AWEX-COLOCATE [TEST...]], with the program a real job, too."""

import contextlib
import copy
import gc
import os
import sys
import tempfile
import types
import unittest
import warnings
from pathlib import Path
from typing import Generic, TypeVar
from unittest import mock

try:
    import torch
except ImportError:
    print("no PyTorch here")
    sys.exit(77)

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "engines"), str(TESTS / "attach")]
import attached_job
import fake_engine
from plugins_test import Factory, module

import awex_colocate
import awex_colocate.torch as support
import awex_colocate.vllm as vllm
from awex_colocate import WrongRequest
from awex_colocate._tensors import DTYPE_NAMES, all_that_look_into

nn = torch.nn
One, Other = TypeVar("One"), TypeVar("Other")


class Small(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.register_buffer("scale", torch.ones(6))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)) * self.scale)


LAYOUT = [("embed.weight", "f32", 11, 6), ("norm.weight", "f32", 6, 1), ("head.weight", "f32", 11, 6)]


def inside(engine, tensor, tag="weights"):
    begin = engine.memory(tag).address
    return begin <= tensor.data_ptr() < begin + engine.memory(tag).bytes


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, 11, (4, 5), generator=generator)
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Adopt(unittest.TestCase):
    def refused(self, engine, module, *words, **options):
        before = {name: p.data_ptr() for name, p in module.named_parameters()}
        with self.assertRaises(WrongRequest) as caught:
            support.adopt(engine, module, **options)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertEqual(before, {name: p.data_ptr() for name, p in module.named_parameters()})
        self.assertEqual(engine._lib.declared, {})

    def test_a_module_moves_and_computes_the_same(self):
        torch.manual_seed(1)
        model = Small()
        tokens = torch.arange(11)
        want = model(tokens)
        objects = {name: id(p) for name, p in model.named_parameters()}
        engine = fake_engine.make(LAYOUT)
        support.adopt(engine, model)
        self.assertTrue(torch.equal(model(tokens), want))
        self.assertEqual(objects, {name: id(p) for name, p in model.named_parameters()})
        for place in engine.layout():
            tensor = model.get_parameter(place.name)
            self.assertEqual(tensor.data_ptr(), engine.memory("weights").address + place.offset)
            self.assertEqual(
                engine._lib.declared[place.name],
                (place.dtype, place.rows, place.cols, place.offset, "weights"),
            )

    def test_buffers_that_the_layout_names_move(self):
        model = Small()
        engine = fake_engine.make([*LAYOUT, ("scale", "f32", 1, 6)])
        support.adopt(engine, model)
        self.assertTrue(inside(engine, model.scale))

    def test_tied_tensors_stay_tied(self):
        model = Small(tied=True)
        engine = fake_engine.make(LAYOUT[:2])
        support.adopt(engine, model)
        self.assertIs(model.head.weight, model.embed.weight)
        self.assertTrue(inside(engine, model.head.weight))

    def test_ties_of_two_objects_stay_tied(self):
        model = Small()
        model.head.weight = nn.Parameter(model.embed.weight.data)
        engine = fake_engine.make(LAYOUT[:2])
        support.adopt(engine, model)
        self.assertEqual(model.head.weight.data_ptr(), model.embed.weight.data_ptr())

    def test_ties_that_the_layout_does_not_know_are_refused(self):
        self.refused(fake_engine.make(LAYOUT), Small(tied=True), "head.weight", "are one tensor here")

    def test_a_meta_module_gets_what_a_former_engine_left(self):
        first = Small()
        engine = fake_engine.make(LAYOUT)
        support.adopt(engine, first)
        with torch.device("meta"):
            second = Small(tied=False)
        second.scale = torch.ones(6)
        again = fake_engine.make(LAYOUT, reattached=True)
        again._lib.memory = engine._lib.memory
        support.adopt(again, second)
        self.assertTrue(torch.equal(second(torch.arange(3)), first(torch.arange(3))))
        self.assertTrue(all(p.requires_grad for p in second.parameters()))

    def test_a_tied_meta_module_stays_tied(self):
        with torch.device("meta"):
            model = Small(tied=True)
        support.adopt(fake_engine.make(LAYOUT[:2], reattached=True), model)
        self.assertIs(model.head.weight, model.embed.weight)

    def test_what_differs_is_named(self):
        engine = fake_engine.make(
            [("embed.weight", "bf16", 11, 6), ("norm.weight", "f32", 7, 1), ("other", "f32", 2, 2)]
        )
        self.refused(
            engine,
            Small(),
            "embed.weight is f32 here, bf16 in the layout",
            "norm.weight is f32 [6] here, f32 [7, 1]",
            "other is missing",
            "head.weight [11, 6] is not in the layout",
        )

    def test_a_model_of_another_dtype_is_refused_with_what_to_load(self):
        layout = [(name, "bf16", rows, cols) for name, _, rows, cols in LAYOUT]
        engine = fake_engine.make(layout)
        self.refused(engine, Small(), "norm.weight is f32 here, bf16 in the layout", "hint: load the model in the dtype")
        engine.role = "inference"
        self.refused(engine, Small(), "dtype of the job's --model, or name its own in --inference (dtype=")

    def test_a_part_of_the_model_is_refused_with_what_its_names_lack(self):
        whole = nn.Module()
        whole.model = nn.ModuleList([Small() for _ in range(5)])
        layout = [(name, "f32", *(*p.shape, 1)[:2]) for name, p in whole.named_parameters()]
        self.refused(
            fake_engine.make(layout),
            whole.model,
            "model.0.embed.weight is missing; 0.embed.weight [11, 6] is not in the layout; ",
            "and 22 more",
            "adopt the whole model: the names of this part of it lack 'model.'",
        )

    def test_a_transposed_matrix_is_refused(self):
        layout = [("embed.weight", "f32", 6, 11), *LAYOUT[1:]]
        self.refused(fake_engine.make(layout), Small(), "embed.weight is f32 [11, 6] here")

    def test_stacks_of_matrices_fit_by_all_their_rows(self):
        model = nn.Module()
        model.experts = nn.Parameter(torch.randn(3, 4, 5))
        engine = fake_engine.make([("experts", "f32", 12, 5)])
        support.adopt(engine, model)
        self.assertEqual(tuple(model.experts.shape), (3, 4, 5))

    def test_skipped_parameters_stay(self):
        engine = fake_engine.make(LAYOUT[:2])
        model = Small()
        support.adopt(engine, model, skip=["head.weight"])
        self.assertFalse(inside(engine, model.head.weight))

    def test_parameters_of_the_layout_cannot_be_skipped(self):
        self.refused(fake_engine.make(LAYOUT), Small(), "skip names head.weight, which", skip=["head.weight"])

    def test_empty_parameters_are_refused(self):
        model = Small()
        model.head.weight = nn.Parameter(torch.empty(0))
        self.refused(fake_engine.make(LAYOUT), model, "head.weight is empty", "packing")

    def test_strided_parameters_are_refused(self):
        model = Small()
        model.head.weight = nn.Parameter(torch.randn(6, 11).t())
        self.refused(fake_engine.make(LAYOUT), model, "head.weight is not contiguous")

    def test_parts_of_a_flat_buffer_are_refused(self):
        model = Small()
        flat = torch.randn(66)
        model.head.weight = nn.Parameter(flat.view(11, 6))
        model.register_buffer("flat", flat[3:40])
        self.refused(fake_engine.make(LAYOUT), model, "lies within the memory of", "head.weight", "flat")

    def test_lora_is_refused(self):
        model = Small()
        model.head.lora_A = nn.Linear(6, 2, bias=False)
        self.refused(fake_engine.make(LAYOUT), model, "head.lora_A.weight", "merge")

    def test_a_wrapper_is_refused_with_what_to_adopt(self):
        wrapper = nn.Module()
        wrapper.module = Small()
        self.refused(fake_engine.make(LAYOUT), wrapper, "model.module")

    def test_compiled_modules_have_their_own_names(self):
        wrapper = nn.Module()
        wrapper._orig_mod = Small()
        engine = fake_engine.make(LAYOUT)
        support.adopt(engine, wrapper)
        self.assertEqual(len(engine._lib.declared), 3)

    def test_a_copy_into_memory_that_is_not_mapped_is_refused(self):
        engine = fake_engine.make(LAYOUT)
        engine._lib.is_mapped = False
        self.refused(engine, Small(), "not mapped", copy=True)

    def test_tensors_that_leave_are_found(self):
        for leave in (
            lambda m: m.head.weight.__setattr__("data", m.head.weight.data.clone()),
            lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight.data.clone())),
            lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
        ):
            model, engine = Small(), fake_engine.make(LAYOUT)
            support.adopt(engine, model)
            engine._check()
            leave(model)
            with self.assertRaisesRegex(WrongRequest, r"\.weight has left the job's memory"):
                engine._check()


class Register(unittest.TestCase):
    """Weights stay where they are."""

    def test_a_module_is_declared_where_it_is(self):
        model = Small().share_memory()
        before = {name: p.data_ptr() for name, p in model.named_parameters()}
        engine = fake_engine.make(LAYOUT, own="stays")
        support.register(engine, model)
        self.assertEqual({name: lent[-1] for name, lent in engine._lib.lent.items()}, before)
        self.assertEqual([(name, *lent[:-1]) for name, lent in engine._lib.lent.items()], LAYOUT)
        self.assertEqual(before, {name: p.data_ptr() for name, p in model.named_parameters()})
        self.assertTrue(all(p.is_shared() for p in model.parameters()))
        self.assertEqual(engine._lib.declared, {})
        engine._check()

    def test_tied_tensors_are_declared_once(self):
        for model in (Small(tied=True), Small()):
            model.head.weight.data = model.embed.weight.data
            model.share_memory()
            engine = fake_engine.make(LAYOUT[:2], own="stays")
            support.register(engine, model)
            self.assertEqual(engine._lib.lent["embed.weight"][-1], model.head.weight.data_ptr())
            engine._check()
            model.head.weight = nn.Parameter(model.head.weight.data.clone())  # Its tie is cut.
            with self.assertRaisesRegex(WrongRequest, "embed.weight has left"):
                engine._check()

    def test_the_optimizers_state_is_the_jobs(self):
        model = Small()
        optimizer = torch.optim.AdamW(model.parameters())
        size = support.optimizer_bytes(optimizer, model)
        engine = fake_engine.make(LAYOUT, optimizer=size, own="stays")
        support.register(engine, model)
        support.adopt_optimizer(engine, optimizer)
        self.assertEqual(engine._lib.used["optimizer"], size)
        self.assertIn("embed.weight.exp_avg", engine._lib.declared)
        self.assertFalse([name for name in engine._lib.declared if name.endswith(".master")])

    def test_an_engine_for_the_jobs_memory_is_refused(self):
        engine = fake_engine.make(LAYOUT)
        with self.assertRaisesRegex(WrongRequest, "own_weights=.*engine.adopt"):
            support.register(engine, Small())

    def test_what_differs_is_named(self):
        engine = fake_engine.make([*LAYOUT[:2], ("other", "f32", 2, 2)], own="stays")
        with self.assertRaisesRegex(WrongRequest, r"other is missing; head.weight \[11, 6\] is not in the layout"):
            support.register(engine, Small())
        self.assertEqual(engine._lib.lent, {})

    def test_a_parameter_that_leaves_is_found_where_it_was_to_stay(self):
        for own, is_found in (("stays", True), ("moves", False)):
            model, engine = Small(), fake_engine.make(LAYOUT, own=own)
            support.register(engine, model)
            model.head.weight.data = model.head.weight.data.clone()
            with self.subTest(own), contextlib.ExitStack() as expected:
                if is_found:
                    expected.enter_context(self.assertRaisesRegex(WrongRequest, "head.weight has left where it was"))
                engine._check()


def module_of(layout):
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    module = nn.Module()
    for place in layout:
        *path, key = place.name.split(".")
        owner = module
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        shape = (place.elements,) if 1 in (place.rows, place.cols) else (place.rows, place.cols)
        owner.register_parameter(key, nn.Parameter(torch.full(shape, 0.5, dtype=dtypes[place.dtype])))
    return module


@unittest.skipUnless(sys.argv[1:], "without the program there is no job")
class RegisterInAJob(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.job = attached_job.Job(scratch.name, 2, "--admission", "off", attach="trainer")
        self.addCleanup(self.job.end)

    def attach(self, own):
        engine = awex_colocate.attach("trainer", self.job.directory, device="host:0", own_weights=own)
        self.addCleanup(engine.close)
        return engine, module_of(engine.layout())

    def own_bytes(self):
        return next(rank["engine_own_bytes"] for rank in self.job.status()["ranks"] if rank["role"] == "trainer")

    def test_memory_that_stays(self):
        engine, model = self.attach("stays")
        first = engine.layout()[0].name
        with self.assertRaisesRegex(WrongRequest, rf"{first}.*private to this process(.|\n)*module.share_memory"):
            engine.register(model)
        with self.assertRaisesRegex(WrongRequest, "missing"):
            engine.seal()
        engine.register(model.share_memory())
        engine.seal()
        with engine.writing():
            model.get_parameter(first).data.fill_(2)
        self.assertEqual(engine.hand_over(), 1)
        self.assertTrue(engine.memory("weights").is_mapped)
        self.assertEqual(model.get_parameter(first).flatten()[0].item(), 2)
        self.assertGreaterEqual(self.own_bytes(), sum(place.bytes for place in engine.layout()))
        engine.take_back()
        model.get_parameter(first).data = model.get_parameter(first).data.clone()
        with self.assertRaisesRegex(WrongRequest, f"{first} has left where it was"):
            engine.hand_over()

    def test_memory_that_moves(self):
        engine, model = self.attach("moves")

        @engine.before_release
        def leave(tag, _version):
            for parameter in model.parameters() if tag == "weights" else ():
                parameter.data = parameter.data.clone()

        @engine.after_resume
        def come_back(tag, _version):
            if tag == "weights":
                engine.register(model.share_memory())

        engine.register(model.share_memory())
        engine.seal()
        for version in range(1, 4):
            with engine.writing():
                for parameter in model.parameters():
                    parameter.data.fill_(version)
            self.assertEqual(engine.hand_over(), version)
            self.assertFalse(any(parameter.is_shared() for parameter in model.parameters()))
            engine.take_back()
            self.assertTrue(all(parameter.is_shared() for parameter in model.parameters()))


class AdoptOptimizer(unittest.TestCase):
    def pair(self, make_optimizer, steps_before=0, **sizes):
        torch.manual_seed(2)
        plain = Small()
        attached = copy.deepcopy(plain)
        ours, theirs = make_optimizer(attached), make_optimizer(plain)
        want = train(plain, theirs, steps_before + 4)
        train(attached, ours, steps_before)
        sizes.setdefault("optimizer", support.optimizer_bytes(ours, attached))
        engine = fake_engine.make(LAYOUT, **sizes)
        support.adopt(engine, attached)
        support.adopt_optimizer(engine, ours)
        if steps_before == 0:
            self.assertEqual(train(attached, ours, 4), want)
        return engine, attached, ours

    def test_losses_are_the_same_bit_by_bit(self):
        for options in ({}, {"amsgrad": True}, {"foreach": False}, {"fused": True}, {"capturable": False}):
            with self.subTest(options):
                engine, model, optimizer = self.pair(
                    lambda m, o=options: torch.optim.AdamW(m.parameters(), lr=0.01, **o)
                )
                for state in optimizer.state.values():
                    for key, value in state.items():
                        if key != "step":
                            self.assertTrue(inside(engine, value, "optimizer"), key)
                engine._check()

    def test_the_size_is_exact(self):
        engine, _, _ = self.pair(lambda m: torch.optim.AdamW(m.parameters()))
        self.assertEqual(engine._lib.used["optimizer"], engine.memory("optimizer").bytes)

    def test_too_little_memory_is_refused_with_what_to_ask_for(self):
        with self.assertRaisesRegex(WrongRequest, "attach.*memory="):
            self.pair(lambda m: torch.optim.AdamW(m.parameters()), optimizer=1024)

    def test_an_optimizer_before_its_model_is_refused_and_changes_nothing(self):
        model = Small()
        optimizer = torch.optim.AdamW(model.parameters())
        engine = fake_engine.make(LAYOUT, optimizer=support.optimizer_bytes(optimizer, model))
        with self.assertRaisesRegex(WrongRequest, "3 of its 3 parameters are not adopted.*\n.*adopt the model"):
            support.adopt_optimizer(engine, optimizer)
        self.assertFalse(optimizer.state)
        support.adopt(engine, model)
        of_another = torch.optim.AdamW(Small().parameters())
        with self.assertRaisesRegex(WrongRequest, "3 of its 3 parameters are not adopted.*\n.*adopt the model"):
            support.adopt_optimizer(engine, of_another)
        support.adopt_optimizer(engine, optimizer)
        engine._check()

    def test_memory_for_an_optimizer_that_nobody_moves_is_told_of(self):
        engine = fake_engine.make(LAYOUT, optimizer=4096)
        support.adopt(engine, Small())
        with self.assertWarnsRegex(RuntimeWarning, "4096 bytes of optimizer memory.*adopt_optimizer"):
            engine.seal()
        for use in (
            lambda of: of.memory("optimizer").alloc(8),
            lambda of: of.memory("optimizer").view(),
            lambda of: of.declare("mine", "f32", 2, 2, 0, "optimizer"),
            lambda of: of.empty("optimizer", (2, 2), torch.float32),
        ):
            engine = fake_engine.make(LAYOUT, optimizer=4096)
            use(engine)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                engine.seal()
                fake_engine.make(LAYOUT).seal()

    def test_optimizers_that_are_not_known_need_a_first_step(self):
        make = lambda m: torch.optim.RMSprop(m.parameters())  # noqa: E731
        with self.assertRaisesRegex(WrongRequest, "RMSprop.*\n.*first step"):
            self.pair(make)
        engine, _, optimizer = self.pair(make, steps_before=1)
        for state in optimizer.state.values():
            self.assertTrue(inside(engine, state["square_avg"], "optimizer"))

    def test_masters_lie_with_the_optimizer(self):
        model = Small()
        masters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
        optimizer = torch.optim.AdamW(masters)
        engine = fake_engine.make(LAYOUT, optimizer=support.optimizer_bytes(optimizer, model))
        support.adopt(engine, model)
        support.adopt_optimizer(engine, optimizer)
        for master in masters:
            self.assertTrue(inside(engine, master, "optimizer"))
        self.assertIn("parameter.0.0.master", engine._lib.declared)

    def test_a_process_that_comes_after_goes_on_where_the_former_was(self):
        def make(m):
            return torch.optim.AdamW(m.parameters(), lr=0.01)

        torch.manual_seed(2)
        whole = Small()
        first = copy.deepcopy(whole)
        optimizer_of_whole = make(whole)
        all_losses = train(whole, optimizer_of_whole, 3, seed=5) + train(
            whole, optimizer_of_whole, 3, seed=6
        )
        optimizer = make(first)
        engine = fake_engine.make(LAYOUT, optimizer=support.optimizer_bytes(optimizer))
        support.adopt(engine, first)
        support.adopt_optimizer(engine, optimizer)
        losses = train(first, optimizer, 3, seed=5)

        second = Small()  # Other weights, no state.
        again = make(second)
        later = fake_engine.make(LAYOUT, reattached=True, optimizer=engine.memory("optimizer").bytes)
        later._lib.memory = engine._lib.memory
        support.adopt(later, second)
        support.adopt_optimizer(later, again)
        losses += train(second, again, 3, seed=6)
        self.assertEqual(losses, all_losses)

    def test_state_that_leaves_is_found(self):
        engine, model, optimizer = self.pair(lambda m: torch.optim.AdamW(m.parameters()))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        with self.assertRaisesRegex(WrongRequest, "exp_avg.* has left"):
            engine._check()


class Storages(unittest.TestCase):
    """What vLLM's KV cache and Megatron's buffers are moved by."""

    def setUp(self):
        with torch.no_grad():
            raw = torch.zeros(64, dtype=torch.int8)
            self.views = [raw.view(torch.bfloat16).view(2, -1)[row] for row in range(2)]

    def found(self):
        return all_that_look_into(self.views[0].untyped_storage().data_ptr())

    def test_all_that_look_into_one_are_found(self):
        gc.freeze()  # as vLLM does
        try:
            found = {id(tensor) for tensor in self.found()}
            self.assertGreater(gc.get_freeze_count(), 0)
        finally:
            gc.unfreeze()
        bases = [view._base for view in self.views]
        self.assertLessEqual({id(tensor) for tensor in self.views + bases}, found)

    def test_vllms_kv_cache_moves_and_leaves_nothing_behind(self):
        caches = vllm._caches_of({"layer": types.SimpleNamespace(kv_cache=self.views)})
        engine = fake_engine.make([], kv_cache=4096)
        vllm._move_caches(engine, caches)
        for row, view in enumerate(self.views):
            self.assertEqual(view.data_ptr(), engine.memory("kv_cache").address + 32 * row)

    def test_vllms_kv_cache_that_something_else_holds_is_refused(self):
        caches = vllm._caches_of({"layer": types.SimpleNamespace(kv_cache=self.views)})
        held = self.views[0].untyped_storage()
        engine = fake_engine.make([], kv_cache=4096)
        with self.assertRaisesRegex(WrongRequest, "64 bytes"):
            vllm._move_caches(engine, caches)
        self.assertEqual(held.nbytes(), 64)


class VllmWithGraphs(unittest.TestCase):
    """Its KV cache is allocated in the job's memory, by what stands in for vLLM's own allocator."""

    def setUp(self):
        self.seen = []  #: vLLM's own pools that were entered, and what an engine was asked for.

        @contextlib.contextmanager
        def pool(tag):
            self.seen.append(tag)
            yield

        class Vllms:  # what vLLM has without the plugin
            instance = None
            use_memory_pool = staticmethod(pool)
            _shutdown_singleton = staticmethod(lambda: None)

        self.vllms = Vllms

    def allocator(self, is_cuda=True, **environment):
        """What the plugin has put in place of vLLM's own."""
        sys.modules.pop("awex_colocate.vllm_memory", None)
        vars(awex_colocate).pop("vllm_memory", None)  # It is made anew, of these stubs.
        platform = types.SimpleNamespace(is_cuda=lambda: is_cuda)
        with (
            mock.patch.dict(os.environ, environment),
            module("vllm.distributed.weight_transfer", WeightTransferEngineFactory=Factory()),
            module("vllm.platforms", current_platform=platform),
            module("vllm.device_allocator.cumem", CuMemAllocator=self.vllms),
        ):
            vllm.register()
        return self.vllms.instance

    def memory(self, tag):
        """Of an engine, as is `empty`."""
        return types.SimpleNamespace(map_placeholder=lambda: self.seen.append(f"a placeholder for {tag}"))

    def empty(self, tag, shape, dtype):
        self.seen.append((tag, shape, dtype))
        return torch.empty(shape, dtype=dtype)

    def kv_cache(self, allocator):
        """As vLLM makes it, with tables beside it."""
        with allocator.use_memory_pool(tag="kv_cache"):
            made = torch.zeros(12, dtype=torch.int8)
            torch.zeros(12, dtype=torch.int32), torch.zeros(3, 4, dtype=torch.int8)
        return made

    def load(self, allocator):
        with allocator.use_memory_pool(tag="weights"):
            torch.zeros(12, dtype=torch.int8)

    def test_it_is_there_for_workers_with_a_job(self):
        with mock.patch.dict(os.environ):
            os.environ.pop("AWEX_COLOCATE_JOB", None)
            self.assertIsNone(self.allocator())
        self.assertIsNone(self.allocator(is_cuda=False, AWEX_COLOCATE_JOB="dir"))
        self.assertIsNotNone(self.allocator(AWEX_COLOCATE_JOB="dir"))

    def test_an_llm_that_attaches_has_its_kv_cache_in_the_job(self):
        allocator = self.allocator(AWEX_COLOCATE_JOB="dir")
        self.load(allocator)
        caches = allocator.use(self)
        with allocator.use_memory_pool(tag="workspace"):
            torch.zeros(12, dtype=torch.int8)
        made = self.kv_cache(allocator)
        self.assertEqual(self.seen, ["a placeholder for kv_cache", "workspace", ("kv_cache", (12,), torch.int8)])
        self.assertEqual(made.tolist(), [0] * 12)
        self.assertEqual(caches.addresses, {made.data_ptr()})

    def test_other_llms_have_it_where_vllm_puts_it(self):
        allocator = self.allocator(AWEX_COLOCATE_JOB="dir")
        self.kv_cache(allocator)
        self.assertEqual(self.seen, ["kv_cache"])
        allocator.use(self)
        self.kv_cache(allocator)
        self.seen.clear()
        self.kv_cache(allocator)
        self.assertEqual(self.seen, ["kv_cache"])

    def test_a_start_that_failed_is_forgotten(self):
        allocator = self.allocator(AWEX_COLOCATE_JOB="dir")
        self.load(allocator)
        allocator.use(self)
        self.seen.clear()
        self.load(allocator)  # of the next LLM
        self.kv_cache(allocator)
        self.assertEqual(self.seen, ["kv_cache"])

    def test_sleep_is_refused(self):
        allocator = self.allocator(AWEX_COLOCATE_JOB="dir")
        for call in (allocator.sleep, allocator.wake_up, allocator.discard):
            with self.assertRaisesRegex(WrongRequest, "update and release"):
                call(("weights",))

    def test_a_kv_cache_that_lies_elsewhere_is_refused(self):
        first, second, table = (torch.zeros(8, dtype=torch.int8) for _ in range(3))
        layers = {"0": types.SimpleNamespace(kv_cache=first.view(2, 4)), "1": types.SimpleNamespace(kv_cache=[second])}
        places = {tensor.data_ptr() for tensor in (first, second)}
        vllm._refuse_caches_elsewhere(layers, places)
        with self.assertRaisesRegex(WrongRequest, "1 of its 2 storages are not in .* and 1 are there that are none"):
            vllm._refuse_caches_elsewhere(layers, {first.data_ptr(), table.data_ptr()})


class TransferEngine(Generic[One, Other]):
    """What vLLM's own class gives a backend."""

    def __init__(self, config, vllm_config, device, model):
        self.vllm_config, self.device, self.model, self.parallel_config = vllm_config, device, model, None


class VllmWorkers(unittest.TestCase):
    """The backend in each of vLLM's workers, without vLLM and without a job."""

    LAYERS = 2
    KV_BYTES = 1 << 20

    def setUp(self):
        class Info:
            def __init_subclass__(cls, **_):
                pass

        base = {"WeightTransferEngine": TransferEngine, "WeightTransferInitInfo": Info,
                "WeightTransferUpdateInfo": Info}  # fmt: skip
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        stack.enter_context(module("vllm.distributed.weight_transfer.base", **base))
        stack.enter_context(mock.patch.dict(os.environ, AWEX_COLOCATE_JOB="job", AWEX_COLOCATE_ANY_VERSION="1"))
        import awex_colocate.vllm_engine as backend

        self.addCleanup(sys.modules.pop, backend.__name__)  # The next one makes its own.
        self.backend = backend
        self.engine = mock.Mock()
        self.engine.place.backend = "host"
        self.attach = stack.enter_context(mock.patch.object(backend, "attach", return_value=self.engine))
        self.allocator = mock.Mock()
        self.allocator.use.return_value.addresses = set()
        stack.enter_context(mock.patch.object(backend.AwexWeightTransfer, "_allocator", lambda _: self.allocator))

    def worker(self, sleeps):
        layers = {str(number): types.SimpleNamespace() for number in range(self.LAYERS)}
        config = types.SimpleNamespace(
            lora_config=None, model_config=types.SimpleNamespace(quantization=None, enable_sleep_mode=sleeps),
            cache_config=types.SimpleNamespace(kv_cache_memory_bytes=self.KV_BYTES),
            compilation_config=types.SimpleNamespace(static_forward_context=layers),
        )  # fmt: skip
        with mock.patch.object(vllm, "_device", return_value="host:0"):
            return self.backend.AwexWeightTransfer(None, config, torch.device("cpu"), "model")

    def info(self, **named):
        return self.backend.AwexInitInfo(job="job", **named)

    def test_one_that_loads_has_weights_and_kv_cache_in_the_job(self):
        worker = self.worker(sleeps=True)
        asked = self.attach.call_args.kwargs["memory"]
        self.assertEqual(asked, {"kv_cache": self.KV_BYTES + self.LAYERS * 512})
        want = [mock.call.memory("weights"), mock.call.memory().map_placeholder(), mock.call.adopt("model")]
        self.assertEqual(self.engine.mock_calls, want)
        self.allocator.use.assert_called_once_with(self.engine)
        worker.init_transfer_engine(self.info(kv_cache=True))
        self.engine.seal.assert_called_once()
        with self.assertRaisesRegex(WrongRequest, "attached already"):
            worker.init_transfer_engine(self.info())

    def test_without_sleep_mode_the_kv_cache_stays_vllms(self):
        worker = self.worker(sleeps=False)
        self.assertEqual(self.attach.call_args.kwargs["memory"], {})
        self.allocator.use.assert_not_called()
        with self.assertRaisesRegex(WrongRequest, "its KV cache cannot follow"):
            worker.init_transfer_engine(self.info(kv_cache=True))
        worker.init_transfer_engine(self.info())
        self.engine.seal.assert_called_once()

    def test_a_kv_cache_that_is_not_where_it_was_allocated_is_refused(self):
        worker = self.worker(sleeps=True)
        self.allocator.use.return_value.addresses = {4096}
        with self.assertRaisesRegex(WrongRequest, "1 are there that are none of it"):
            worker.init_transfer_engine(self.info())
        self.engine.seal.assert_not_called()

    def test_what_was_refused_is_told_again(self):
        worker = self.worker(sleeps=True)
        self.engine.seal.side_effect = WrongRequest("the first cause")
        with self.assertRaisesRegex(WrongRequest, "^the first cause"):
            worker.init_transfer_engine(self.info())
        with self.assertRaisesRegex(WrongRequest, "refused: the first cause\\n.*start vLLM anew"):
            worker.init_transfer_engine(self.info())
        self.engine.seal.assert_called_once()

    def test_a_start_that_fails_leaves_the_job(self):
        self.engine.adopt.side_effect = WrongRequest("another shape")
        with self.assertRaisesRegex(WrongRequest, "another shape"):
            self.worker(sleeps=True)
        self.engine.close.assert_called_once()


class Random(unittest.TestCase):
    def test_random_state_comes_back(self):
        blob = support.random_state()
        want = torch.rand(3)
        support.restore_random_state(blob)
        self.assertTrue(torch.equal(torch.rand(3), want))


if __name__ == "__main__":
    attached_job.Programs.mpiexec, attached_job.Programs.binary = "mpirun", "".join(sys.argv[1:2])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
