"""What programs learn of a job: lines of JSON, metrics, traces.

usage: monitoring_test.py BINARY MPIEXEC
"""

import collections
import datetime
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BINARY = ""
MPIEXEC = ""
JOB = ("--backend", "host", "--kv-cache", "1MiB", "--limits", "off")
MODEL = ("--model", "preset:tiny-dense")
LINE_KEYS = ["time", "level", "rank", "host", "event", "message"]
SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)')


def strict_json(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON: {line}")

    def once(pairs):
        assert len(dict(pairs)) == len(pairs), f"a key twice: {line}"
        return dict(pairs)

    return json.loads(line, parse_constant=refuse, object_pairs_hook=once)


def events_of(text):
    """The lines of a log, each of which is one object with everything that lines have."""
    found = []
    for line in text.splitlines():
        event = strict_json(line)
        assert list(event)[:6] == LINE_KEYS, line
        assert event["level"] in ("debug", "info", "warning", "error"), line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"]), line
        assert event["host"] and event["event"] and isinstance(event["message"], str), line
        found.append(event)
    return found


def metrics_of(text):
    """{(name, labels): value} of a textfile, which must be as Prometheus' text format 0.0.4 and its naming ask."""
    assert text.endswith("\n")
    found, types, helps, finished, current = {}, {}, set(), set(), None
    for line in text.splitlines():
        head = re.fullmatch(r"# (HELP|TYPE) ([a-z][a-z0-9_]*) (.+)", line)
        if head:
            kind, name, rest = head.groups()
            assert name not in (helps if kind == "HELP" else types), f"{kind} twice: {line}"
            if name != current:
                finished.add(current)
                current = name
            assert name not in finished, f"not together: {line}"
            if kind == "HELP":
                helps.add(name)
            else:
                assert rest in ("counter", "gauge"), line
                types[name] = rest
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, f"no line of the format: {line!r}"
        name, labels, value = sample.groups()
        assert name == current and name in types and name in helps, f"no TYPE or HELP before: {line}"
        pairs, at = [], 0
        while labels and at < len(labels):
            label = LABEL.match(labels, at)
            assert label, f"labels: {line!r}"
            pairs.append(label.groups()[:2])
            at = label.end()
        assert len(dict(pairs)) == len(pairs), f"a label twice: {line}"
        assert (name, frozenset(pairs)) not in found, f"a sample twice: {line}"
        assert math.isfinite(float(value)), line
        found[name, frozenset(pairs)] = float(value)
    for name, kind in types.items():
        assert name.startswith("awex_"), name
        assert name.endswith("_total") == (kind == "counter"), f"{name} is a {kind}"
        assert not re.search(r"(milli|micro|kilo|mega|giga|_ms|_mb|_gb)", name), f"{name} has no base unit"
        if kind == "counter":
            assert all(value >= 0 for (other, _), value in found.items() if other == name)
    return found


class Textfile:
    """The metrics of a file, by name and labels."""

    def __init__(self, path):
        self.values = metrics_of(pathlib.Path(path).read_text(encoding="utf-8"))

    def __getitem__(self, name):
        return self.values[f"awex_{name}", frozenset()]

    def of(self, name, **labels):
        return self.values[f"awex_{name}", frozenset(labels.items())]

    def labels(self, name):
        return [dict(labels) for other, labels in self.values if other == f"awex_{name}"]


def run(*arguments, ranks=0):
    """The binary; with ranks, what each of them writes to its own stderr, not what mpirun says."""
    if not ranks:
        return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=120, check=False)
    with tempfile.TemporaryDirectory() as directory:
        script = f'exec "$@" 2>"{directory}/$OMPI_COMM_WORLD_RANK"'
        done = subprocess.run([MPIEXEC, "--oversubscribe", "-n", str(ranks), "sh", "-c", script, "_", BINARY,
                               *arguments], capture_output=True, text=True, timeout=120, check=False)
        done.stderr = "".join(path.read_text() for path in sorted(pathlib.Path(directory).iterdir()))
        return done


