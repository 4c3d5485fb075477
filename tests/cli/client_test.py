"""The commands with --job, against a stand-in for the job that they talk to.

usage: client_test.py BINARY
"""

import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import hears_signal  # noqa: E402
from resident_job import wait_until  # noqa: E402
from stand_in_job import StandInJob, done, error, phase  # noqa: E402

BINARY = ""
COMMANDS = ("update", "offload", "transfer", "resume")
QUEUED, STARTED = {"event": "queued", "ahead": 0}, {"event": "started"}
STATUS = {"schema_version": 1, "activity": "idle", "since_s": 1.0, "commands": 3, "failures": 0, "queued": 0,
          "content": "committed", "committed_version": 3, "memory": {}, "ranks": [], "last_error": None}


def status_text(**changes):
    return json.dumps({**STATUS, **changes}) + "\n"


class ClientTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.at = pathlib.Path(directory.name)
        self.directory = str(self.at / "job")

    def job(self, *events):
        """A job that answers every request with the same events."""
        return self.serve(lambda visit: visit.say(*events))

    def serve(self, answer):
        job = StandInJob(self.directory, answer)
        self.addCleanup(job.remove)
        return job

    def start(self, command, *arguments, **options):
        process = subprocess.Popen([BINARY, command, "--job", self.directory, *arguments], text=True,
                                   **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def ended(self, process, code):
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, code, err)
        told = len(re.findall(r"(?m)^error:", err or ""))
        self.assertEqual(told, 1 if code > 0 else 0, err)
        return out, err

    def run_client(self, command, *arguments, code=0, **options):
        return self.ended(self.start(command, *arguments, **options), code)

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), end, "it has not come")
            time.sleep(0.01)

    def read_json(self, name):
        return json.loads((self.at / name).read_text(encoding="utf-8"))


