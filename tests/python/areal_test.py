"""AReaL's actor and SGLang's plugin without AReaL, SGLang or PyTorch: areal_test.py MPIRUN PROGRAM. A controller calls
the two, one after the other, in the order of PPOTrainer of AReaL 2.0.0 (areal/trainer/rl_trainer.py), with a
real job between them. Where AReaL can be imported, its signatures are compared with those used here."""

import contextlib
import enum
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import types
import unittest
from pathlib import Path
from unittest import mock

import awex_colocate
import awex_colocate.areal as plugin
import awex_colocate.sglang as sglang_plugin
from awex_colocate import EngineLost, WrongRequest
from awex_colocate._behind import Behind

UPDATES = 3

#: AReaL's TrainEngine as far as it is used here: areal/api/engine_api.py of 1.0.4 (PyPI) and 2.0.0.
SEAM = {
    "initialize": ["self", "args", "kwargs"],
    "update_weights": ["self", "meta"],
    "optimizer_zero_grad": ["self"],
    "optimizer_step": ["self"],
    "save": ["self", "meta"],
    "load": ["self", "meta"],
    "offload": ["self"],
    "onload": ["self"],
}


class TrainEngine:
    """What AReaL's engines have of that; what they do is written down."""

    optimizer = "some"

    def __init__(self):
        self.calls = []

    def initialize(self, *args, **kwargs):
        self.calls.append("initialize")

    def update_weights(self, meta):
        self.calls.append("AReaL's own update_weights")

    def optimizer_zero_grad(self):
        self.calls.append("zero_grad")

    def optimizer_step(self):
        self.calls.append("step")
        return {"update_successful": 1.0}

    def forward_backward_batch(self, mb_list, process_output_fn, forward_only=False):
        self.calls.append(("forward", mb_list, forward_only))

    def save(self, meta):
        self.calls.append("save")

    def load(self, meta):
        self.calls.append("load")

    def offload(self):
        self.calls.append("AReaL's own offload")

    def onload(self):
        self.calls.append("AReaL's own onload")


class Actor(plugin.Colocated, TrainEngine):
    def __init__(self, engine=None):
        """Attached to `engine`, None for not yet."""
        super().__init__()
        self.config = a_config().actor
        if engine is not None:
            self.engine, self._joining = engine, Behind(lambda: engine, "attached")

    def _needs(self):
        return {"weights": 1, "optimizer": 2}

    def _adopt(self, engine):
        self.calls.append("adopt")


def an_engine():
    engine = mock.MagicMock()
    engine.hand_over.return_value = 1
    engine.memory.return_value.is_mapped = False
    engine.place.reattached = False
    return engine


def meta(version=1, use_lora=False):
    return types.SimpleNamespace(version=version, use_lora=use_lora, type="disk")


class Seams(unittest.TestCase):
    def test_the_stand_in_and_what_replaces_it_have_areals_signatures(self):
        for kind in (TrainEngine, plugin.Colocated):
            for name, want in SEAM.items():
                if name in vars(kind):
                    self.assertEqual(list(inspect.signature(getattr(kind, name)).parameters), want, (kind, name))

    def test_areal_has_them(self):
        try:
            from areal.api.engine_api import TrainEngine as theirs
        except ImportError as error:
            self.skipTest(f"no AReaL: {error}")
        for name, want in SEAM.items():
            self.assertEqual(list(inspect.signature(getattr(theirs, name)).parameters), want, name)
        batch = list(inspect.signature(theirs.forward_backward_batch).parameters)
        self.assertEqual(batch[:4], ["self", "mb_list", "process_output_fn", "forward_only"])
        from areal.api.cli_args import OptimizerConfig, PPOActorConfig
        from areal.trainer.rl_trainer import PPOTrainer

        made = list(inspect.signature(PPOTrainer._create_train_engine).parameters)
        self.assertEqual(made, ["self", "actor_config", "alloc"])
        for backend in ("fsdp:d1", "megatron:d1"):
            config = PPOActorConfig(experiment_name="a", trial_name="b", backend=backend, optimizer=OptimizerConfig())
            plugin.refuse_actor(config)
            config.use_lora = True
            with self.assertRaisesRegex(WrongRequest, "LoRA"):
                plugin.refuse_actor(config)


