#!/usr/bin/env python3
"""No process of a run outlives it, however the run ends: programs that stand in for mpirun, with a rank
that has a process group of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from unittest import mock

import mpi_run
import sessions

# Takes mpirun's arguments, starts a rank that says that it is there, and ends as told.
LAUNCHER = """#!/bin/sh
{python} -c 'import os, time; os.setpgid(0, 0); print("here", flush=True); {rank}; time.sleep(60)' &
{end}
"""


class Sessions(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.launcher = pathlib.Path(folder.name, "mpirun")
        self.token = uuid.uuid4().hex
        environment = mock.patch.dict(os.environ, AWEX_SESSIONS_TEST=self.token)
        environment.start()
        self.addCleanup(environment.stop)

    def write_launcher(self, end, rank="pass"):
        self.launcher.write_text(LAUNCHER.format(python=sys.executable, rank=rank, end=end),
                                 encoding="utf-8")
        self.launcher.chmod(0o755)

    def run_launcher(self, limit_s, disturb=None):
        return mpi_run.mpi_run(str(self.launcher), 1, ["program"], limit_s, disturb)

    def processes(self):
        return mpi_run.processes_with(self.token)

    def wait_for_processes(self, count):
        give_up = time.monotonic() + 60
        while len(self.processes()) < count and time.monotonic() < give_up:
            time.sleep(0.01)
        self.assertGreaterEqual(len(self.processes()), count)

    def test_a_run_that_is_late_leaves_none_and_gives_its_output(self):
        self.write_launcher("wait")
        with self.assertRaises(TimeoutError) as late:
            self.run_launcher(4)
        self.assertIn("here", str(late.exception))
        self.assertEqual(self.processes(), [])

    def test_a_process_that_ends_while_all_are_killed_is_no_error(self):
        kill = os.kill

        def kill_what_is_gone(pid, number):
            kill(pid, number)
            raise ProcessLookupError

        self.write_launcher("wait")
        with mock.patch("os.kill", kill_what_is_gone), self.assertRaises(TimeoutError):
            self.run_launcher(4)
        self.assertEqual(self.processes(), [])

    def test_a_disturbance_that_fails_leaves_none(self):
        self.write_launcher("wait")

        def disturb(_):
            self.wait_for_processes(2)
            raise ValueError("on purpose")

        with self.assertRaises(ValueError):
            self.run_launcher(60, disturb)
        self.assertEqual(self.processes(), [])

    def test_what_the_launcher_leaves_is_told_and_ended(self):
        self.write_launcher("sleep 1", rank="os.close(1); os.close(2)")
        run = self.run_launcher(30)
        self.assertEqual(run.code, 0)
        self.assertRegex(" ".join(run.left), r"^process \d+$")
        self.assertEqual(self.processes(), [])

    def test_signals_to_the_program_end_the_session(self):
        self.write_launcher("wait")
        script = f"import sessions; sessions.run_in_session(['{self.launcher}'], 60)"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number.name), subprocess.Popen(
                    [sys.executable, "-c", script], cwd=os.path.dirname(sessions.__file__),
                    stderr=subprocess.DEVNULL) as program:
                self.wait_for_processes(3)
                program.send_signal(number)
                self.assertNotEqual(program.wait(timeout=60), 0)
                self.assertEqual(self.processes(), [])

    def test_a_signal_while_the_session_starts_leaves_none(self):
        self.write_launcher("wait")
        start = subprocess.Popen.__init__

        def start_and_be_told_to_end(*arguments, **options):
            start(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

        with mock.patch("subprocess.Popen.__init__", start_and_be_told_to_end), self.assertRaises(SystemExit):
            self.run_launcher(60)
        self.assertEqual(self.processes(), [])

    def test_a_signal_while_the_session_is_ended_leaves_none(self):
        self.write_launcher("sleep 1")
        end = sessions.kill_session

        def be_told_to_end_and_end(leader):
            os.kill(os.getpid(), signal.SIGTERM)
            end(leader)

        with mock.patch("sessions.kill_session", be_told_to_end_and_end), self.assertRaises(SystemExit), \
                sessions.session_of([str(self.launcher)]):
            pass
        self.assertEqual(self.processes(), [])

    def test_signals_mean_what_they_did_before(self):
        before = signal.getsignal(signal.SIGTERM)
        self.write_launcher("kill $!; exit 3")
        self.assertEqual(sessions.run_in_session([str(self.launcher)], 30).returncode, 3)
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)


if __name__ == "__main__":
    unittest.main()
