#!/usr/bin/env python3
"""Random faults in a resident job, each followed by what must come after it.

usage: fault_runs.py FAULTY_JOB AWEX_COLOCATE --runs N --seed S --ranks R

Each run brings the job into a state, arms one fault (or none, and does something to a client or to an idle
rank), asks for one command, and judges: how soon the client returned, its exit code, who is named, what
`status` tells, and that the next update commits what an undisturbed job commits after as many training steps.
Where a rank is lost, the job must be gone with all that it had, its record must tell why, and a new job at
the same directory must know of it and serve.

A client returns within the timeout and 2 s from the fault. On a machine that has more to do than it has
cores, each of these ranks waits for its turn: for that LOAD_S is added for each whole load per core.
"""

import argparse
import collections
import os
import re
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from random_runs import RandomRuns, add_options, allowance_s, carry_out  # noqa: E402
from resident_job import ResidentJob, Trouble, names_rank, send, text_of, undisturbed_digests, wait_until  # noqa: E402

PROMISE_S = 2.0  # beyond the timeout
END_S = 5.0  # until nothing is left of a job whose client knows that it has ended: mpirun waits for a stopped rank

MOST_STEPS = 80  # of one job
MOST_LATE = 3  # times that an undisturbed command may be late, on a machine that has more to do

TRAIN = ("train", "trainer", "-")
LEAVE = ("offload", "trainer", "optimizer")
BRING = [("digest", "trainer", "weights"), ("resume", "inference", "weights"), ("transfer", "inference", "weights"),
         ("unmap", "inference", "weights"), ("verify", "all", "weights"), ("commit", "all", "weights")]
SERVE = [("resume", "inference", "kv_cache"), LEAVE, ("offload", "trainer", "weights")]
MAKE_ROOM = [("discard", "inference", "kv_cache"), ("discard", "inference", "weights")]
BRING_BACK = [("resume", "trainer", "optimizer"), ("resume", "trainer", "weights")]
MAP = ("map", "all", "weights")

# A command: its client's command and options, the command before it, its phases.
Command = collections.namedtuple("Command", "name options before phases")
COMMANDS = [
    Command("update", [], "resume", [TRAIN, *BRING, *SERVE]),
    Command("update", [], "update", [*MAKE_ROOM, *BRING_BACK, MAP, TRAIN, *BRING, *SERVE]),
    Command("update", ["--no-train"], "resume", [*BRING, *SERVE]),
    Command("resume", [], "update", [*MAKE_ROOM, *BRING_BACK, MAP]),
    Command("resume", ["--role", "trainer"], "update", BRING_BACK),
    Command("resume", ["--tag", "optimizer"], "update", BRING_BACK[:1]),
    Command("resume", ["--role", "inference", "--tag", "weights,kv_cache"], "resume",
            [("resume", "inference", "weights"), SERVE[0]]),
    Command("offload", [], "resume", [("offload", "trainer", "weights"), ("offload", "trainer", "optimizer"),
                                      ("verify", "trainer", "weights"), ("verify", "trainer", "optimizer")]),
    Command("offload", ["--role", "trainer", "--tag", "optimizer"], "resume", [("offload", "trainer", "optimizer")]),
    Command("offload", ["--role", "inference"], "update", MAKE_ROOM),
    Command("transfer", [], "resume", [LEAVE, *BRING]),
]
FULL_UPDATE = Command("update", ["--verify", "full"], "resume", [("compare", "inference", "weights")])
FULL_TRANSFER = Command("transfer", ["--verify", "full"], "resume", [("compare", "inference", "weights")])

# How often each comes, against the others.
KINDS = {"kill": 3, "stop": 2, "error": 6, "stall": 2, "spin": 2, "corruption": 4, "allocation": 4,
         "client killed, finish": 2, "client killed, cancel": 3, "flood": 2, "idle kill": 1, "idle stop": 1}