class Resident:
    """A resident job of two ranks with its log, until the end of a with statement."""

    def __init__(self, directory, *options):
        self.job = os.path.join(directory, "job")
        self.paths = {name: os.path.join(directory, name) for name in ("stdout", "stderr0", "stderr1")}
        script = f'exec "$@" 2>"{directory}/stderr$OMPI_COMM_WORLD_RANK"'
        with open(self.paths["stdout"], "wb") as stdout:
            self.process = subprocess.Popen(
                [MPIEXEC, "--oversubscribe", "-n", "2", "sh", "-c", script, "_", BINARY, "serve", "--job", self.job,
                 *MODEL, *JOB, *options], stdout=stdout, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def text(self, name):
        return pathlib.Path(self.paths[name]).read_text(encoding="utf-8")


class Log(unittest.TestCase):
    def test_a_whole_run(self):
        done = run("update", *MODEL, *JOB, "--versions", "2", "--log-format", "json", ranks=2)
        self.assertEqual(done.returncode, 0, done.stderr)
        events = events_of(done.stderr)
        names = collections.Counter(event["event"] for event in events)
        self.assertEqual((names["started"], names["loaded"], names["version"]), (1, 1, 2))
        self.assertGreater(names["loading"] + names["loaded"], 0)
        self.assertEqual([e["version"] for e in events if e["event"] == "version" and e["committed"]], [1, 2])
        phases = [e for e in events if e["event"] == "phase"]
        self.assertEqual({e["version"] for e in phases}, {1, 2})
        self.assertLessEqual({"offload", "transfer", "commit", "train"}, {e["phase"] for e in phases})
        for event in phases:
            self.assertGreaterEqual(event["seconds"], 0)
            self.assertEqual((event["rank"], type(event["bytes"])), (0, int))
        times = [event["time"] for event in events]
        self.assertEqual(times, sorted(times))
        age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(times[-1].replace("Z", "+00:00"))
        self.assertLess(abs(age.total_seconds()), 600)
        self.assertIn("committed  version 2", done.stdout)  # the report stays a report

    def test_quiet_and_verbose(self):
        quiet = run("update", *MODEL, *JOB, "-q", "--log-format=json", ranks=2)
        self.assertEqual((quiet.returncode, quiet.stderr), (0, ""))
        events_of(run("update", *MODEL, *JOB, "-v", "--log-format", "json", ranks=2).stderr)

    def test_failures(self):
        with tempfile.TemporaryDirectory() as directory:
            odd = os.path.join(os.fsencode(directory), b'a "b" \\ \n\t\x01\xff \xc3\xa9')
            os.mkdir(odd)
            config = os.path.join(directory, "run.json")
            pathlib.Path(config).write_text('{"log-format": "json", "versions": 0}', encoding="utf-8")
            for code, arguments, ranks in (
                    (2, ("update", "--model", odd), 0), (2, ("update", "--model", odd), 2), (2, ("updat",), 0),
                    (2, ("update", "--frob"), 0), (2, ("update", "--color", "pink"), 0), (2, ("plan", "--model", odd), 0),
                    (2, ("digest", odd), 0), (2, ("status", "--job", odd), 0), (2, ("update", *MODEL, *JOB), 1),
                    (2, ("update", *MODEL, *JOB, "--trainer", "megatron:tp=3"), 2),
                    (4, ("update", *MODEL, *JOB, "--json", "FIFO", "--timeout", "1s"), 2)):
                fifo = os.path.join(directory, "fifo")
                if "FIFO" in arguments and not os.path.exists(fifo):
                    os.mkfifo(fifo)
                arguments = tuple(fifo if word == "FIFO" else word for word in arguments)
                with self.subTest(arguments=arguments, ranks=ranks):
                    done = run(*arguments, "--log-format", "json", ranks=ranks)
                    self.assertEqual(done.returncode, code, done.stderr)
                    errors = [e for e in events_of(done.stderr) if e["event"] == "error"]
                    self.assertEqual(len(errors), 1, done.stderr)
                    self.assertEqual((errors[0]["level"], errors[0]["error"]["code"]), ("error", code))
                    self.assertEqual(errors[0]["message"], errors[0]["error"]["message"])
            done = run("update", "--config", config)  # the file says how to tell of the file
            self.assertEqual([e["event"] for e in events_of(done.stderr)], ["error"])
        refused = run("update", "--log-format", "xml")
        self.assertEqual(refused.returncode, 2)
        self.assertIn('--log-format: "xml" is none of text, json', refused.stderr)

    def test_a_resident_job_and_its_clients(self):
        with tempfile.TemporaryDirectory() as directory:
            metrics = os.path.join(directory, "awex.prom")
            with Resident(directory, "--log-format", "json", "--metrics", metrics) as job:
                client = run("update", "--job", job.job, "--wait", "60s", "--log-format", "json")
                self.assertEqual(client.returncode, 0, client.stderr)
                self.assertIn("phase", {e["event"] for e in events_of(client.stderr)})
                file = Textfile(metrics)
                self.assertEqual((file["up"], file["committed_version"], file["versions_committed_total"]), (1, 1, 1))
                self.assertEqual(file.of("commands_total", command="update"), 1)
                self.assertEqual(file.of("activity", activity="idle"), 1)
                held = file.of("device_memory_bytes", role="inference", tag="weights")
                self.assertGreater(held, 0)
                self.assertEqual(file.of("device_memory_bytes", role="trainer", tag="optimizer"), 0)
                self.assertGreater(file.of("host_memory_bytes", role="trainer", tag="optimizer"), 0)
                self.assertEqual(run("resume", "--job", job.job).returncode, 0)
                file = Textfile(metrics)
                self.assertEqual(file.of("device_memory_bytes", role="inference", tag="weights"), 0)
                self.assertEqual(file.of("commands_total", command="resume"), 1)
                self.assertEqual(run("stop", "--job", job.job).returncode, 0)
                job.process.wait(60)
                file = Textfile(metrics)
                self.assertEqual((file["up"], sum(file.of("failures_total", **l) for l in file.labels("failures_total"))),
                                 (0, 0))
                log = events_of(job.text("stdout"))
                self.assertEqual([e["event"] for e in log], ["serving", "command", "command", "end"])
                self.assertEqual([(e["command"], e["exit_code"]) for e in log[1:3]], [("update", 0), ("resume", 0)])
                self.assertEqual(log[1]["committed_version"], 1)
                events_of(job.text("stderr0") + job.text("stderr1"))


class Measured(unittest.TestCase):
    def test_metrics_of_a_run_say_what_its_report_says(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "awex.prom")
            begun = time.time()
            done = run("update", *MODEL, *JOB, "--versions", "3", "--metrics", path, "--json", "-", ranks=2)
            self.assertEqual(done.returncode, 0, done.stderr)
            report, file = json.loads(done.stdout), Textfile(path)
            self.assertEqual(os.listdir(directory), ["awex.prom"])
            self.assertEqual((file["up"], file["versions_committed_total"], file["committed_version"]), (0, 3, 3))
            self.assertEqual(file["content_poisoned"], 0)
            self.assertTrue(begun - 1 < file["start_time_seconds"] <= file["committed_version_timestamp_seconds"])
            self.assertLess(file["committed_version_timestamp_seconds"], time.time() + 1)
            sums = collections.defaultdict(lambda: [0, 0, 0])
            for version in report["versions"]:
                for phase in version["phases"]:
                    key = (phase["phase"], phase["role"], phase["tag"] or "")
                    sums[key] = [a + b for a, b in zip(sums[key], (phase["seconds"], phase["bytes"], 1))]
            self.assertEqual(len(file.labels("phase_seconds_total")), len(sums))
            for (phase, role, tag), (seconds, size, times) in sums.items():
                labels = {"phase": phase, "role": role, "tag": tag}
                self.assertAlmostEqual(file.of("phase_seconds_total", **labels), seconds, places=6)
                self.assertEqual(file.of("phase_bytes_total", **labels), size)
                self.assertEqual(file.of("phase_runs_total", **labels), times)
            for entry in report["memory"]["by_role_and_tag"]:
                labels = {"role": entry["role"], "tag": entry["tag"]}
                self.assertEqual(file.of("device_memory_peak_bytes", **labels), entry["device_peak_bytes"])
                self.assertEqual(file.of("host_memory_bytes", **labels), entry["host_pinned_bytes"])
            self.assertEqual(file["host_pool_bytes"], report["memory"]["host_pinned_bytes"])
            self.assertEqual({l["exit_code"] for l in file.labels("failures_total")}, set("12345"))

    def test_metrics_are_whole_at_every_moment(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "awex.prom")
            odd = os.path.join(directory, 'a "model" \\ \n here')
            os.symlink(self.checkpoint(directory), odd)
            seen, over = [], threading.Event()

            def read():
                while not over.is_set():
                    if os.path.exists(path):
                        seen.append(Textfile(path)["versions_committed_total"])
                    time.sleep(0.002)

            reader = threading.Thread(target=read)
            reader.start()
            try:
                done = run("update", "--model", odd, *JOB, "--versions", "4", "--metrics", path, ranks=2)
            finally:
                over.set()
                reader.join()
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(seen, sorted(seen))
            self.assertGreater(len(set(seen)), 2)

    def checkpoint(self, directory):
        made = os.path.join(directory, "checkpoint")
        self.assertEqual(run("checkpoint", "--preset", "tiny-dense", "--out", made).returncode, 0)
        return made

    def test_a_failed_run_is_counted_by_its_exit_code(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "awex.prom")
            done = run("update", *MODEL, *JOB, "--gpu-memory", "1MiB", "--metrics", path, ranks=2)
            self.assertNotEqual(done.returncode, 0)
            file = Textfile(path)
            self.assertEqual(file.of("failures_total", exit_code=str(done.returncode)), 1)
            self.assertEqual((file["up"], file["versions_committed_total"]), (0, 0))

    def test_wrong_paths(self):
        for path, says in (("-", "cannot go to stdout"), ("/nonexistent/same", "both name the file"),
                           ("/nonexistent/awex.prom", "/nonexistent/awex.prom")):
            json_path = "/nonexistent/same" if path.endswith("same") else "-"
            done = run("update", *MODEL, *JOB, "--metrics", path, "--json", json_path, ranks=2)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(says, done.stderr)
        with tempfile.TemporaryDirectory() as directory:
            fifo = os.path.join(directory, "fifo")
            os.mkfifo(fifo)
            for path in (fifo, "/dev/full", directory):
                done = run("update", *MODEL, *JOB, "--metrics", path, ranks=2)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn(f'"{path}" is no plain file', done.stderr)
        done = run("update", "--job", "DIR", "--metrics", "awex.prom")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--metrics is for a job that mpirun starts", done.stderr)

    def test_a_trace_has_every_phase_of_every_rank_on_one_clock(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "trace.json")
            done = run("update", *MODEL, *JOB, "--trainer", "megatron:tp=2", "--trace", path, "--json", "-", ranks=4)
            self.assertEqual(done.returncode, 0, done.stderr)
            report = json.loads(done.stdout)
            trace = strict_json(pathlib.Path(path).read_text(encoding="utf-8"))["traceEvents"]
            spans = [event for event in trace if event["ph"] == "X"]
            self.assertEqual({event["pid"] for event in spans}, {0, 1, 2, 3})
            self.assertEqual({e["pid"] for e in trace if e["name"] == "process_name"}, {0, 1, 2, 3})
            for phase in report["versions"][0]["phases"]:
                name = " ".join(word for word in (phase["phase"], phase["tag"]) if word)
                ranks = [e for e in spans if (e["name"], e["cat"]) == (name, phase["role"])
                         and phase["start_s"] * 1e6 - 1 <= e["ts"] <= (phase["start_s"] + phase["seconds"]) * 1e6 + 1]
                self.assertEqual(len(ranks), 4 if phase["role"] == "all" else 2, phase)
                self.assertAlmostEqual(min(e["ts"] for e in ranks), phase["start_s"] * 1e6, delta=1)
                self.assertAlmostEqual(max(e["ts"] + e["dur"] for e in ranks),
                                       (phase["start_s"] + phase["seconds"]) * 1e6, delta=1)
                self.assertEqual(sum(e["args"]["bytes"] for e in ranks), phase["bytes"])


if __name__ == "__main__":
    BINARY, MPIEXEC = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
