"""The plugins without their engines: what they register, refuse by name and call, in which order."""

import contextlib
import os
import sys
import threading
import types
import unittest
from unittest import mock

import awex_colocate.sglang as sglang_plugin
import awex_colocate.vllm as vllm_plugin
from awex_colocate import DeadlinePassed, EngineLost, WrongRequest
from awex_colocate._versions import refuse_others


def module(name, **contents):
    """A stub of a module, under which importing finds it."""
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    parents = {".".join(name.split(".")[:n]): types.ModuleType("x") for n in range(1, name.count(".") + 1)}
    return mock.patch.dict(sys.modules, {**parents, name: made})


class Versions(unittest.TestCase):
    def test_a_range_is_a_range(self):
        for found in ("0.5.14", "0.5.23", "0.5.20.post1"):
            refuse_others("SGLang", found, "0.5.14", "0.5.23")
        for found in ("0.5.13", "0.5.24", "0.6.0", "0.4.99", "1.0", "", "unknown"):
            with self.assertRaisesRegex(WrongRequest, r"for SGLang 0.5.14 to 0.5.23; "):
                refuse_others("SGLang", found, "0.5.14", "0.5.23")

    def test_the_last_number_may_be_any(self):
        for found in ("0.32.0", "0.32.7", "0.32.0+cpu"):
            refuse_others("vLLM", found, "0.32", "0.32")
        for found in ("0.31.9", "0.33.0", "0.3.2"):
            with self.assertRaisesRegex(WrongRequest, rf"for vLLM 0.32; {found} is installed"):
                refuse_others("vLLM", found, "0.32", "0.32")

    def test_one_may_try_others(self):
        with mock.patch.dict(os.environ, AWEX_COLOCATE_ANY_VERSION="1"):
            refuse_others("vLLM", "9.9", "0.32", "0.32")


class Factory:
    def __init__(self):
        self._registry = {}

    def register_engine(self, name, path, class_name):
        assert name not in self._registry
        self._registry[name] = (path, class_name)


class Llm:
    def __init__(self, failing=""):
        self.calls, self.arguments, self.named, self.failing = [], {}, {}, failing

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append(name)
            self.arguments[name], self.named[name] = arguments, named
            if name == self.failing:
                raise WrongRequest(name)

        return call