class Strategy(enum.Enum):
    colocation = "colocation"
    separation = "separation"


def a_config(**changes):
    """As much of a PPOConfig (areal/api/cli_args.py) as is looked at; "actor.use_lora" changes that."""
    place = types.SimpleNamespace
    config = place(
        actor=place(
            backend="fsdp:d2", use_lora=False, _version="v1", optimizer=place(type="adam"),
            fsdp=place(offload_params=False, per_layer_optim_step=False),
            megatron=place(
                ddp=place(use_distributed_optimizer=True, overlap_param_gather=False),
                use_precision_aware_optimizer=False,
            ),
            scheduling_strategy=place(type=Strategy.colocation, target="rollout"),
        ),
        rollout=place(backend="sglang:d2", _version="v1", scheduling_strategy=place(type="separation", target=None)),
    )  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split(".")
        one = config
        for parent in parents:
            one = getattr(one, parent)
        setattr(one, last, value)
    return config


def supposed(version="2.0.0"):
    """AReaL's version and a job."""
    found = mock.patch.object(plugin, "found_version", return_value=version)
    return found, mock.patch.dict(os.environ, AWEX_COLOCATE_JOB="dir", AWEX_COLOCATE_TIMEOUT="9")


class Attaching(unittest.TestCase):
    def setUp(self):
        for patch in supposed():
            patch.start()
        self.addCleanup(mock.patch.stopall)

    def initialized(self, engine):
        actor = Actor()
        with mock.patch.object(plugin, "attach", **engine) as attach:
            actor.initialize(None, "spec", role="actor")
            actor._joining._thread.join()
        self.assertEqual(attach.call_args.args, ("trainer", "dir"))
        return actor, attach

    def test_it_attaches_behind_initialize(self):
        engine = an_engine()
        actor, attach = self.initialized({"return_value": engine})
        want = {"device": None, "memory": {"weights": 1, "optimizer": 2}, "name": "areal 2.0.0", "timeout": 9.0}
        self.assertEqual(attach.call_args.kwargs, want)
        self.assertEqual(actor.calls, ["initialize", "adopt"])
        engine.seal.assert_called_once_with(9.0)
        actor.offload()

    def test_initialize_does_not_wait(self):
        actor, go = Actor(), threading.Event()
        with mock.patch.object(plugin, "attach", side_effect=lambda *_, **__: go.wait(60) and an_engine()):
            actor.initialize()
            self.assertTrue(actor._joining._thread.is_alive())
            go.set()
            actor.optimizer_step()  # Waits, as all that needs weights.
        self.assertEqual(actor.calls, ["initialize", "adopt", "step"])

    def test_what_fails_is_logged_and_raised_by_what_needs_weights(self):
        with self.assertLogs("awex_colocate.areal", "ERROR") as log:
            actor, _ = self.initialized({"side_effect": EngineLost("no job")})
        self.assertIn("the actor is not attached: no job", log.output[0])
        for call in (actor.optimizer_step, actor.offload, lambda: actor.save(meta())):
            with self.assertRaisesRegex(EngineLost, "no job"):
                call()

    def test_what_another_actor_left_is_not_taken(self):
        engine = an_engine()
        engine.place.reattached = True
        with self.assertLogs("awex_colocate.areal", "ERROR"):
            actor, _ = self.initialized({"return_value": engine})
        with self.assertRaisesRegex(WrongRequest, "holds what an actor left"):
            actor.offload()
        engine.close.assert_called_once()
        self.assertEqual(actor.calls, ["initialize"])

    def test_initialize_comes_first(self):
        with self.assertRaisesRegex(WrongRequest, "call initialize"):
            Actor().offload()


