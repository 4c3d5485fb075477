#!/usr/bin/env python3
"""Random losses in a job whose engines attach, each followed by what docs/engines.md promises.

usage: random_losses.py MPIEXEC AWEX_COLOCATE LIBRARY --runs N --seed S --ranks R [--backend cuda]

Each run brings trainers and inference engines, processes of their own, to a moment (in a step, between steps, in a
hand-over, in the rollout, in a take-back, while one attaches), kills or stops an engine, a rank or mpirun there, and
judges: who hears of it, how soon, with which error and which name; what memory holds then, against models in numpy;
that another engine in the lost one's place goes on from there; and that a lost job leaves nothing behind, tells why
it ended, and may be followed by another whose engines are the same processes.

Calls return within the timeout and PROMISE_S from the loss. On a machine that has more to do than it has cores LOAD_S
is added for each whole load per core.

With `--backend cuda` a trainer and an inference engine share each GPU: 2 ranks need one.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import sys
import time
import zlib
import uuid

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from attached_job import (DEADLINE, FAILED, LOST, MIB, OK, Answer, Job, Player, Programs,  # noqa: E402
                          as_megatron, as_vllm, canonical)
from mpi_run import processes_with, shared_files_of  # noqa: E402
from random_runs import RandomRuns, add_options, allowance_s, carry_out  # noqa: E402
from resident_job import Trouble, text_of, wait_until  # noqa: E402

PROMISE_S = 2.0  # beyond the timeout
END_S = 5.0  # until nothing is left of a lost job
PAUSE_S = 0.05  # of a trainer's step, several times
ATTACH_S = {"host": 0.8, "cuda": 2.0}  # of a new process, which opens the GPU first; until it has been measured
MOST_ATTACH_S = {"host": 4.0, "cuda": 10.0}
MOMENTS = ("step", "between", "hand over", "rollout", "take back", "attach")
KINDS = [(victim, how) for victim in ("trainer", "inference", "rank", "mpirun") for how in ("kill", "stop")]

Loss = collections.namedtuple("Loss", "victim how moment index wait_s goes_on same_processes")


def losses(dice, count, ranks):
    """Every kind once, if there are as many runs, and then by chance; moments alike."""
    kinds = dice.sample(KINDS, len(KINDS))
    kinds = (kinds + dice.choices(KINDS, k=count))[:count]
    moments = [moment for _ in range(count) for moment in dice.sample(MOMENTS, len(MOMENTS))]
    for (victim, how), moment in zip(kinds, moments):
        index = dice.randrange(ranks if victim == "rank" else ranks // 2)
        yield Loss(victim, how, moment, index, dice.random(), dice.random() < 0.5, dice.random() < 0.5)


class Actor(Player):
    """A player, and what is known of it."""

    def __init__(self, job, role, device, pairs, optimizer_bytes):
        super().__init__(job, role, device, name=f"{role}-{device}", backend=job.backend, optimizer=optimizer_bytes)
        state = dict(name="state", dtype="f32", rows=1, cols=optimizer_bytes // 4, offset=0)
        self.state = [state] if role == "trainer" else []  # All of it, so that it is proven.
        self.rank = device + (pairs if role == "inference" else 0)
        self.pending = "attach"  # The call that is under way.
        self.step = 0  # A trainer's,
        self.version = 0  # and the one that inference serves or served last.

    def begin(self, do, *arguments, **named):
        self.pending = do
        super().begin(do, *arguments, **named)

    def end(self, limit_s=60.0):
        if not self.answers_within(limit_s):
            raise Trouble(f"{self.name} is still in {self.pending} after {limit_s:.1f} s")
        self.pending = ""
        return super().end()

    def attach(self, job):
        """Again, or to another job."""
        self.begin("attach", job.directory, self.role, self.device, name=self.name, bytes=self.bytes,
                   backend=job.backend)

    def found(self, job):
        """What one that attaches has found; None where it was lost on its way: then it tries again."""
        try:
            return self.end()
        except Answer as error:
            if error.status != LOST:
                raise
            self.attach(job)
            return None

    def take_part(self):
        """From attaching to the first command; what it found."""
        place = self.end()
        self.begin_to_take_part()
        return place

    def declare(self):
        self.do("declare", None, self.state)

    def begin_to_take_part(self):
        self.declare()
        self.do("seal")


class Runs(RandomRuns):
    def __init__(self, arguments, scratch):
        super().__init__(arguments, scratch)
        self.pairs = arguments.ranks // 2
        self.optimizer_bytes = arguments.optimizer_mib * MIB
        self.actors, self.rank_pids, self.serial = [], [], 0
        self.step = self.handed_over = 0  # The trainers' step, and that of the last hand-over.
        self.durations = {"hand over": 0.2, "take back": 0.2, "attach": ATTACH_S[arguments.backend]}

    # ---- The job and its engines

    @property
    def trainers(self):
        return self.actors[:self.pairs]

    @property
    def servers(self):
        return self.actors[self.pairs:]

    def limit_s(self):
        return self.arguments.timeout + PROMISE_S + allowance_s()

    def start(self, actors=()):
        """A job, with engines that are there already or new ones."""
        self.token = uuid.uuid4().hex
        self.job = Job(self.scratch, self.arguments.ranks, "--admission", "off", trainer=f"megatron:tp={self.pairs}",
                       inference=f"vllm:tp={self.pairs}", timeout=f"{self.arguments.timeout}s",
                       environment={"AWEX_TEST_TOKEN": self.token}, backend=self.arguments.backend)
        self.jobs += 1
        self.actors = list(actors)
        for actor in self.actors:
            actor.attach(self.job)
        if not self.actors:
            self.actors = [Actor(self.job, role, device, self.pairs, self.optimizer_bytes)
                           for role in ("trainer", "inference") for device in range(self.pairs)]
        for actor in self.actors:
            place = actor.end()
            if place["reattached"] or place["version"] or place["kept"]:
                raise Trouble(f"a new job knows of another's engines: {actor.name}: {place}")
            actor.declare()
        for actor in self.trainers:
            actor.do("train", self.weights(actor, self.step), self.step)
            actor.step = self.step
        for actor in self.actors:
            actor.begin("seal")
        for actor in self.actors:
            actor.end()
        self.job.serves()
        status = self.job.status()
        self.rank_pids = [rank["pid"] for rank in status["ranks"]]
        self.private = set(self.job.private_directories())
        self.shared_files = shared_files_of(self.rank_pids)
        for actor in self.servers:
            actor.version = 0
        self.handed_over = None
        self.cycle()

    def end(self):
        for actor in self.actors:
            actor.kill()
        self.actors = []
        if self.job:
            self.job.end()
            with contextlib.suppress(Trouble):  # The next job at the same place takes ranks that are left for serving.
                wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in self.rank_pids), END_S, "no rank")
        self.job = None

    def weights(self, actor, step):
        """A file with what an engine holds of a step's model."""
        form = as_megatron if actor.role == "trainer" else as_vllm
        path = os.path.join(self.scratch, f"{actor.name}.npz")
        np.savez(path, **form(canonical(step), actor.device, self.pairs))
        return path

    def optimizer_sum(self, actor, step):
        size = actor.do("memory", "optimizer")["bytes"]
        return zlib.crc32(np.random.default_rng(step).integers(0, 120, size=size, dtype=np.uint8))

    def check(self, actor, step):
        """What an engine has mapped is of a step, all of it."""
        wrong = actor.do("differing", self.weights(actor, step))
        if wrong:
            raise Trouble(f"{actor.name} does not hold the weights of step {step}: {wrong[:3]} and {len(wrong)} in all")
        if actor.role == "trainer" and actor.do("sum_of", "optimizer") != self.optimizer_sum(actor, step):
            raise Trouble(f"{actor.name} holds the weights of step {step} with another optimizer state")

    def is_mapped(self, actor):
        return bool(actor.do("memory")["is_mapped"])

    # ---- What nothing disturbs

    def train(self, step, pause=0.0):
        for actor in self.trainers:
            actor.begin("train", self.weights(actor, step), step, pause)

    def begin_hand_over(self):
        for actor in self.servers:
            if actor.pending != "wait":
                actor.begin("wait", actor.version)
        for actor in self.trainers:
            actor.begin("hand_over")

    def end_hand_over(self):
        versions = {actor.end() for actor in self.actors}
        if len(versions) != 1 or min(versions) <= max(actor.version for actor in self.servers):
            raise Trouble(f"versions {versions} after {[actor.version for actor in self.servers]}")
        for actor in self.servers:
            actor.version = min(versions)
            self.check(actor, self.step)
        self.handed_over = self.step

    def begin_take_back(self, call="take_back"):
        for actor in self.servers:
            if actor.pending != "wait":
                actor.begin("release")
        for actor in self.trainers:
            actor.begin(call)

    def end_take_back(self):
        for actor in self.trainers:
            actor.end()
        for actor in self.servers:
            if actor.pending == "release":
                actor.end()

    def timed(self, moment, begin, end):
        start = time.monotonic()
        begin()
        end()
        self.durations[moment] = time.monotonic() - start

    def cycle(self):
        """From any state in which trainers have their memory, to rest: a new step is handed over and taken back."""
        self.step = max(actor.step for actor in self.trainers) + 1
        for actor in self.trainers:
            for step in range(actor.step + 1, self.step + 1):
                actor.do("train", self.weights(actor, step), step)
            actor.step = self.step
        self.timed("hand over", self.begin_hand_over, self.end_hand_over)
        if self.step % 3 == 0:  # in two halves
            self.begin_take_back("take_back_weights")
            self.end_take_back()
        self.timed("take back", self.begin_take_back, self.end_take_back)
        for actor in self.trainers:
            self.check(actor, self.step)
        status = self.job.status_at_rest()
        if status["content"] == "poisoned" or status["memory"]["leaked_bytes"] > status["memory"]["leak_tolerance_bytes"]:
            raise Trouble(f"after a take-back: content {status['content']}, memory {status['memory']}")

    # ---- Moments

    def bring_to(self, loss):
        """Begins what is under way at a loss's moment, and sleeps until it."""
        moment = loss.moment
        if moment == "step":
            self.train(self.step + 1, PAUSE_S)
            time.sleep(loss.wait_s * 5 * PAUSE_S)
        elif moment == "between":
            if loss.wait_s < 0.5:
                for actor in self.servers:
                    actor.begin("wait", actor.version)
        elif moment == "attach":
            actor = (self.servers if loss.victim == "inference" else self.trainers)[loss.index % self.pairs]
            actor.kill()
            self.replace(actor)
            time.sleep(loss.wait_s * self.durations["attach"])
        else:
            self.step += 1
            self.train(self.step)
            for actor in self.trainers:
                actor.step = actor.end()
            self.begin_hand_over()
            if moment == "hand over":
                time.sleep(loss.wait_s * 1.2 * self.durations["hand over"])
                return
            self.end_hand_over()
            if moment == "take back":
                self.begin_take_back()
                time.sleep(loss.wait_s * 1.2 * self.durations["take back"])

    def replace(self, actor):
        """Another process in an engine's place, which begins to attach."""
        new = Actor(self.job, actor.role, actor.device, self.pairs, self.optimizer_bytes)
        new.step, new.version = actor.step, actor.version
        self.actors[self.actors.index(actor)] = new
        return new

    # ---- One run

    def run(self, loss):
        if self.job is None:
            self.start()
        self.bring_to(loss)
        if loss.victim in ("rank", "mpirun"):
            pid = self.job.process.pid if loss.victim == "mpirun" else self.rank_pids[loss.index]
            os.kill(pid, signal.SIGKILL if loss.how == "kill" else signal.SIGSTOP)
            if (loss.victim, loss.how) == ("mpirun", "stop"):
                return self.judge_stopped_launcher(pid)
            return self.judge_lost_job(loss)
        actor = (self.trainers if loss.victim == "trainer" else self.servers)[loss.index]
        os.kill(actor.process.pid, signal.SIGSTOP)  # as a kill may come between any two of its instructions
        if loss.how == "stop":
            self.judge_stopped(actor)
            if loss.goes_on:
                os.kill(actor.process.pid, signal.SIGCONT)
                return self.go_on(loss)
        actor.kill()
        self.judge_killed(loss, actor)
        return self.go_on(loss)

    def note_time(self, what, seconds, limit_s):
        self.slowest[what] = max(seconds, self.slowest.get(what, 0.0))
        if seconds > limit_s:
            raise Trouble(f"{what}: {seconds:.2f} s, not {limit_s:.2f} s")

    def others_than(self, actor):
        return [other for other in self.actors if other is not actor]

    def refused(self, command, actor, codes, pattern, limit_s=None):
        """A client's command, which an engine's loss or silence fails."""
        start = time.monotonic()
        done = self.job.client(command)
        self.note_time(f"{command} refused", time.monotonic() - start, limit_s or self.limit_s())
        if done.returncode not in codes:
            raise Trouble(f"{command} without {actor.name} ends with {done.returncode}: {done.stderr}")
        if done.returncode != OK and not re.search(pattern, done.stderr, re.DOTALL):
            raise Trouble(f"{command} without {actor.name} does not say {pattern}: {done.stderr}")
        return done.returncode

    # ---- An engine that is killed

    def without(self, loss, actor):
        """How a take-back may end that an engine is lost for: inference that has nothing is not missed."""
        if actor.role == "trainer":
            return (LOST,)
        return (OK,) if loss.moment in ("step", "between", "attach") else (OK, LOST)

    def judge_killed(self, loss, actor):
        """Others hear who is gone; another takes its place."""
        who = rf"rank {actor.rank}\b"
        gone = rf"{who}.*(lost since|no {actor.role} engine is attached)"
        self.refused("update", actor, (LOST,), gone)
        self.refused("resume", actor, self.without(loss, actor), gone)
        self.settle_calls(actor, (LOST, DEADLINE), who)
        states = lambda: {rank["rank"]: rank["engine_state"] for rank in self.job.status()["ranks"]}  # noqa: E731
        wait_until(lambda: "lost since" in (states()[actor.rank] or ""), 3.0 + allowance_s(),
                   f"status tells that {actor.name} is lost")
        start = time.monotonic()
        new = self.replace(actor)
        place = new.take_part()
        self.durations["attach"] = time.monotonic() - start
        self.note_time("attach again", self.durations["attach"],
                       MOST_ATTACH_S[self.arguments.backend] + 4 * allowance_s())
        if new.role == "inference":
            new.version = self.found_version(new, place)
            return
        allowed = {self.handed_over, actor.step}
        if loss.moment == "step":
            allowed.add(self.step + 1)
        if not place["reattached"] or int(place["kept"] or -1) not in allowed:
            raise Trouble(f"{new.name} finds {place['reattached']}, kept {place['kept']!r}, not one of {allowed}")
        new.step = int(place["kept"])

    def found_version(self, new, place):
        """What another inference engine finds: the committed version, or memory with nothing in it, if any."""
        version = place["version"]
        if place["reattached"] and self.is_mapped(new):
            self.check(new, self.step_of_version(version))
        return version

    def step_of_version(self, version):
        """Of the last hand-over, or of the one that was under way and has been committed."""
        known = {actor.version for actor in self.servers}
        return self.handed_over if version in known else self.step

    def settle_calls(self, victim, codes, pattern):
        """Calls of others that are under way are over by now, but for those that wait for the next version."""
        for other in self.others_than(victim):
            if not other.pending:
                continue
            if other.pending != "wait" or other.answers_within(0.0):
                self.hear_end(other, codes, pattern)

    def hear_end(self, other, codes, pattern):
        """Of a call, which may fail like this."""
        call = other.pending
        try:
            result = other.end(self.limit_s())
        except Answer as error:
            if error.status not in codes or not re.search(pattern, error.text):
                raise Trouble(f"{call} of {other.name} ends with {error}, not {codes} and {pattern}") from error
            return
        if call == "train":
            other.step = result
        if call == "wait":
            other.version = result
            self.check(other, self.step)
            self.handed_over = self.step

    # ---- An engine that is stopped

    def judge_stopped(self, actor):
        """Who needs it hears of it, in time and by name."""
        who = rf"rank {actor.rank}\b"
        for other in self.others_than(actor):
            if other.pending == "train":
                other.step = other.end()
        end = time.monotonic() + self.limit_s()
        for command in ("update", "resume"):
            # What is under way fails first. A call that no command serves consents.
            while any(other.pending in ("hand_over", "take_back", "release") and not other.answers_within(0.01)
                      for other in self.others_than(actor)) and time.monotonic() < end:
                pass
            self.consent(self.others_than(actor), who)
            # An engine that has consented may have nothing to do; one that has not attached is lost.
            # A command that runs already ends first.
            self.refused(command, actor, (OK, DEADLINE, LOST), who, self.limit_s() + self.arguments.timeout)
            self.settle_calls(actor, (DEADLINE, LOST), who)

    def consent(self, others, who):
        """So that the one that does not is named."""
        for other in others:
            if other.pending and other.answers_within(0.0):
                self.hear_end(other, (DEADLINE, LOST), who)
            if not other.pending:
                other.begin("ready")

    # ---- After an engine's loss

    def go_on(self, loss):
        """All engines are there again: to rest, by a cycle whose bytes are checked."""
        for actor in self.actors:
            if actor.pending == "attach":
                place = actor.found(self.job) or actor.end()  # It was stopped for so long that its rank refused it.
                actor.begin_to_take_part()
                if actor.role == "trainer":
                    actor.step = int(place["kept"])
                else:
                    actor.version = place["version"]
            elif actor.pending and actor.pending != "wait":
                call = actor.pending
                try:
                    result = actor.end(self.limit_s() * 2)
                    if call == "train":
                        actor.step = result
                except Answer as error:
                    if error.status not in (DEADLINE, LOST):
                        raise Trouble(f"{call} of {actor.name} after it went on: {error}") from error
        for actor in self.servers:
            if actor.pending == "wait" and actor.answers_within(0.0):
                actor.version = actor.end()
            if not actor.pending:
                actor.begin("wait", actor.version)
        for actor in self.trainers:
            actor.begin("take_back")
        for actor in self.trainers:
            actor.end(self.limit_s())
        for actor in self.trainers:
            self.check(actor, actor.step)
        for actor in self.servers:
            if actor.answers_within(0.0):
                actor.version = actor.end()
        self.cycle()

    # ---- A job that is lost

    def judge_stopped_launcher(self, pid):
        """mpirun does nothing that an update needs."""
        for actor in self.actors:
            if actor.pending not in ("", "wait"):
                call, result = actor.pending, actor.take_part() if actor.pending == "attach" else actor.end()
                if call == "train":
                    actor.step = result
                if call == "attach" and actor.role == "trainer":
                    actor.step = int(result["kept"])
        try:
            self.go_on(None)
        finally:
            os.kill(pid, signal.SIGCONT)

    def judge_lost_job(self, loss):
        """Every engine hears of it and keeps what it has; nothing is left; another job follows."""
        start = time.monotonic()
        limit = PROMISE_S + allowance_s() + (self.arguments.timeout + END_S if loss.how == "stop" else END_S)
        for actor in self.actors:
            if actor.pending != "attach" or self.has_attached(actor):
                error = self.end_of_call(actor, limit - (time.monotonic() - start))
                if error.status != LOST or "lost" not in error.text:
                    raise Trouble(f"{actor.name} is not told that the job is lost: {error}")
        self.note_time(f"engines hear of a lost {loss.victim} ({loss.how})", time.monotonic() - start, limit)
        self.judge_what_is_left(loss, limit + END_S - (time.monotonic() - start))
        waits = [actor for actor in self.actors if actor.pending == "attach"]  # for the job that follows
        for actor in self.actors:
            if actor in waits:
                continue
            if actor.role == "trainer" and actor.step >= 0:
                self.restore(actor)
                self.check(actor, actor.step)
            self.judge_mappings(actor)
        actors = self.actors
        if waits or not loss.same_processes:
            for actor in actors:
                actor.kill()
            actors = []
        self.job = None
        self.step = max(self.step, *(actor.step for actor in self.trainers))
        self.start(actors)

    @staticmethod
    def restore(actor):
        """A trainer has all its memory without its rank, proven: what was away, or on its way, comes back."""
        if not actor.do("restore"):
            raise Trouble(f"{actor.name} has restored its memory, and not all of it is proven")
        if not actor.do("all_mapped"):
            raise Trouble(f"{actor.name} has restored its memory, and not all of it is there")

    def has_attached(self, actor):
        """Whether one that was about to attach had reached its rank."""
        if not actor.answers_within(2.0 + allowance_s()) or not actor.found(self.job):
            return False
        try:
            actor.begin_to_take_part()
        except Answer as error:
            if error.status != LOST:
                raise
        return True

    def end_of_call(self, actor, limit_s):
        """The error that a call ends with, of which the first may have been over before the loss."""
        error = None
        while not (error and error.status == LOST):
            if not actor.pending:
                actor.begin("ready")
            call = actor.pending
            try:
                result = actor.end(limit_s)
                if call == "train":
                    actor.step = result
            except Answer as failed:
                error = failed
                if call == "train":  # in its midst
                    actor.step = -1
                if failed.status not in (LOST, DEADLINE):
                    break
        return error

    def judge_what_is_left(self, loss, limit_s):
        # Open MPI leaves its own when it ends ranks whose mpirun has gone.
        shared_files = {path for path in self.shared_files if loss.victim != "mpirun" or "vader_segment" not in path}
        left = lambda: [f"process {pid}" for pid in processes_with(self.token)] + [  # noqa: E731
            path for path in sorted(self.private | shared_files) if os.path.exists(path)]
        try:
            wait_until(lambda: self.job.process.poll() is not None and not left(), limit_s, "the job is gone")
        except Trouble as late:
            raise Trouble(f"{late}: mpirun {self.job.process.poll()}; left: {left()}") from late
        record = json.loads(text_of(self.job.directory + "/job.json"))
        if loss.victim == "rank" and loss.index != 0:
            if not record["ended_at"] or not re.search(rf"\brank {loss.index}\b", record["end"]):
                raise Trouble(f"the record does not tell of rank {loss.index}: {record}")
        status = self.job.client("status")
        if status.returncode == OK or "no job serves" not in status.stderr:
            raise Trouble(f"status of a lost job: {status.returncode} {status.stderr}")

    def judge_mappings(self, actor):
        """An engine that leaves its job has nothing of it any more."""
        if self.is_mapped(actor) and "weights" not in actor.do("truly_mapped"):
            raise Trouble(f"{actor.name} has no memory where its weights are mapped")
        actor.do("detach")
        pid = actor.process.pid
        held = actor.do("truly_mapped") + re.findall(r"memfd:awex\S*", text_of(f"/proc/{pid}/maps"))
        # One that is connected, and no more: CUDA's driver listens at sockets of its own, which have names.
        sockets = [line.split() for line in text_of(f"/proc/{pid}/net/unix").splitlines()]
        sockets = {f"socket:[{fields[6]}]" for fields in sockets if fields[4] == "0001" and len(fields) == 7}
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
            held += [target] if "memfd:awex" in target or target in sockets else []
        if held:
            raise Trouble(f"{actor.name} has left, and holds {held}")

    # ---- All

    def draw(self, dice):
        for loss in losses(dice, self.arguments.runs, self.arguments.ranks):
            yield (f"{loss.victim}, {loss.how}",
                   f"{loss.how} {loss.victim} {loss.index} in {loss.moment} at {loss.wait_s:.2f}", loss)

    def forget(self):
        self.end()
        self.step = 0

    def figures(self):
        arguments = self.arguments
        lines = [f"{arguments.runs} runs, seed {arguments.seed}, {arguments.ranks} ranks on {arguments.backend}, "
                 f"timeout {arguments.timeout} s: {len(self.failures)} failed; {self.jobs} jobs"]
        lines += [f"  {kind}: {count}" for kind, count in sorted(self.counts.items())]
        lines += [f"  {what}: {seconds:.2f} s at most" for what, seconds in sorted(self.slowest.items())]
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mpiexec")
    parser.add_argument("binary", help="awex-colocate")
    parser.add_argument("library", help="libawex_colocate.so")
    parser.add_argument("--backend", choices=["host", "cuda"], default="host")
    parser.add_argument("--optimizer-mib", type=int, default=1, help="a trainer's optimizer state, 1 for one chunk")
    add_options(parser, runs=len(KINDS), ranks=2)
    arguments = parser.parse_args()
    Programs.mpiexec, Programs.binary, Programs.library = arguments.mpiexec, arguments.binary, arguments.library
    return carry_out(Runs, arguments, "awex-random-losses-")


if __name__ == "__main__":
    sys.exit(main())