class Requests(ClientTest):
    def test_every_command_asks_for_what_it_says(self):
        job = self.job(done())
        plain = {"versions": 1, "verify": "digest", "train": True, "scope": None}
        asked = [
            (("update",), "hand_over", {}),
            (("update", "--no-train", "--verify", "off"), "hand_over", {"train": False, "verify": "off"}),
            (("offload",), "offload", {}),
            (("offload", "--tag", "optimizer"), "offload", {"scope": {"role": None, "tags": ["optimizer"]}}),
            (("offload", "--role", "trainer"), "offload",
             {"scope": {"role": "trainer", "tags": ["weights", "optimizer", "kv_cache"]}}),
            (("transfer", "--verify", "full"), "transfer", {"verify": "full"}),
            (("resume",), "take_back", {}),
            (("resume", "--role", "inference", "--tag", "kv_cache,weights"), "resume",
             {"scope": {"role": "inference", "tags": ["weights", "kv_cache"]}}),
        ]
        for (errand, *options), command, changes in asked:
            self.run_client(errand, *options)
            request = job.requests[-1]
            self.assertEqual((request["protocol"], request["errand"]), (1, errand))
            self.assertEqual(request["command"], {"command": command, **plain, **changes})
            self.assertFalse(request["cancel_on_disconnect"])
            self.assertEqual(request["rendering"], {"table": True, "unicode": request["rendering"]["unicode"],
                                                    "color": False, "json": False, "trace": False})
        self.assertEqual(len(job.requests), len(asked))

    def test_the_job_renders_what_goes_to_files_and_stdout(self):
        job = self.job(QUEUED, STARTED, done(table="the table\n", json='{"ok": true}\n', trace='{"x": []}\n'))
        out, _ = self.run_client("update", "--json", str(self.at / "r.json"), "--trace", str(self.at / "t.json"),
                                 "--color", "always", "--on-disconnect", "cancel", env={**os.environ, "LC_ALL": "C.UTF-8"})
        self.assertEqual(out, "the table\n")
        self.assertEqual((self.at / "r.json").read_text(), '{"ok": true}\n')
        self.assertEqual((self.at / "t.json").read_text(), '{"x": []}\n')
        self.assertEqual(job.requests[-1]["rendering"],
                         {"table": True, "unicode": True, "color": True, "json": True, "trace": True})
        self.assertTrue(job.requests[-1]["cancel_on_disconnect"])
        out, _ = self.run_client("update", "--json", "-", env={**os.environ, "LC_ALL": "C"})
        self.assertEqual(out, '{"ok": true}\n')
        self.assertEqual(job.requests[-1]["rendering"],
                         {"table": False, "unicode": False, "color": False, "json": True, "trace": False})

    def test_a_config_file_says_the_same(self):
        job = self.job(done())
        config = self.at / "run.json"
        config.write_text(json.dumps({"job": self.directory, "no-train": True, "verify": "full"}))
        result = subprocess.run([BINARY, "update", "--config", str(config)], timeout=60, check=False)
        self.assertEqual(result.returncode, 0)
        self.assertEqual((job.requests[0]["command"]["train"], job.requests[0]["command"]["verify"]), (False, "full"))
        config.write_text(json.dumps({"model": "preset:tiny-dense", "backend": "host"}))
        _, err = self.run_client("update", "--config", str(config), code=2)
        self.assertIn("--model, --backend", err)
        for command in ("status", "stop", "restore"):
            config.write_text(json.dumps({"job": str(self.at / "none")}))
            result = subprocess.run([BINARY, command, "--config", str(config)], timeout=60, check=False,
                                    stderr=subprocess.PIPE, text=True)
            self.assertEqual(result.returncode, 2)
            self.assertIn("no job serves", result.stderr)

    def test_options_of_the_other_kind_are_refused_by_name(self):
        job = self.job(done())
        for command in COMMANDS:
            _, err = self.run_client(command, "--model", "m", "--timeout", "3s", "--share-gpu", code=2)
            self.assertIn("error: --model, --share-gpu, --timeout are for a job that mpirun starts", err)
        for options in (("--versions", "2"), ("--role", "trainer"), ("--no-offload",), ("--limits", "off")):
            _, err = self.run_client("update", *options, code=2)
            self.assertIn(f"error: {options[0]} is for a job that mpirun starts", err)
        for options, names in ((("--wait", "3s"), "--wait is"), (("--no-train",), "--no-train is"),
                               (("--on-disconnect", "cancel", "--no-train"), "--no-train, --on-disconnect are")):
            result = subprocess.run([BINARY, "update", "--model", "preset:tiny-dense", *options], timeout=60,
                                    check=False, stderr=subprocess.PIPE, text=True)
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"error: {names} for a resident job, and --job is missing", result.stderr)
        self.assertEqual(job.requests, [])

    def test_wrong_values_are_refused_before_the_job_is_asked(self):
        job = self.job(done())
        wrong = (
            ("offload", ("--tag", "weight"), '--tag: "weight" is none of weights, optimizer, kv_cache'),
            ("offload", ("--tag", "weights,"), '--tag: "" is none of'),
            ("offload", ("--tag", ""), '--tag: "" is none of'),
            ("transfer", ("--tag", "weights"), 'unknown option "--tag"'),
            ("resume", ("--no-train",), 'unknown option "--no-train"'),
            ("update", ("--on-disconnect", "die"), '"die" is none of finish, cancel'),
            ("update", ("--wait", "-1s"), "--wait: "),
            ("update", ("--trace", "-"), "--trace"),
            ("update", ("--trace", str(self.at / "a"), "--json", str(self.at / "a")), "both name"),
            ("status", ("--watch", "never"), "--watch: "),
            ("stop", ("--wait", "1s"), 'unknown option "--wait"'),
        )
        for command, options, says in wrong:
            _, err = self.run_client(command, *options, code=2)
            self.assertIn(says, err)
        for command in (*COMMANDS, "status", "stop", "restore"):
            result = subprocess.run([BINARY, command, "--job", ""], timeout=60, check=False, stderr=subprocess.PIPE)
            self.assertEqual(result.returncode, 2)
            self.assertIn(b"--job", result.stderr)
        self.assertEqual(job.requests, [])

    def test_help_fits_80_columns_and_groups_options(self):
        for command in ("", *COMMANDS, "status", "stop", "restore", "plan", "digest", "checkpoint"):
            result = subprocess.run([BINARY, *command.split(), "--help"], timeout=60, check=True,
                                    stdout=subprocess.PIPE, text=True)
            self.assertEqual([line for line in result.stdout.splitlines() if len(line) > 80], [])
            self.assertNotIn("\n\n\n", result.stdout)
            if command in COMMANDS:
                under, alone = (result.stdout.index(words) for words in ("\nUnder mpirun", "\nWith --job"))
                self.assertLess(result.stdout.index("  --verify"), under)
                self.assertTrue(under < result.stdout.index("  --model") < alone)
                self.assertLess(alone, result.stdout.index("  --on-disconnect"))