class Vllm(unittest.TestCase):
    def test_nothing_happens_without_vllm(self):
        with mock.patch.dict(sys.modules, {"vllm": None}):
            vllm_plugin.register()

    def test_it_registers_once(self):
        factory = Factory()
        with module("vllm.distributed.weight_transfer", WeightTransferEngineFactory=factory):
            vllm_plugin.register()
            vllm_plugin.register()
        self.assertEqual(factory._registry, {"awex": ("awex_colocate.vllm_engine", "AwexWeightTransfer")})

    def test_an_update_has_its_order(self):
        llm = Llm()
        llm.llm_engine = types.SimpleNamespace(get_weight_version=None)
        vllm_plugin.update(llm, version=3)
        want = ["sleep", "start_weight_update", "update_weights", "finish_weight_update",
                "reset_prefix_cache", "wake_up"]  # fmt: skip
        self.assertEqual(llm.calls, want)
        self.assertEqual(llm.named["finish_weight_update"], {"weight_version": "3"})

    def test_a_vllm_that_keeps_no_label_is_told_none(self):
        llm = Llm()
        llm.llm_engine = object()
        vllm_plugin.update(llm, version=3)
        self.assertEqual(llm.named["finish_weight_update"], {})

    def test_vllm_goes_on_after_a_failed_update(self):
        llm = Llm("update_weights")
        with self.assertRaises(WrongRequest):
            vllm_plugin.update(llm)
        self.assertEqual(llm.calls, ["sleep", "start_weight_update", "update_weights", "wake_up"])

    def test_releasing_leaves_vllm_paused(self):
        llm = Llm()
        vllm_plugin.release(llm, timeout=5)
        want = ["sleep", "start_weight_update", "update_weights", "finish_weight_update"]
        self.assertEqual(llm.calls, want)
        self.assertEqual(llm.arguments["update_weights"], ({"update_info": {"timeout": 5, "release": True}},))

    def test_each_worker_has_its_place(self):
        cpu, gpu = types.SimpleNamespace(type="cpu"), types.SimpleNamespace(type="cuda", index=1)
        parallel = types.SimpleNamespace(world_size=2, rank=1)
        self.assertEqual(vllm_plugin._device(gpu, parallel, 0), "cuda:1")
        self.assertEqual(vllm_plugin._device(cpu, parallel, 0), "host:1")
        self.assertEqual(vllm_plugin._device(cpu, parallel, 4), "host:5")
        parallel.data_parallel_index = 3
        self.assertEqual(vllm_plugin._device(cpu, parallel, 0), "host:7")
        parallel.data_parallel_rank_local = 1  # The fourth replica is the second of its host.
        self.assertEqual(vllm_plugin._device(cpu, parallel, 0), "host:3")

    def test_what_cannot_be_is_refused(self):
        def config(lora=None, **model):
            return types.SimpleNamespace(lora_config=lora, model_config=types.SimpleNamespace(**model))

        with mock.patch.dict(os.environ, AWEX_COLOCATE_ANY_VERSION="1"):
            vllm_plugin._refuse(config(quantization="fp8"))
            for wrong, word in (
                (config(lora=object()), "LoRA"),
                (config(quantization="awq"), "awq"),
            ):
                with self.assertRaisesRegex(WrongRequest, word):
                    vllm_plugin._refuse(wrong)

    def test_sleep_mode_needs_a_job_while_vllm_loads_and_a_size(self):
        def config(sleeps, count=None, blocks=None, option="enable_sleep_mode"):
            return types.SimpleNamespace(
                model_config=types.SimpleNamespace(**{option: sleeps}),
                cache_config=types.SimpleNamespace(kv_cache_memory_bytes=count, num_gpu_blocks_override=blocks),
            )

        vllm_plugin._refuse_sleep_mode(config(False))
        for option in ("enable_sleep_mode", "enable_cumem_allocator"):
            with self.assertRaisesRegex(WrongRequest, f"(?s){option}.*AWEX_COLOCATE_JOB=DIR"):
                vllm_plugin._refuse_sleep_mode(config(True, option=option))
        self.assertEqual(vllm_plugin._wanted_kv_cache(config(False, 1 << 30)), 0)
        self.assertEqual(vllm_plugin._wanted_kv_cache(config(True, 1 << 30)), 1 << 30)
        for wrong in (config(True), config(True, 1 << 30, blocks=100)):
            with self.assertRaisesRegex(WrongRequest, "(?s)how large its KV cache is.*kv_cache_memory_bytes=N"):
                vllm_plugin._wanted_kv_cache(wrong)

    def test_captured_graphs_keep_what_they_have_captured(self):
        gpu, cpu = types.SimpleNamespace(type="cuda"), types.SimpleNamespace(type="cpu")
        captured, eager = (
            types.SimpleNamespace(model_config=types.SimpleNamespace(enforce_eager=eager)) for eager in (False, True)
        )
        vllm_plugin._refuse_graphs(captured, cpu)
        vllm_plugin._refuse_graphs(eager, gpu)
        with self.assertRaisesRegex(WrongRequest, "weights cannot move: vLLM's CUDA graphs"):
            vllm_plugin._refuse_graphs(captured, gpu)


class Registry:
    def __init__(self):
        self.hooks = {}

    def register(self, target, hook, kind):
        self.hooks[target.rsplit(".", 1)[1]] = (hook, kind)


class Manager:
    def __init__(self, saves=False):
        self.calls, self.offload_tags = [], set()
        self.memory_saver_adapter = types.SimpleNamespace(enabled=saves)

    def is_fully_idle(self):
        return True

    def flush_cache(self):
        self.calls.append("flush")