class Order(unittest.TestCase):
    def test_a_round(self):
        actor = Actor(an_engine())
        actor.onload()  # Nothing is away.
        actor.update_weights(meta(1))
        actor.offload()
        actor.offload()  # As AReaL's offload, twice is once.
        actor.onload()
        actor.forward_backward_batch("batch", print, forward_only=True)
        self.assertEqual(actor.optimizer_step(), {"update_successful": 1.0})
        actor.engine.writing.assert_called_once()
        actor.save(meta())
        self.assertEqual(actor.calls, ["zero_grad", ("forward", "batch", True), "step", "save"])
        actor.engine.hand_over.assert_called_once()
        actor.engine.take_back.assert_called_once()

    def test_what_is_away_is_not_touched(self):
        actor = Actor(an_engine())
        actor.offload()
        for touch in (
            actor.optimizer_step,
            lambda: actor.forward_backward_batch([], None),
            lambda: actor.save(meta()),
        ):
            with self.assertRaisesRegex(WrongRequest, "needs memory that inference has\n  hint: call onload"):
                touch()
        actor.onload()
        with self.assertRaisesRegex(WrongRequest, "cannot be loaded"):
            actor.load(meta())
        actor.optimizer_step()

    def test_what_does_not_fit_is_said_before_memory_goes(self):
        actor = Actor(an_engine())
        actor.engine._check.side_effect = WrongRequest("w has left the job's memory")
        with self.assertRaisesRegex(WrongRequest, "w has left"):
            actor.offload()
        actor.engine.hand_over.assert_not_called()
        actor.save(meta())

    def test_a_failed_hand_over_is_raised_once_and_the_memory_comes_back(self):
        actor = Actor(an_engine())
        actor.engine.hand_over.side_effect = EngineLost("rank 0 has gone")
        with self.assertLogs("awex_colocate.areal", "ERROR") as log:
            actor.offload()
            with self.assertRaisesRegex(EngineLost, "rank 0 has gone"):
                actor.onload()
        self.assertIn("rank 0 has gone", log.output[0])
        actor.engine.take_back.assert_not_called()
        actor.onload()
        actor.engine.take_back.assert_called_once()
        actor.optimizer_step()

    def test_an_update_that_nobody_gets_is_no_update(self):
        actor = Actor(an_engine())
        actor.update_weights(meta(7))
        with self.assertRaisesRegex(WrongRequest, "version 7 was announced .*, and never handed over"):
            actor.optimizer_step()
        actor.offload()
        actor.onload()
        actor.optimizer_step()

    def test_lora_is_refused(self):
        with self.assertRaisesRegex(WrongRequest, "LoRA"):
            Actor(an_engine()).update_weights(meta(use_lora=True))

    def test_a_job_that_leaves_memory_where_it_is_is_refused(self):
        actor = Actor(an_engine())
        actor.engine.memory.return_value.is_mapped = True
        with self.assertLogs("awex_colocate.areal", "ERROR"):
            actor.offload()
            with self.assertRaisesRegex(WrongRequest, "--no-offload"):
                actor.onload()