TAKE_MEMORY = {("resume", "inference", "weights"), SERVE[0], *BRING_BACK}
CODES = {"kill": {5}, "stop": {4}, "error": {1}, "stall": {0, 4}, "spin": {0, 4}, "corruption": {3},
         "allocation": {1}, "flood": {0}, "idle stop": {4}}
SAID = {"error": r"a fault on purpose", "kill": r"is gone|ended without an answer",
        "corruption": r"is not what it was|not the trainer's", "allocation": r"allocate|memory"}

Fault = collections.namedtuple("Fault", "kind rank command place seconds")


def kinds(dice, count):
    """Every kind once, if there are as many runs, and then by chance."""
    deck = dice.sample(list(KINDS), len(KINDS))
    return (deck + dice.choices(list(KINDS), list(KINDS.values()), k=count))[:count]


def choose(dice, kind, ranks, timeout_s):
    rank = dice.randrange(ranks)
    command = dice.choice(COMMANDS)
    place = dice.choice(command.phases)
    if kind == "corruption":
        # Where it is found: what comes back from host memory is proven, and all bytes with --verify full.
        command = dice.choice([FULL_UPDATE, FULL_TRANSFER, *(c for c in COMMANDS if c.phases[-1] in (*BRING_BACK, MAP))])
        place = dice.choice([phase for phase in command.phases if phase[0] == "compare" or phase in BRING_BACK])
    if kind == "allocation":
        command = dice.choice([c for c in COMMANDS if TAKE_MEMORY & set(c.phases)])
        place = dice.choice([phase for phase in command.phases if phase in TAKE_MEMORY])
    if kind in ("corruption", "allocation"):
        rank = dice.randrange(ranks // 2) + (0 if place[1] == "trainer" else ranks // 2)
    if kind == "idle stop":
        command = COMMANDS[0]
        rank = dice.randrange(1, ranks)  # a stopped rank 0 answers nobody until it goes on, as any program
    seconds = {"stall": timeout_s + 0.4, "spin": timeout_s + 1.2, "flood": 0.6 * timeout_s}.get(kind, 0.4 * timeout_s)
    return Fault(kind, rank, command, place, seconds)


class Runs(RandomRuns):
    def __init__(self, arguments, scratch):
        super().__init__(arguments, scratch)
        self.directory = os.path.join(scratch, "job")
        self.fault_path = os.path.join(scratch, "fault")
        self.serial = 0
        self.digests = undisturbed_digests(arguments.mpiexec, arguments.client, min(3 * arguments.runs + 6, MOST_STEPS),
                                           scratch)
        self.missed = 0  # faults whose phase did not come

    # ---- The job

    def start(self):
        former = self.job
        self.arm("none", -1, TRAIN, 0)
        arguments = self.arguments
        self.job = ResidentJob(arguments.mpiexec, [arguments.job], arguments.client, self.directory, self.scratch,
                               arguments.ranks, arguments.timeout, self.fault_path, backend=arguments.backend)
        self.jobs += 1
        if former and not re.search(rf"is no longer that of a job of pid {former.record['pid']} ", text_of(self.job.log)):
            raise Trouble(f"the new job does not tell what it has found: {text_of(self.job.log)}")
        self.steps = self.untold_steps = 0
        self.update()

    def end(self):
        """Whatever becomes of it."""
        if self.job:
            self.job.__exit__()

    def arm(self, kind, rank, place, seconds):
        self.serial += 1
        with open(self.fault_path + ".new", "w", encoding="utf-8") as file:
            print(self.serial, rank, kind, *place, seconds, file=file)
        os.replace(self.fault_path + ".new", self.fault_path)

    def acted_at(self):
        """When the armed fault came, by time.monotonic; None: it has not."""
        try:
            lines = text_of(self.fault_path + ".done").splitlines()
        except FileNotFoundError:
            return None
        return next((float(line.split()[1]) for line in lines if line.split()[0] == str(self.serial)), None)

    def trained(self, status):
        return [rank["steps"] for rank in status["ranks"] if rank["role"] == "trainer"]

    def update(self):
        """One that nothing disturbs: it must commit the weights of as many steps as the trainers say, which
        are one more than before, or two, where a command has failed after its step."""
        report = self.do("update")
        status = self.job.status()
        steps = self.trained(status)
        if min(steps) != max(steps) or not self.steps < steps[0] <= self.steps + self.untold_steps + 1:
            raise Trouble(f"the trainers have taken {steps} steps after {self.steps}")
        self.steps, self.untold_steps = steps[0], 0
        version = report["versions"][-1]
        if not version["committed"] or version["digest"]["mismatched"] != 0:
            raise Trouble(f"an update has not committed: {version}")
        if version["digest"]["model"] != self.digests[self.steps]:
            raise Trouble(f"version {version['version']} has the digest {version['digest']['model']}, and after "
                          f"{self.steps} steps it is {self.digests[self.steps]}")
        if status["content"] != "committed" or status["committed_version"] != version["version"]:
            raise Trouble(f"status tells {status['content']} {status['committed_version']} after an update to "
                          f"{version['version']}")
        if status["memory"]["leaked_bytes"] > status["memory"]["leak_tolerance_bytes"]:
            raise Trouble(f"memory has leaked: {status['memory']}")

    def do(self, command):
        """What nothing disturbs; but a machine with too much to do may let a deadline pass."""
        for _ in range(MOST_LATE):
            try:
                return self.job.do(command)
            except Trouble as late:
                if late.args[1:] != (4,) or allowance_s() == 0:
                    raise
                self.counts["undisturbed, late, repeated"] += 1
                self.untold_steps += 1 if command == "update" else 0
        return self.job.do(command)

    # ---- One run

    def run(self, fault):
        if self.job and self.steps > MOST_STEPS - 4:
            if self.job.stop() != 0:
                raise Trouble("the job has not ended in order")
            self.job = Former(self.job)
        if self.job is None or isinstance(self.job, Former):
            self.start()
        if fault.command.before == "resume":
            self.do("resume")
        self.before = self.job.status()
        # A command that fails may have failed after its step.
        self.untold_steps += fault.command.name == "update" and "--no-train" not in fault.command.options
        if fault.kind.startswith("client"):
            goes_on = self.kill_client(fault)
        elif fault.kind == "idle kill":
            goes_on = self.kill_idle(fault)
        else:
            goes_on = self.disturb(fault)
        self.arm("none", -1, TRAIN, 0)
        if goes_on:
            self.update()
        else:
            self.job = Former(self.job)
            self.start()

    def disturb(self, fault):
        """A fault of a rank, or a flood; whether the job goes on."""
        kind = "stall" if fault.kind == "flood" else fault.kind
        begin = time.monotonic()
        if fault.kind == "idle stop":
            send(self.job.pids[fault.rank], "SIGSTOP")
        else:
            self.arm(kind, fault.rank, fault.place, fault.seconds)
        with Flood(self.job.record["socket"], fault.kind == "flood"):
            client = self.job.ask(fault.command.name, *fault.command.options)
            code = client.end()
        acted = begin if fault.kind == "idle stop" else self.acted_at()
        if acted is None:
            self.missed += 1
            if code != 0:
                raise Trouble(f"without a fault the command failed: {code} {client.err}")
            return True
        self.judge_time(fault.kind, client.finish - acted)
        lost = fault.kind in ("kill", "stop", "idle stop")
        codes = CODES[fault.kind]
        if lost and fault.rank == 0:
            # Nobody is left to answer, but a stopped rank that is told to end may wake up to do it.
            codes = {5} if fault.kind == "kill" else {4, 5}
        if code not in codes:
            raise Trouble(f"exit code {code} instead of {codes}: {client.err}")
        if code != 0:
            self.judge_words(fault, client, lost)
        if not lost and fault.kind == "stall" and code == 4 and self.has_ended():
            lost = True  # who sleeps for too long is taken for lost
            self.counts["stall, taken for lost"] += 1
        if lost:
            self.judge_end(fault, client.finish)
            return False
        self.judge_status(fault, client, code)
        return True

    def has_ended(self):
        """Whether the job has, or is about to."""
        return bool(self.job.read_record()["ended_at"])

    def kill_client(self, fault):
        self.arm("stall", fault.rank, fault.place, fault.seconds)
        how = fault.kind.rsplit(" ", 1)[1]
        client = self.job.ask(fault.command.name, *fault.command.options, "--on-disconnect", how)
        wait_until(lambda: self.acted_at() or client.process.poll() is not None, self.limit_s() + 10, "the phase")
        killed = time.monotonic()
        client.process.kill()
        code = client.end()
        done = self.before["commands"] + 1
        wait_until(lambda: self.job.status()["commands"] >= done, self.limit_s() + 2, "the command is over")
        self.judge_time(fault.kind, time.monotonic() - killed)
        if code != -9:
            self.missed += 1  # it was over before
        status = self.job.status()
        failed = status["failures"] - self.before["failures"]
        if how == "finish" and failed:
            raise Trouble(f"the command failed with its client: {status['last_error']}")
        if how == "cancel" and code == -9 and not failed:
            raise Trouble("the command was not given up with its client")
        if failed and not re.search("client has gone", status["last_error"]["message"]):
            raise Trouble(f"the command has failed for another reason: {status['last_error']}")
        self.counts["cancelled"] += failed
        return True

    def kill_idle(self, fault):
        killed = time.monotonic()
        send(self.job.pids[fault.rank], "SIGKILL")
        self.judge_end(fault, killed)
        self.judge_time(fault.kind, time.monotonic() - killed)
        return False

    # ---- Judgement

    def limit_s(self):
        return self.arguments.timeout + PROMISE_S + allowance_s()

    def judge_time(self, kind, seconds):
        self.slowest[kind] = max(seconds, self.slowest.get(kind, 0))
        if seconds > self.limit_s():
            raise Trouble(f"it took {seconds:.2f} s, not {self.limit_s():.2f} s")

    def judge_words(self, fault, client, lost):
        if not names_rank(client.err, fault.rank):
            raise Trouble(f"rank {fault.rank} is not named: {client.err}")
        if not re.search(SAID.get(fault.kind, ""), client.err):
            raise Trouble(f"it does not say {SAID[fault.kind]}: {client.err}")
        error = client.json()["error"]
        if not lost and fault.kind in ("error", "corruption", "allocation") and error["rank"] != fault.rank:
            raise Trouble(f"the error is of rank {error['rank']}: {error}")

    def judge_end(self, fault, since):
        """The job must be gone, and tell why."""
        kill = "kill" in fault.kind
        code = self.job.await_end(END_S + self.limit_s() - (time.monotonic() - since))
        if code not in ((137,) if kill else (4,)):
            raise Trouble(f"mpirun's exit code is {code}: {text_of(self.job.errors)}")
        record = self.job.read_record()
        expected = {5} if kill else {4}
        if fault.rank != 0 and record["exit_code"] not in expected:
            raise Trouble(f"the record tells the exit code {record['exit_code']}")
        if not record["ended_at"] or not names_rank(record["end"], fault.rank):
            raise Trouble(f"the record does not tell of rank {fault.rank}: {record}")

    def judge_status(self, fault, client, code):
        status = self.job.status()
        before, report = self.before, client.json()
        if status["failures"] != before["failures"] + (1 if code else 0):
            raise Trouble(f"status counts {status['failures']} failures after {before['failures']}")
        if code:
            error, last = report["error"], status["last_error"]
            if (last["code"], last["rank"], last["message"]) != (code, error["rank"], error["message"]):
                raise Trouble(f"status tells of {last}, and the client of {error}")
        if (status["content"] == "poisoned") != report["poisoned"]:
            raise Trouble(f"content is {status['content']}, and the report says poisoned: {report['poisoned']}")
        if code:
            self.judge_content(fault, status)

    def judge_content(self, fault, status):
        """What inference holds after a command that has failed at the fault's place."""
        was, now = self.before["content"], status["content"]
        version, committed = self.before["committed_version"], status["committed_version"]
        brings = fault.command.name in ("update", "transfer")
        allowed = {was, "empty"}
        serves = fault.command.name == "update" and fault.place in SERVE
        if serves and now == "committed" and committed > version:
            allowed, version = {"committed"}, version + 1
        elif serves and fault.place != LEAVE:  # of which some may make room for inference before
            allowed = {"poisoned"}  # some ranks had not heard yet that all have agreed on the version
        elif brings and fault.place[0] in ("compare", "verify", "commit"):
            allowed = {"poisoned"}
        elif brings and fault.place in (LEAVE, *BRING):
            allowed = {was, "empty", "poisoned"}
        if fault.kind in ("stall", "spin") and brings:  # others are ahead
            allowed |= {"poisoned"}
        if now not in allowed or committed != version:
            raise Trouble(f"content was {was}, version {self.before['committed_version']}; now it is {now}, version "
                          f"{committed}")

    # ---- All

    def draw(self, dice):
        for kind in kinds(dice, self.arguments.runs):
            fault = choose(dice, kind, self.arguments.ranks, self.arguments.timeout)
            yield (fault.kind, f"{fault.kind} of rank {fault.rank} in {'/'.join(fault.place)} of "
                   f"{' '.join([fault.command.name, *fault.command.options])} after {fault.command.before}", fault)

    def forget(self):
        self.end()
        self.job = None

    def figures(self):
        lines = [f"{self.arguments.runs} runs, seed {self.arguments.seed}, {self.arguments.ranks} ranks on "
                 f"{self.arguments.backend}, timeout {self.arguments.timeout} s: {len(self.failures)} failed; {self.jobs} jobs; the phase did not come "
                 f"{self.missed} times"]
        for kind, count in sorted(self.counts.items()):
            slow = f", slowest answer {self.slowest[kind]:.2f} s after the fault" if kind in self.slowest else ""
            lines.append(f"  {kind}: {count}{slow}")
        return "\n".join(lines)


class Former:
    """What is known of a job that has ended."""

    def __init__(self, job):
        self.record, self.log, self.errors = job.record, job.log, job.errors
        job.__exit__()

    def __exit__(self, *_):
        pass


class Flood:
    """Connections to a socket that say nothing, or nonsense, again and again, until the end of a block."""

    def __init__(self, path, is_wanted):
        self.path, self.is_wanted, self.ends = path, is_wanted, threading.Event()

    def __enter__(self):
        if self.is_wanted:
            self.thread = threading.Thread(target=self.pour, daemon=True)
            self.thread.start()

    def __exit__(self, *_):
        if self.is_wanted:
            self.ends.set()
            self.thread.join()

    def pour(self):
        open_ones = collections.deque()
        words = [b"", b"{", b"\xff\n", b"[]\n", b'{"protocol":1,"errand":"status"}\n', b"x" * 20000]
        number = 0
        while not self.ends.is_set():
            number += 1
            visitor = socket.socket(socket.AF_UNIX)
            visitor.settimeout(0.05)
            open_ones.append(visitor)
            try:
                visitor.connect(self.path)
                visitor.send(words[number % len(words)])
            except OSError:
                time.sleep(0.005)  # there are too many, as is wanted
            if len(open_ones) > 300:
                open_ones.popleft().close()
        for visitor in open_ones:
            visitor.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job", help="faulty_job")
    parser.add_argument("client", help="awex-colocate")
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--backend", choices=["host", "cuda"], default="host")
    add_options(parser, runs=12, ranks=4)
    arguments = parser.parse_args()
    return carry_out(Runs, arguments, "awex-fault-runs-")


if __name__ == "__main__":
    sys.exit(main())