class Sglang(unittest.TestCase):
    ANSWERS = {"ReleaseMemoryOccupationReqOutput": lambda: "released",
               "ResumeMemoryOccupationReqOutput": lambda: "resumed",
               "ReleaseMemoryOccupationReqInput": types.SimpleNamespace,
               "ResumeMemoryOccupationReqInput": types.SimpleNamespace}  # fmt: skip

    def hooks(self):
        registry = Registry()
        kinds = types.SimpleNamespace(AFTER="after", AROUND="around")
        with module("sglang.srt.plugins.hook_registry", HookRegistry=registry, HookType=kinds):
            sglang_plugin.register()
        return registry.hooks

    def test_it_does_nothing_unless_a_job_is_named(self):
        with mock.patch.dict(os.environ):
            os.environ.pop("AWEX_COLOCATE_JOB", None)
            self.assertEqual(self.hooks(), {})

    def test_memory_goes_and_comes_by_sglangs_own_calls(self):
        with mock.patch.dict(os.environ, AWEX_COLOCATE_JOB="job"):
            hooks = self.hooks()
        self.assertEqual(
            {name: kind for name, (_, kind) in hooks.items()},
            {"load_model": "around", "get_internal_state": "after", "release_memory_occupation": "around",
             "resume_memory_occupation": "around"},
        )  # fmt: skip
        release, resume = (hooks[f"{name}_memory_occupation"][0] for name in ("release", "resume"))
        engine, manager = mock.Mock(version=0), Manager()
        everything, cache_alone = types.SimpleNamespace(tags=None), types.SimpleNamespace(tags=["kv_cache"])
        with self.attached(engine):
            self.assertEqual(release(None, manager, everything), "released")
            engine.release.assert_not_called()  # Nothing is served yet, so there is nothing to give.
            self.assertEqual(resume(None, manager, everything), "resumed")
            engine.wait.assert_called_once()
            engine.version = 1
            release(None, manager, cache_alone)
            engine.release.assert_not_called()
            release(None, manager, everything)
            resume(None, manager, everything)
            engine.release.assert_called_once()
            self.assertEqual(engine.wait.call_count, 2)
        self.assertEqual(manager.calls, ["flush", "flush", "flush"])

    @contextlib.contextmanager
    def attached(self, engine, is_sealed=True):
        with module("sglang.srt.managers", io_struct=types.SimpleNamespace(**self.ANSWERS)):
            with mock.patch.multiple(sglang_plugin, _engine=engine, _offer=None, _is_sealed=is_sealed):
                yield

    def test_it_computes_with_what_it_has_loaded_until_it_is_told_to_give_it_away(self):
        for told in (sglang_plugin._release, sglang_plugin._resume):
            engine, manager = mock.Mock(version=0), Manager()
            with self.attached(engine, is_sealed=False):
                told(None, manager, types.SimpleNamespace(tags=["kv_cache"]))
                engine.seal.assert_not_called()
                for _ in range(2):
                    told(None, manager, types.SimpleNamespace(tags=["weights"]))
            engine.seal.assert_called_once()
            names = [name for name, _, _ in engine.method_calls]
            self.assertEqual(names, ["seal", "wait", "wait"] if told is sglang_plugin._resume else ["seal"])

    def test_weights_lie_where_graphs_can_be_captured_over_them(self):
        attached = mock.Mock()
        runner = types.SimpleNamespace(server_args=types.SimpleNamespace(), device="cpu", model="model")
        with mock.patch.dict(os.environ, AWEX_COLOCATE_JOB="dir"), self.attached(None):
            with mock.patch.object(sglang_plugin, "attach", return_value=attached):
                sglang_plugin._attach(runner)
            self.assertIs(sglang_plugin._engine, attached)
        want = [mock.call.memory("weights"), mock.call.memory().map_placeholder(), mock.call.adopt("model")]
        self.assertEqual(attached.mock_calls, want)

    def test_it_says_which_version_is_served(self):
        answer = types.SimpleNamespace(internal_state={"model_path": "m"})
        with self.attached(mock.Mock(version=3)):
            self.assertIs(sglang_plugin._tell_version(answer, "scheduler", "request"), answer)
        self.assertEqual(answer.internal_state, {"model_path": "m", "awex_colocate_version": 3})
        with self.attached(None):
            self.assertIs(sglang_plugin._tell_version(answer, "scheduler", "request"), answer)

    def test_a_release_does_not_wait_for_the_trainer(self):
        taken = threading.Event()

        def until_taken(timeout):
            if not taken.wait(timeout):
                raise DeadlinePassed("nobody took it")

        engine, request = mock.Mock(version=1), types.SimpleNamespace(tags=None)
        engine.release.side_effect = until_taken
        with self.attached(engine):
            sglang_plugin._release(None, Manager(), request)
            sglang_plugin._release(None, Manager(), request)  # One offer stands.
            sglang_plugin._resume(None, Manager(), request)  # Nobody has taken it: the same version goes on.
            engine.wait.assert_not_called()
            sglang_plugin._release(None, Manager(), request)
            taken.set()
            sglang_plugin._offer._standing.result()
            sglang_plugin._resume(None, Manager(), request)
            engine.wait.assert_called_once()

    def test_what_fails_while_it_is_offered_is_raised_when_it_is_wanted(self):
        engine, request = mock.Mock(version=1), types.SimpleNamespace(tags=None)
        engine.release.side_effect = EngineLost("rank 1 has gone")
        with self.attached(engine):
            sglang_plugin._release(None, Manager(), request)
            with self.assertRaisesRegex(EngineLost, "rank 1 has gone"):
                sglang_plugin._resume(None, Manager(), request)

    def test_a_busy_sglang_keeps_its_memory(self):
        engine, request, manager = mock.Mock(version=1), types.SimpleNamespace(tags=None), Manager()
        manager.is_fully_idle = lambda: False
        with self.attached(engine):
            with self.assertRaisesRegex(WrongRequest, "has requests that run"):
                sglang_plugin._release(None, manager, request)
            self.assertIsNone(sglang_plugin._offer)
        engine.release.assert_not_called()

    def test_sglang_is_itself_where_nothing_is_attached(self):
        original = mock.Mock(return_value="its own")
        self.assertEqual(sglang_plugin._release(original, "manager", "request"), "its own")
        original.assert_called_once_with("manager", "request")

    def test_its_own_saver_keeps_the_kv_cache_alone(self):
        def release(manager, request):
            manager.calls.append(("release", *request.tags))
            manager.offload_tags |= set(request.tags)

        def resume(manager, request):
            manager.calls.append(("resume", *request.tags))
            manager.offload_tags -= set(request.tags)

        def asked(*tags):
            return types.SimpleNamespace(tags=list(tags) or None)

        engine, manager = mock.Mock(version=0), Manager(saves=True)
        engine.wait.side_effect = lambda timeout: manager.calls.append("wait")
        with self.attached(engine):
            sglang_plugin._resume(resume, manager, asked())  # SGLang would fail on what was never released.
            sglang_plugin._release(release, manager, asked())
            sglang_plugin._release(release, manager, asked("kv_cache"))  # Once is enough.
            sglang_plugin._resume(resume, manager, asked("weights"))
            sglang_plugin._resume(resume, manager, asked("weights", "cuda_graph"))
            sglang_plugin._resume(resume, manager, asked("kv_cache"))
        self.assertEqual(
            manager.calls,
            ["wait", "flush", ("release", "kv_cache", "cuda_graph"), "wait", "flush", "wait",
             ("resume", "cuda_graph"), "flush", ("resume", "kv_cache")],
        )  # fmt: skip

    def test_weights_are_not_loaded_into_its_savers_memory(self):
        own, none = types.SimpleNamespace(enabled=True), types.SimpleNamespace(enabled=False)
        adapter = types.SimpleNamespace(create=lambda enable: self.fail() if enable else none)
        runner, seen = types.SimpleNamespace(memory_saver_adapter=own), []
        with module("sglang.srt.utils.torch_memory_saver_adapter", TorchMemorySaverAdapter=adapter):
            with self.assertRaises(OSError), sglang_plugin._without_saver(runner):
                seen.append(runner.memory_saver_adapter)
                raise OSError
        self.assertEqual(seen, [none])
        self.assertIs(runner.memory_saver_adapter, own)  # What is allocated later is SGLang's to save.

    def test_what_cannot_be_is_refused(self):
        def load(**arguments):
            original = mock.Mock()
            runner = types.SimpleNamespace(server_args=types.SimpleNamespace(**arguments))
            with self.assertRaises(WrongRequest) as raised:
                sglang_plugin._load(original, runner)
            original.assert_not_called()
            return str(raised.exception)

        with mock.patch.dict(os.environ, AWEX_COLOCATE_ANY_VERSION="1"):
            self.assertIn("LoRA", load(enable_lora=True))
            with self.attached(mock.Mock()):
                self.assertIn("attached already", load())
        self.assertIn("this plugin is for SGLang", load())

    def test_a_draft_model_is_sglangs_own(self):
        original, runner = mock.Mock(return_value="loaded"), types.SimpleNamespace(is_draft_worker=True)
        self.assertEqual(sglang_plugin._load(original, runner), "loaded")
        original.assert_called_once_with(runner)


if __name__ == "__main__":
    unittest.main()