class Configurations(unittest.TestCase):
    def setUp(self):
        for patch in supposed():
            patch.start()
        self.addCleanup(mock.patch.stopall)

    def test_those_that_can_be(self):
        plugin.refuse_trainer(a_config())
        other = types.SimpleNamespace(type="colocation", target="actor")
        separate = types.SimpleNamespace(type=Strategy.separation, target=None)
        plugin.refuse_trainer(
            a_config(**{"rollout.scheduling_strategy": other, "actor.scheduling_strategy": separate})
        )
        plugin.refuse_trainer(a_config(**{"actor.megatron.ddp.overlap_param_gather": True}))  # Of no use there.

    def test_those_that_cannot(self):
        for changes, word in (
            ({"actor.use_lora": True}, "LoRA"),
            ({"actor.optimizer": None}, "actor.optimizer.type is None"),
            ({"actor.optimizer.type": "adam_bf16"}, "actor.optimizer.type is 'adam_bf16'"),
            ({"actor.fsdp.offload_params": True}, "offload_params"),
            ({"actor.fsdp.per_layer_optim_step": True}, "per_layer_optim_step"),
            ({"actor._version": "v2"}, "actor._version is 'v2'"),
            ({"rollout._version": "v2"}, "rollout._version is 'v2'"),
            ({"rollout.backend": "vllm:d2"}, "rollout.backend is 'vllm:d2'"),
            ({"actor.scheduling_strategy": None}, "not on the same GPUs"),
            ({"actor.scheduling_strategy.target": "ref"}, "not on the same GPUs"),
            ({"actor.backend": "megatron:d2", "actor.megatron.ddp.overlap_param_gather": True}, "overlap_param"),
            ({"actor.backend": "megatron:d2", "actor.megatron.ddp.use_distributed_optimizer": False}, "distributed"),
            ({"actor.backend": "megatron:d2", "actor.megatron.use_precision_aware_optimizer": True}, "precision_aware"),
        ):
            with self.assertRaisesRegex(WrongRequest, word):
                plugin.refuse_trainer(a_config(**changes))

    def test_other_versions_are_refused_by_name(self):
        for found in ("1.0.3", "2.0.1", "2.1.0", "0.5.3", ""):
            plugin.found_version.return_value = found
            with self.assertRaisesRegex(WrongRequest, rf"for AReaL 1.0.4 to 2.0.0; {found or 'none'} is installed"):
                plugin.refuse_trainer(a_config())

    def test_workers_are_told_of_the_job(self):
        specs = [types.SimpleNamespace(env_vars={"OTHER": "1"})]
        plugin.spread(specs)
        want = {"OTHER": "1", "AWEX_COLOCATE_JOB": "dir", "AWEX_COLOCATE_TIMEOUT": "9"}
        self.assertEqual(specs[0].env_vars, want)
        with mock.patch.dict(os.environ, clear=True):
            with self.assertRaisesRegex(WrongRequest, "AWEX_COLOCATE_JOB is not set"):
                plugin.spread(specs)
            self.assertEqual(plugin.patience(), 600)
        for wrong in ("soon", "0", "-1", "inf", "nan"):
            with mock.patch.dict(os.environ, AWEX_COLOCATE_TIMEOUT=wrong):
                with self.assertRaisesRegex(WrongRequest, f"AWEX_COLOCATE_TIMEOUT={wrong} is no number of seconds"):
                    plugin.patience()


@contextlib.contextmanager
def stubs(**modules):
    """AReaL's modules, "areal_engine" for areal.engine, and awex_colocate's anew with them."""
    made = {}
    for name, contents in {"areal": {}, "areal_utils": {}, **modules}.items():
        made[name.replace("_", ".")] = types.ModuleType(name)
        made[name.replace("_", ".")].__dict__.update(contents)
    for name in ("trainer", "fsdp", "megatron"):
        made[f"awex_colocate.areal.{name}"] = None
    with mock.patch.dict(sys.modules, made):
        for name in ("trainer", "fsdp", "megatron"):
            del sys.modules[f"awex_colocate.areal.{name}"]
        yield


class Controller:
    def __init__(self, kind, config, scheduler):
        self.what = (kind, config, scheduler)

    def create_process_group(self, parallel_strategy):
        self.strategy = parallel_strategy


class TheirActor(TrainEngine):
    @classmethod
    def as_controller(cls, config, scheduler):
        return Controller(cls, config, scheduler)


class TheirTrainer:
    """PPOTrainer, as far as it makes actors."""

    def __init__(self, config, train_dataset=None, valid_dataset=None):
        self.config, self.scheduler, self.data = config, "scheduler", train_dataset
        alloc = types.SimpleNamespace(backend=config.actor.backend.split(":")[0], parallel="d2")
        self.actor = self._create_train_engine(config.actor, alloc)
        self.ref = self._create_train_engine(config.ref, alloc)

    def _create_train_engine(self, actor_config, alloc):
        return ("AReaL's own", actor_config)