class Ends(ClientTest):
    def test_a_failed_command_is_told_as_if_it_had_run_here(self):
        failure = error(3, 'tensor "a" differs', "look at its shard", rank=1, host="alpha", gpu="0",
                        role="inference", phase="verify")
        self.job(STARTED, done(3, error=failure, table="the table\n", json='{"ok": false}\n'))
        out, err = self.run_client("update", "--json", str(self.at / "r.json"), code=3)
        self.assertEqual(out, "the table\n")
        self.assertEqual(err, 'error: rank 1 (inference, host alpha, gpu 0): in phase verify: tensor "a" differs\n'
                              "  hint: look at its shard\n")
        self.assertEqual(self.read_json("r.json"), {"ok": False})

    def test_exit_codes_are_the_jobs(self):
        for code in range(6):
            job = self.job(done(code, error=error(code, "so it is") if code else None))
            self.run_client("resume", code=code)
            job.close()

    def test_what_the_job_does_not_render_is_a_report_all_the_same(self):
        self.job(done(1, error=error(1, "the job has ended")))
        _, err = self.run_client("offload", "--json", str(self.at / "r.json"), code=1)
        self.assertIn("error: the job has ended", err)
        report = self.read_json("r.json")
        self.assertEqual((report["command"], report["ok"], report["exit_code"], report["error"]["message"]),
                         ("offload", False, 1, "the job has ended"))
        out, _ = self.run_client("offload", "--json", "-", code=1)
        self.assertEqual(json.loads(out), report)

    def test_where_no_job_is_the_request_is_wrong(self):
        for command in (*COMMANDS, "status", "stop", "restore"):
            started = time.monotonic()
            _, err = self.run_client(command, code=2)
            self.assertIn(self.directory, err)
            self.assertLess(time.monotonic() - started, 10)
        self.run_client("update", "--json", str(self.at / "r.json"), code=2)
        self.assertEqual(self.read_json("r.json")["exit_code"], 2)
        job = self.job(done())
        job.end("stopped by a client", 0)
        _, err = self.run_client("update", code=2)
        self.assertIn("stopped by a client", err)

    def test_a_client_can_wait_for_a_job_to_come(self):
        process = self.start("update", "--wait", "30s")
        time.sleep(0.3)
        self.assertIsNone(process.poll())
        job = self.job(done(table="it has come\n"))
        out, _ = self.ended(process, 0)
        self.assertEqual(out, "it has come\n")
        self.assertEqual(len(job.requests), 1)
        job.close()
        started = time.monotonic()
        self.run_client("update", "--wait", "500ms", code=2)
        self.assertGreaterEqual(time.monotonic() - started, 0.5)

    def test_a_job_that_dies_leaves_a_report_and_exit_code_5(self):
        job = self.serve(lambda visit: (visit.say(QUEUED, STARTED), job.close()))
        _, err = self.run_client("update", "--json", str(self.at / "r.json"), code=5)
        self.assertIn("ended without", err)
        self.assertEqual(self.read_json("r.json")["error"]["code"], 5)

    def test_files_tell_from_the_start_that_nothing_has_been_heard(self):
        go = threading.Event()
        self.serve(lambda visit: (visit.say(STARTED), go.wait(60), visit.say(done(json='{"ok": true}\n'))))
        process = self.start("update", "--json", str(self.at / "r.json"))
        self.until((self.at / "r.json").exists)
        report = self.read_json("r.json")
        self.assertEqual((report["ok"], report["error"]["message"]), (False, "the command has not ended"))
        go.set()
        self.ended(process, 0)
        self.assertEqual(self.read_json("r.json"), {"ok": True})

    def test_outputs_that_cannot_be_written_are_failures(self):
        job = self.job(done(table="t\n", json="j" * 100000))
        _, err = self.run_client("update", "--json", "/nonexistent/r.json", code=2)
        self.assertIn("/nonexistent/r.json", err)
        self.assertEqual(job.requests, [])
        for options, says in ((("--json", "/dev/full"), "/dev/full"), (("--json", str(self.at / "r.json")), "ulimit -f")):
            script = 'ulimit -f 4; exec "$@"'
            process = subprocess.Popen(["bash", "-c", script, "_", BINARY, "update", "--job", self.directory, *options],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            out, err = self.ended(process, 1)
            self.assertEqual(out, "t\n")
            self.assertIn(says, err)
        with open("/dev/full", "w", encoding="utf-8") as full:
            _, err = self.run_client("update", stdout=full, code=1)
        self.assertIn("stdout", err)

    def test_a_closed_stdout_is_a_failure_and_nothing_else_takes_its_place(self):
        job = self.job(done(table="the table\n", json='{"ok": true}\n'))
        fifo = self.at / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        for options in ((), ("--json", str(fifo))):
            process = subprocess.Popen(["bash", "-c", 'exec "$@" >&-', "_", BINARY, "update", "--job", self.directory,
                                        *options], stderr=subprocess.PIPE, text=True)
            _, err = self.ended(process, 1)
            self.assertIn("stdout", err)
        self.assertEqual([request["errand"] for request in job.requests], ["update", "update"])
        self.assertEqual(os.read(reader, 65536), b'{"ok": true}\n')


class Leaving(ClientTest):
    def busy(self, *events):
        """A job at a command that does not end; returns it and a started client."""
        heard = threading.Event()

        def answer(visit):
            visit.say(QUEUED, STARTED, *events)
            heard.set()
            visit.await_leaving()

        return self.serve(answer), heard

    def test_who_leaves_is_told_what_becomes_of_the_command(self):
        job, heard = self.busy()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for option, fate in (("finish", "the job has the update, and finishes it"),
                                 ("cancel", "the job has the update, and gives it up")):
                heard.clear()
                process = self.start("update", "--on-disconnect", option, "--json", str(self.at / "r.json"))
                self.assertTrue(heard.wait(60))
                time.sleep(0.1)
                process.send_signal(number)
                _, err = self.ended(process, code)
                self.assertIn(f"ended by {signal.Signals(number).name}: {fate}", err)
                self.assertTrue(job.visits[-1].gone.wait(60))
                report = self.read_json("r.json")
                self.assertEqual((report["ok"], report["exit_code"]), (False, code))

    def test_who_leaves_before_the_job_has_answered_is_not_told_that_it_has(self):
        process = self.start("update", "--wait", "60s")
        wait_until(lambda: hears_signal(process.pid, signal.SIGINT), 60, "it hears of signals")
        process.send_signal(signal.SIGINT)
        _, err = self.ended(process, 130)
        self.assertIn("the job has not answered; if it has the update, it finishes it", err)

    def test_a_second_interrupt_ends_at_once(self):
        _, heard = self.busy()
        fifo = self.at / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        with self.assertRaises(BlockingIOError):
            while True:
                os.write(reader, b"." * 4096)
        process = self.start("update", "--json", str(fifo))
        self.assertTrue(heard.wait(60))
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # it waits for the FIFO's reader
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, -signal.SIGINT)
        self.assertIn("ended by a second SIGINT", err)


