"""A resident job under mpirun, and its clients, for tests."""

import json
import os
import re
import signal
import subprocess
import time
import uuid

from mpi_run import processes_with, shared_files_of
from sessions import kill_session, run_in_session

START_LIMIT_S = 120.0  # until a job serves, on a machine that has more to do
CLIENT_LIMIT_S = 60.0  # of one that hangs
POLL_S = 0.02


class Trouble(Exception):
    """Something that a test finds wrong; the second argument, if any, is an exit code."""

    def __str__(self):
        return self.args[0]


def wait_until(condition, limit_s, what):
    """The seconds until `condition` returns something true; raises Trouble after `limit_s`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise Trouble(f"after {limit_s:.1f} s still not: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - start


def text_of(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class Client:
    """A command with --job, under way."""

    def __init__(self, binary, command, directory, options, report=None):
        self.report = report
        if report:
            options = [*options, "--json", report]
        self.begin = time.monotonic()
        self.process = subprocess.Popen([binary, command, "--job", directory, *options], text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self):
        """Its exit code; then `out`, `err` and the time of its `finish` are known."""
        try:
            self.out, self.err = self.process.communicate(timeout=CLIENT_LIMIT_S)
        except subprocess.TimeoutExpired as late:
            self.process.kill()
            self.out, self.err = self.process.communicate()
            raise Trouble(f"a client has not returned after {CLIENT_LIMIT_S} s: {self.err}") from late
        self.finish = time.monotonic()
        return self.process.returncode

    def json(self):
        return json.loads(text_of(self.report))


class ResidentJob:
    """A job that `program` serves at `directory`: started, and serving. `scratch` takes its output.
    `launch` is what comes before the options of serve. On `cuda` several ranks of a role share a GPU."""

    def __init__(self, mpiexec, launch, binary, directory, scratch, ranks, timeout_s, fault=None, layouts=None,
                 backend="host"):
        self.binary, self.directory, self.ranks = binary, directory, ranks
        self.token = uuid.uuid4().hex
        self.log = os.path.join(scratch, f"log-{self.token[:8]}")
        self.errors = os.path.join(scratch, f"errors-{self.token[:8]}")
        self.report = os.path.join(scratch, f"report-{self.token[:8]}")
        half = ranks // 2
        trainer, inference = layouts or (f"megatron:tp={half}", f"sglang:tp={2 if half == 2 else 1}")
        command = [mpiexec, "--oversubscribe", "-n", str(ranks), *launch, "--job", directory,
                   "--model", "preset:tiny-dense", "--trainer", trainer, "--inference", inference, "--backend", backend,
                   "--limits", "off", "--kv-cache", "1MiB", "--timeout", f"{timeout_s}s"]
        if backend == "cuda" and ranks > 2:
            command.append("--share-gpu")
        environment = dict(os.environ, AWEX_TEST_TOKEN=self.token)
        if fault:
            environment["AWEX_FAULT"] = fault
        with open(self.log, "w", encoding="utf-8") as log, open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=errors, env=environment)
        try:
            wait_until(lambda: self.process.poll() is not None or " serving " in text_of(self.log), START_LIMIT_S,
                       "the job serves")
            if self.process.poll() is not None:
                raise Trouble("the job has not come to serve")
            self.record = self.read_record()
            self.private = os.path.dirname(self.record["socket"])
            status = self.status()
            self.pids = [rank["pid"] for rank in status["ranks"]]
            self.shared_files = shared_files_of(self.pids)
        except BaseException as problem:
            kill_session(self.process.pid)
            if isinstance(problem, Trouble):
                raise Trouble(f"{problem}\nits log:\n{text_of(self.log)}\nits errors:\n{text_of(self.errors)}") from problem
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        kill_session(self.process.pid)
        self.process.wait()

    def read_record(self):
        return json.loads(text_of(os.path.join(self.directory, "job.json")))

    def ask(self, command, *options):
        """A client under way."""
        return Client(self.binary, command, self.directory, options, self.report)

    def do(self, command, *options):
        """A command that must succeed; its report."""
        client = self.ask(command, *options)
        code = client.end()
        if code != 0:
            raise Trouble(f"{' '.join([command, *options])} has failed: {client.err}", code)
        return client.json()

    def states(self, tag):
        """The states that ranks have their memory of a tag in."""
        return {memory["state"] for rank in self.status()["ranks"] for memory in rank["tags"] if memory["tag"] == tag}

    def status(self):
        client = Client(self.binary, "status", self.directory, ["--json", "-"])
        if client.end() != 0:
            raise Trouble(f"status has failed: {client.err}")
        return json.loads(client.out)

    def left(self):
        """What is still there of it."""
        left = [f"process {pid}" for pid in processes_with(self.token)]
        return left + [path for path in {self.private, *self.shared_files} if os.path.exists(path)]

    def await_end(self, limit_s):
        """mpirun's exit code, when nothing is left of the job."""
        try:
            wait_until(lambda: self.process.poll() is not None and not self.left(), limit_s, "the job is gone")
        except Trouble as late:
            raise Trouble(f"{late}; mpirun {self.process.poll()}; left: {', '.join(self.left())}") from late
        return self.process.returncode

    def stop(self):
        """Ends it in order."""
        client = Client(self.binary, "stop", self.directory, [])
        if client.end() != 0:
            raise Trouble(f"stop has failed: {client.err}")
        return self.await_end(START_LIMIT_S)


def undisturbed_digests(mpiexec, binary, steps, scratch):
    """The model's digest by the number of training steps, 0 to `steps`, of a job that nobody disturbs. It is
    the same in every layout."""
    path = os.path.join(scratch, "undisturbed.json")
    command = [mpiexec, "--oversubscribe", "-n", "2", binary, "update", "--model", "preset:tiny-dense", "--trainer",
               "megatron:tp=1", "--inference", "sglang:tp=1", "--backend", "host", "--no-offload", "--limits", "off",
               "--kv-cache", "0", "--versions", str(steps + 1), "--json", path]
    done = run_in_session(command, 600, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise Trouble(f"an undisturbed update has failed: {done.stderr}")
    return [version["digest"]["model"] for version in json.loads(text_of(path))["versions"]]


def names_rank(text, rank):
    return re.search(rf"\brank {rank}\b", text) is not None


def send(pid, name):
    os.kill(pid, getattr(signal, name))