class Classes(unittest.TestCase):
    def setUp(self):
        for patch in supposed():
            patch.start()
        self.addCleanup(mock.patch.stopall)

    def made(self, config, trainer=TheirTrainer, spmd=False):
        """The trainer, and the module of its actor. PyTorch's side is none here."""
        own = {"torch": mock.MagicMock(), "megatron": mock.MagicMock()}
        spec = types.SimpleNamespace(env_vars={})
        config.actor.scheduling_spec, config.rollout.scheduling_spec, config.ref = (spec,), (spec,), "ref"
        with stubs(
            areal={"PPOTrainer": trainer},
            areal_engine={"FSDPPPOActor": TheirActor, "MegatronPPOActor": TheirActor},
            areal_utils_environ={"is_single_controller": lambda: not spmd},
        ):
            with mock.patch.dict(sys.modules, {f"awex_colocate.{name}": one for name, one in own.items()}):
                with mock.patch.multiple(awex_colocate, create=True, **own):
                    from awex_colocate.areal.trainer import PPOTrainer

                    found = PPOTrainer(config, "data")
        self.assertEqual(spec.env_vars["AWEX_COLOCATE_JOB"], "dir")
        return found, own

    def test_the_actor_is_ours_and_the_reference_areals(self):
        for backend, name in (("fsdp", "FSDPPPOActor"), ("megatron", "MegatronPPOActor")):
            config = a_config(**{"actor.backend": f"{backend}:d2"})
            trainer, own = self.made(config)
            kind = trainer.actor.what[0]
            # By this AReaL's workers find it.
            self.assertEqual((kind.__module__, kind.__name__), (f"awex_colocate.areal.{backend}", name))
            self.assertEqual(kind.__mro__[1:3], (plugin.Colocated, TheirActor))
            self.assertEqual(trainer.actor.what[1:], (config.actor, "scheduler"))
            self.assertEqual((trainer.actor.strategy, trainer.data), ("d2", "data"))
            self.assertEqual(trainer.ref, ("AReaL's own", "ref"))
            actor, engine = kind(), mock.Mock()
            actor.model = ["chunk"]
            self.assertEqual(set(actor._needs()), {"weights", "optimizer"})
            actor._adopt(engine)
            if backend == "fsdp":
                engine.adopt.assert_called_once_with(actor.model)
                engine.adopt_optimizer.assert_called_once_with("some")
            else:
                own["megatron"].adopt.assert_called_once_with(engine, ["chunk"], "some")

    def test_what_cannot_be_is_refused(self):
        with self.assertRaisesRegex(WrongRequest, "SPMD"):
            self.made(a_config(), spmd=True)
        with self.assertRaisesRegex(WrongRequest, "makes its actor in a way not known here"):
            self.made(a_config(), trainer=type("PPOTrainer", (), {}))
        with self.assertRaisesRegex(WrongRequest, "actor.backend is 'archon'"):
            self.made(a_config(**{"actor.backend": "archon:d2"}))
        with self.assertRaisesRegex(WrongRequest, "LoRA"):
            self.made(a_config(**{"actor.use_lora": True}))


# With a real job


def zero_and_declare(engine):
    """Both begin with the same weights."""
    engine.memory("weights").view()[:] = bytes(engine.memory("weights").bytes)
    for place in engine.layout():
        engine.declare(place.name, place.dtype, place.rows, place.cols, place.offset)


def digest(engine):
    view = engine.memory("weights").view()
    return hashlib.sha1(b"".join(view[t.offset : t.offset + t.bytes] for t in engine.layout())).hexdigest()


class WritingEngine(TrainEngine):
    def optimizer_step(self):
        """Makes weights that nobody else can know."""
        memory = self._engine().memory("weights").view()
        for place in self._engine().layout():
            block = os.urandom(min(place.bytes, 4096))
            memory[place.offset : place.offset + len(block)] = block