class Progress(ClientTest):
    EVENTS = ({"event": "queued", "ahead": 2}, STARTED, phase("offload", "trainer", "optimizer"),
              phase("offload", "trainer", "optimizer", 2.0, 50_000_000_000), phase("commit"), phase("commit", seconds=0.5))

    def test_in_a_log_it_tells_who_comes_first(self):
        self.job(*self.EVENTS, done())
        self.assertEqual(self.run_client("update")[1], "update: queued, 2 other commands come first\n")
        self.assertEqual(self.run_client("update", "-q")[1], "")
        self.assertEqual(self.run_client("update", "-v")[1],
                         "update: queued, 2 other commands come first\n"
                         "update: offload trainer optimizer: 2.00 s, 50.0 GB, 25.00 GB/s\n"
                         "update: commit all: 500 ms\n")

    def test_on_a_terminal_one_line_moves_and_goes_away(self):
        self.job(*self.EVENTS, done(table="the table\n"))
        main, terminal = pty.openpty()
        self.addCleanup(os.close, main)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OMPI_")}
        process = self.start("update", stderr=terminal, env=environment)
        os.close(terminal)
        out, _ = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (0, "the table\n"))
        drawn = b""
        while select.select([main], [], [], 1)[0]:
            try:
                drawn += os.read(main, 65536)
            except OSError:
                break
        for text in (b"waiting for the job", b"queued, 2 other", b"offload trainer optimizer", b"commit all"):
            self.assertIn(b"\r\033[Kupdate: " + text, drawn)
        self.assertTrue(drawn.endswith(b"\r\033[K"))
        self.assertNotIn(b"\n", drawn)


