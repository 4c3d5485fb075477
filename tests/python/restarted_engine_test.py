"""What a trainer that waits for restarts hears when inference is lost: restarted_engine_test.py MPIRUN PROGRAM.
AWEX_COLOCATE_LIBRARY is the library."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import awex_colocate
from awex_colocate import EngineLost, WrongRequest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support")]
from sessions import session_of  # noqa: E402

MPIRUN = PROGRAM = ""
PATIENCE_S = 60.0
PLAIN_ENGINE = HERE.parent / "cluster" / "plain_engine.py"
PLACE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0",
         "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


class RestartedEngine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.job = str(Path(folder.name) / "job")
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.serve = stack.enter_context(session_of(
            [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", "2", PROGRAM, "serve", "--job", self.job, "--model",
             "preset:tiny-dense", "--trainer", "hf", "--inference", "vllm:tp=1", "--backend", "host", "--limits", "off",
             "--attach", "trainer,inference"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ))  # fmt: skip
        self.start_inference()

    def start_inference(self):
        self.inference = subprocess.Popen(
            [sys.executable, str(PLAIN_ENGINE), "inference"], stdout=subprocess.DEVNULL,
            env={**os.environ, **PLACE, "AWEX_COLOCATE_JOB": self.job},
        )  # fmt: skip
        self.addCleanup(self.inference.wait)
        self.addCleanup(self.inference.kill)

    def kill_inference(self):
        self.inference.kill()
        self.inference.wait()

    def attach(self, **named):
        engine = awex_colocate.attach("trainer", self.job, device="host:0", timeout=PATIENCE_S, **named)
        self.addCleanup(engine.close)
        view = engine.memory("weights").view()
        view[:] = bytes(len(view))
        for place in engine.layout():
            engine.declare(place.name, place.dtype, place.rows, place.cols, place.offset)
        engine.seal()
        self.assertEqual(engine.hand_over(PATIENCE_S), 1)
        engine.take_back(PATIENCE_S)
        return engine

    def later(self, work):
        """Does what the loop of another process would, while a call waits."""
        timer = threading.Timer(1.0, work)
        timer.start()
        self.addCleanup(timer.join)

    def test_calls_that_wait_for_it_go_on_with_the_next(self):
        engine = self.attach(restart_timeout=PATIENCE_S)
        self.kill_inference()
        self.later(self.start_inference)
        self.assertEqual(engine.hand_over(PATIENCE_S), 2)
        self.kill_inference()
        self.later(self.start_inference)
        engine.take_back(PATIENCE_S)
        self.assertTrue(engine.memory("weights").is_mapped)
        self.assertEqual(engine.hand_over(PATIENCE_S), 3)

    def test_calls_that_do_not_wait_fail_at_once(self):
        engine = self.attach()
        self.kill_inference()
        begin = time.monotonic()
        with self.assertRaisesRegex(EngineLost, "inference"):
            engine.hand_over(PATIENCE_S)
        self.assertLess(time.monotonic() - begin, PATIENCE_S / 2)

    def test_a_time_that_is_none_is_refused(self):
        for seconds in (-1.0, float("nan")):
            with self.assertRaisesRegex(WrongRequest, "restart_timeout"):
                awex_colocate.attach("trainer", self.job, device="host:0", restart_timeout=seconds)

    def test_no_other_comes_in_that_time(self):
        engine = self.attach(restart_timeout=2.0)
        self.kill_inference()
        begin = time.monotonic()
        with self.assertRaisesRegex(EngineLost, "inference"):
            engine.hand_over(PATIENCE_S)
        self.assertGreaterEqual(time.monotonic() - begin, 2.0)

    def test_a_job_that_is_lost_is_not_waited_for(self):
        engine = self.attach(restart_timeout=10 * PATIENCE_S)
        self.kill_inference()
        self.later(lambda: os.kill(self.serve.pid, signal.SIGTERM))
        begin = time.monotonic()
        with self.assertRaises(EngineLost):
            engine.hand_over(PATIENCE_S)
        self.assertLess(time.monotonic() - begin, PATIENCE_S)


if __name__ == "__main__":
    MPIRUN, PROGRAM = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