class WritingActor(plugin.Colocated, WritingEngine):
    device = "host:0"
    config = a_config().actor

    def _needs(self):
        return {"optimizer": 4096}

    def _adopt(self, engine):
        zero_and_declare(engine)

    def digest(self):
        return digest(self._engine())


class Rollout:
    """SGLang's scheduler, as its plugin sees it."""

    def __init__(self):
        engine = awex_colocate.attach("inference", plugin.job(), device="host:0")
        zero_and_declare(engine)
        sglang_plugin._engine = engine
        self.request = types.SimpleNamespace(tags=None)
        self.memory_saver_adapter = types.SimpleNamespace(enabled=False)

    def is_fully_idle(self):
        return True

    def flush_cache(self):
        pass

    def offload(self):
        sglang_plugin._release(None, self, self.request)

    def onload(self):
        sglang_plugin._resume(None, self, self.request)

    def digest(self):
        return digest(sglang_plugin._engine)


def serve(worker):
    """Calls what comes in by name, until there is no more."""
    with mock.patch.object(sglang_plugin, "_struct", return_value="done"):
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            if name == "update_weights":
                arguments = [meta(*arguments)]
            print(json.dumps(getattr(worker, name)(*arguments)), flush=True)


class Worker:
    """A worker's process, called as AReaL's controllers do: the next call comes when this one has returned."""

    def __init__(self, role):
        self.process = subprocess.Popen(
            [sys.executable, __file__, role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __getattr__(self, name):
        def call(*arguments):
            self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            assert answer, f"{name} has ended its worker"
            return json.loads(answer)

        return call


class WithAJob(unittest.TestCase):
    def test_a_loop_in_areals_order(self):
        mpirun, program = ARGUMENTS
        with tempfile.TemporaryDirectory() as folder:
            job = str(Path(folder, "job"))
            os.environ.update(AWEX_COLOCATE_JOB=job, AWEX_COLOCATE_TIMEOUT="60", LOCAL_RANK="0")
            command = [
                mpirun, "--oversubscribe", "--bind-to", "none", "-np", "2", program, "serve", "--job", job,
                "--model", "preset:tiny-dense", "--trainer", "hf", "--inference", "hf", "--backend", "host",
                "--attach", "trainer,inference",
            ]  # fmt: skip
            with open(Path(folder, "log"), "w") as log:
                serving = subprocess.Popen(command, stdout=log, stderr=log)
            actor = Worker("actor")
            actor.initialize()
            rollout = Worker("rollout")
            try:
                self.loop(actor, rollout)
                subprocess.run([program, "stop", "--job", job], check=True)
                self.assertEqual(serving.wait(60), 0, Path(folder, "log").read_text())
            finally:
                for process in (actor.process, rollout.process, serving):
                    process.kill()
                    process.communicate()

    def loop(self, actor, rollout):
        rollout.offload()
        actor.offload()
        weights = None
        for version in range(1, UPDATES + 1):
            rollout.onload()
            if weights is not None:
                self.assertEqual(rollout.digest(), weights, "served again, without another hand-over")
            rollout.offload()
            actor.onload()
            if weights is not None:
                self.assertEqual(actor.digest(), weights, "as they went")
            actor.optimizer_step()
            new = actor.digest()
            self.assertNotEqual(new, weights)
            weights = new
            actor.update_weights(version)
            actor.save("checkpoint")
            actor.offload()
            rollout.onload()  # To evaluate.
            self.assertEqual(rollout.digest(), weights, f"version {version}")
            rollout.offload()


if __name__ == "__main__":
    if sys.argv[1] == "actor":
        with mock.patch.object(plugin, "found_version", return_value=plugin.NEWEST):
            serve(WritingActor())
    elif sys.argv[1] == "rollout":
        serve(Rollout())
    else:
        ARGUMENTS = sys.argv[1:3]
        unittest.main(argv=sys.argv[:1])