class Status(ClientTest):
    def test_it_is_shown_for_people_and_given_as_json(self):
        job = self.job(done(status=status_text()))
        out, err = self.run_client("status")
        self.assertEqual(err, "")
        self.assertIn("job        idle for 1.00 s\n", out)
        self.assertIn("content    version 3, committed\n", out)
        out, _ = self.run_client("status", "--json", "-")
        self.assertEqual(out, status_text())
        out, _ = self.run_client("status", "--json", str(self.at / "s.json"))
        self.assertIn("job        idle", out)
        self.assertEqual((self.at / "s.json").read_text(), status_text())
        self.assertEqual({request["errand"] for request in job.requests}, {"status"})
        self.assertEqual({request["command"] is None for request in job.requests}, {True})

    def test_an_answer_that_is_none_is_an_error(self):
        self.job(done(status="no JSON"))
        _, err = self.run_client("status", code=1)
        self.assertIn("no JSON object", err)

    def watched(self, *options, **settings):
        self.now = status_text()
        job = self.serve(lambda visit: visit.say(done(status=self.now)))
        return job, self.start("status", "--watch", "20ms", *options, **settings)

    def test_in_a_log_a_watch_tells_changes_and_ends_with_the_job(self):
        job, process = self.watched()
        self.until(lambda: len(job.requests) >= 5)
        self.now = status_text(since_s=9.0)
        asked = len(job.requests)
        self.until(lambda: len(job.requests) >= asked + 5)
        self.now = status_text(activity="running", command="update")
        asked = len(job.requests)
        self.until(lambda: len(job.requests) >= asked + 3)
        job.end("stopped by a client", 0)
        out, err = self.ended(process, 0)
        self.assertEqual([line for line in out.splitlines() if line.startswith("job ")],
                         ["job        idle for 1.00 s", "job        running update for 1.00 s"])
        self.assertIn("stopped by a client", err)

    def test_a_watch_ends_with_what_the_job_ended_with(self):
        for end, code in ((lambda job: job.end("rank 3 was lost", 5), 5), (lambda job: job.end("SIGTERM", 1), 1),
                          (lambda job: job.close(), 5)):
            job, process = self.watched("--json", str(self.at / "s.json"))
            self.until(lambda: len(job.requests) >= 3)
            self.assertEqual(self.read_json("s.json"), STATUS)
            end(job)
            _, err = self.ended(process, code)
            self.assertIn("has ended", err)
            self.assertEqual(self.read_json("s.json")["exit_code"], code)

    def test_a_watch_is_left_by_an_interrupt_without_an_error(self):
        job, process = self.watched()
        self.until(lambda: job.requests)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.ended(process, 0)[1], "")

    def test_on_a_terminal_a_watch_redraws(self):
        main, terminal = pty.openpty()
        self.addCleanup(os.close, main)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OMPI_")}
        job, process = self.watched(stdout=terminal, env=environment)
        os.close(terminal)
        drawn = b""
        while drawn.count(b"\033[H\033[2Jjob") < 3:
            drawn += os.read(main, 65536)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)

    def test_a_watch_without_an_interval_has_one(self):
        job = self.job(done(status=status_text()))
        process = self.start("status", "--watch")
        self.until(lambda: len(job.requests) >= 2)
        process.send_signal(signal.SIGINT)
        self.ended(process, 0)


class StopAndRestore(ClientTest):
    def test_stop_returns_when_the_job_has_ended(self):
        def answer(visit):
            visit.say(QUEUED, done())
            time.sleep(0.5)
            job.end("stopped by a client", 0)

        job = self.serve(answer)
        _, err = self.run_client("stop")
        self.assertIsNotNone(job.record["ended_at"])
        self.assertIn("stopped by a client", err)
        self.assertEqual(job.requests[0]["errand"], "stop")

    def test_who_stops_a_job_that_another_has_stopped_first_has_what_was_wanted(self):
        def answer(visit, how, code):
            visit.say(QUEUED)
            job.record.update(ended_at="2026-01-02T04:00:00Z", end=how, exit_code=code)
            job.write_record()
            visit.say(done(1, error=error(1, "the job has ended")))

        for how, code, expected in (("stopped by a client", 0, 0), ("rank 3 was lost", 5, 1)):
            job = self.serve(lambda visit, how=how, code=code: answer(visit, how, code))
            self.run_client("stop", code=expected)

    def test_a_living_job_restores_itself(self):
        job = self.job(done(table="nothing is lost\n"))
        self.assertEqual(self.run_client("restore")[0], "nothing is lost\n")
        self.assertEqual(job.requests[0]["errand"], "restore")

    def test_of_a_job_that_ended_in_order_nothing_is_lost(self):
        self.job().end("stopped by a client", 0)
        out, err = self.run_client("restore")
        self.assertIn("nothing to restore", out)
        self.assertIn("stopped by a client", out)
        self.assertEqual(err, "")

    def test_what_went_with_a_lost_job_is_not_promised(self):
        for end in (lambda job: job.end("rank 3 was lost", 5), lambda job: job.close()):
            job = self.job()
            end(job)
            out, err = self.run_client("restore", code=1)
            self.assertEqual(out, "")
            self.assertIn("cannot be restored", err)
            self.assertIn("hint: ", err)


if __name__ == "__main__":
    BINARY = sys.argv[1]
    unittest.main(argv=sys.argv[:1], verbosity=2)
