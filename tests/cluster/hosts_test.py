#!/usr/bin/env python3
"""Jobs of mpirun on two hosts, with networks of their own.

usage: with_hosts.py hosts_test.py MPIEXEC BINARY [NAME...]
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest
import uuid

from hosts import DISK, JOB, NODES, START_LIMIT_S, Ended, lines_of, main_side_by_side, must_be_gone, new_directory, on
from hosts import text_of, whole_report
# pylint: disable=wrong-import-order
from mpi_run import processes_with, runs_program
from resident_job import Trouble, wait_until

MPIEXEC = BINARY = ""
END_LIMIT_S = 30.0  # of a job whose ranks are lost: its timeout, and what Open MPI's daemons take


def mpirun(ranks):
    """Starts as many ranks on each host, through the agent that stands for ssh."""
    hosts = ",".join(f"{node}:{ranks}" for node in NODES)
    return [MPIEXEC, "--mca", "plm_rsh_agent", os.environ["AWEX_AGENT"], "--host", hosts]


def network_bytes():
    """What the hosts have sent to each other."""
    links = json.loads(subprocess.run(["ip", "-s", "-j", "link"], capture_output=True, check=True).stdout)
    return sum(link["stats64"]["rx"]["bytes"] for link in links if link["ifname"] in NODES)


def with_option(words, name, value):
    words = list(words)
    words[words.index(name) + 1] = value
    return words


class Updates(unittest.TestCase):
    MORE = 12  # versions, so that what two starts differ in does not count

    def measured(self, ranks, trainer, versions):
        """A job's report, and the bytes that went over the network."""
        before = network_bytes()
        job = with_option(JOB, "--trainer", trainer)
        ended = Ended([*mpirun(ranks), BINARY, "update", *job, "--versions", versions, "--json", "-"]).must()
        return json.loads(ended.out), network_bytes() - before

    def bytes_of_a_version(self, ranks, trainer):
        """As planned, and as measured without what the start of a job takes."""
        few, many = (self.measured(ranks, trainer, versions) for versions in (1, 1 + self.MORE))
        self.assertEqual(many[0]["world"], {"ranks": 2 * ranks, "gpus": ranks, "nodes": 2, "one_core_ranks": []})
        self.assertEqual({version["digest"]["mismatched"] for version in many[0]["versions"]}, {0})
        return many[0]["plan"]["remote_bytes"], (many[1] - few[1]) / self.MORE

    def test_what_only_the_other_host_has_crosses_the_network_once(self):
        planned, measured = self.bytes_of_a_version(2, "megatron:tp=2")
        self.assertGreater(planned, 7_000_000)
        self.assertGreater(measured, planned)
        self.assertLess(measured, 1.1 * planned)

    def test_what_a_gpu_of_the_same_host_has_does_not_cross_it(self):
        planned, measured = self.bytes_of_a_version(4, "megatron:tp=2")
        self.assertGreater(planned, 14_000_000)
        self.assertLess(measured, 0.05 * planned)

    def test_doctor_examines_both_hosts(self):
        report = json.loads(Ended([*mpirun(2), BINARY, "doctor", "--backend", "host", "--json", "-"]).must().out)
        self.assertTrue(report["ok"])
        self.assertEqual({rank["host"] for rank in report["ranks"]}, set(NODES))

    def test_a_lost_rank_of_another_host_is_named(self):
        """Also where MPI ends rank 0, or another, as it has written to the one that is gone."""
        for lost in (4, 5, 6, 7):
            with self.subTest(lost=lost):
                self.check_lost(lost)

    def check_lost(self, lost):
        directory = new_directory("lost")
        token = uuid.uuid4().hex
        words = [*mpirun(4), "-x", "AWEX_TEST_TOKEN", BINARY, "update", *JOB, "--versions", "100000", "--json",
                 directory / "report.json"]
        with open(directory / "errors", "w", encoding="utf-8") as errors, \
                subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=errors, env={**os.environ, "AWEX_TEST_TOKEN": token}) as process:
            wait_until(lambda: "version 1 of" in text_of(directory / "errors"), START_LIMIT_S, "it commits")
            os.kill(ranks_with(token)[lost], signal.SIGKILL)
            code = process.wait(timeout=END_LIMIT_S)
        must_be_gone(token)
        told = text_of(directory / "errors")
        self.assertEqual(code, 128 + signal.SIGKILL, told)
        self.assertRegex(told, rf"(?m)^error: .*rank {lost} \(\w+, host n2, gpu \d\) pid \d+ is gone")
        self.assertEqual(whole_report(directory / "report.json", told)["error"]["code"], 5)


def ranks_with(token):
    """Pids of a job's ranks in the order of ranks: those of the first host first."""
    def rank_of(pid):
        try:
            with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
                return int(dict(entry.split("=", 1) for entry in file.read().split("\0") if "=" in entry)
                           ["OMPI_COMM_WORLD_RANK"])
        except (OSError, KeyError):
            return None  # it has just ended

    ranks = {pid: rank_of(pid) for pid in processes_with(token) if runs_program(pid, BINARY)}
    return sorted((pid for pid, rank in ranks.items() if rank is not None), key=ranks.get)


class Resident(unittest.TestCase):
    """A resident job over both hosts; its clients are on the first."""

    def setUp(self):
        self.directory = new_directory("resident")
        self.token = uuid.uuid4().hex
        self.log, self.errors = self.directory / "log", self.directory / "errors"
        words = [*mpirun(4), "-x", "AWEX_TEST_TOKEN", BINARY, "serve", "--job", self.directory / "job", *JOB]
        with open(self.log, "w", encoding="utf-8") as log, open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=log, stderr=errors,
                                            env={**os.environ, "AWEX_TEST_TOKEN": self.token})
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        wait_until(lambda: " serving " in text_of(self.log) or self.process.poll() is not None, START_LIMIT_S,
                   "the job serves")
        if self.process.poll() is not None:
            raise Trouble(f"the job has not come to serve: {text_of(self.errors)}")

    def ask(self, command, *options, host="n1"):
        return Ended(on(host, BINARY, command, "--job", self.directory / "job", *options))

    def status(self):
        return json.loads(self.ask("status", "--json", "-").must().out)

    def record(self):
        return json.loads(text_of(self.directory / "job" / "job.json"))

    def await_end(self):
        code = self.process.wait(timeout=END_LIMIT_S)
        must_be_gone(self.token)
        return code

    def test_commands(self):
        for version in (1, 2, 3):
            report = json.loads(self.ask("update", "--json", "-").must().out)
            self.assertEqual((report["committed_version"], report["world"]["nodes"]), (version, 2))
            self.ask("resume").must()
        ranks = self.status()["ranks"]
        self.assertEqual([rank["host"] for rank in ranks], ["n1"] * 4 + ["n2"] * 4)
        self.assertEqual({rank["engine"] for rank in ranks}, {"built in"})
        elsewhere = self.ask("status", host="n2").must(2)
        self.assertIn("n1", elsewhere.err)
        self.ask("stop").must()
        self.assertEqual(self.await_end(), 0)
        self.assertEqual(self.record()["end"], "stopped by a client")

    def test_an_idle_job_rests_on_every_host(self):
        self.ask("update").must()
        pids = ranks_with(self.token)
        self.assertEqual(len(pids), 8)
        time.sleep(1)
        seconds = 3

        def ran_ns():
            """Of all threads."""
            return [sum(int(text_of(task / "schedstat").split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir())
                    for pid in pids]

        for _ in range(3):  # what others do on the machine may wake them, too
            before = ran_ns()
            time.sleep(seconds)
            shares = [(after - first) / 1e9 / seconds for first, after in zip(before, ran_ns())]
            if max(shares) <= 0.006:  # 0.2 % of a core is promised
                break
        self.assertLessEqual(max(shares), 0.006, shares)
        self.ask("stop").must()
        self.assertEqual(self.await_end(), 0)

    def test_a_lost_rank_of_another_host_ends_it(self):
        self.ask("update").must()
        os.kill(ranks_with(self.token)[5], signal.SIGKILL)
        self.assertEqual(self.await_end(), 128 + signal.SIGKILL)
        self.assertRegex(text_of(self.errors), r"(?m)^error: .*rank 5 \(trainer, host n2, gpu 1\) pid \d+ is gone")
        self.assertIn("host n2", self.record()["end"])
        self.assertEqual(len(lines_of("error: ", self.ask("update").must(2).err)), 1)


class CutNetwork(unittest.TestCase):
    """The link of n2 goes down under jobs at work and one at rest."""

    TIMEOUT_S = 4.0
    NAMED_S = TIMEOUT_S + 2  # as promised
    OTHERS_S = NAMED_S + 4  # ranks that rank 0 cannot reach let it report first
    BUSY_S = 3.0  # what a machine that has more to do adds
    # As docs/cluster.md has it, for mpirun itself.
    KEEPALIVE = ("--mca", "oob_tcp_keepalive_time", 2, "--mca", "oob_tcp_keepalive_intvl", 1, "--mca",
                 "oob_tcp_keepalive_probes", 3)

    def start(self, timeout_s, *words, keepalive=()):
        directory, token = new_directory("cut"), uuid.uuid4().hex
        words = [*mpirun(2), *keepalive, "-x", "AWEX_TEST_TOKEN", BINARY, *words,
                 *with_option(JOB, "--timeout", f"{timeout_s}s")]
        with open(directory / "told", "w", encoding="utf-8") as told:
            process = subprocess.Popen(list(map(str, words)), cwd=directory, stdin=subprocess.DEVNULL, stdout=told,
                                       stderr=told, env={**os.environ, "AWEX_TEST_TOKEN": token})
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return directory / "told", token, process

    def cut(self):
        """Takes the link down; returns a function that waits until a condition holds, in seconds from then on."""
        subprocess.run(["ip", "link", "set", "n2", "down"], check=True)
        self.addCleanup(self.mend)
        begin = time.monotonic()

        def by(limit_s, condition, told):
            try:
                wait_until(condition, max(0.0, begin + limit_s + self.BUSY_S - time.monotonic()), "as it should be")
            except Trouble as late:
                raise Trouble(f"{late}\n{text_of(told)}") from late

        return by

    def mend(self):
        subprocess.run(["ip", "link", "set", "n2", "up"], check=True)

    def check_rest(self, told):
        # When the link is back that of n2's ranks comes, too.
        for error in lines_of("error: .*", text_of(told)):
            self.assertRegex(error, "host n[12] has given no sign of life for 4.00 s")
        record = json.loads(text_of(told.parent / "job" / "job.json"))
        self.assertIn("host n2 has given no sign of life", record["end"])
        self.assertEqual(record["exit_code"], 4)

    def check_work(self, told):
        report = whole_report(told.parent / "report.json", text_of(told))
        self.assertEqual((report["exit_code"], report["error"]["code"]), (4, 4))
        self.assertIn("host n2", report["error"]["message"])

    def test_is_named_and_ends_all_ranks(self):
        update = ("update", "--versions", 100000, "--json", "report.json")
        jobs = [self.start(self.TIMEOUT_S, "serve", "--job", "job"), self.start(self.TIMEOUT_S, *update),
                self.start(60, *update, keepalive=self.KEEPALIVE)]
        rests, works, watched = (told for told, _, _ in jobs)
        for told, said in ((works, "version 1 of"), (watched, "version 1 of"), (rests, " serving ")):
            wait_until(lambda told=told, said=said: said in text_of(told), START_LIMIT_S, f"{told} says {said}")
        Ended(on("n1", BINARY, "update", "--job", rests.parent / "job")).must()

        by = self.cut()
        by(self.NAMED_S, lambda: lines_of(
            "error: rank 0 .*: host n2 has given no sign of life for 4.00 s while the job rests: "
            r"rank 2 \(trainer, host n2, gpu 0\), rank 3 \(inference, host n2, gpu 0\)", text_of(rests)), rests)
        # Whoever waits first tells it; mpirun may put it in the midst of the report.
        by(self.NAMED_S, lambda: re.search(
            r"error: rank [01] .*rank [23] \(\w+, host n2, gpu 0\).* after 4.00 s", text_of(works)), works)
        for told, token, _ in jobs:
            by(self.OTHERS_S, lambda token=token: not ranks_with(token), told)
        # mpirun waits for its daemon, unless it has been told to look after it.
        self.assertNotEqual(jobs[2][2].wait(timeout=END_LIMIT_S), 0)
        self.assertRegex(text_of(watched), "lost communication with a remote daemon(.|\n)*on node n2")
        whole_report(watched.parent / "report.json", text_of(watched))
        self.mend()
        for told, token, process in jobs:
            process.wait(timeout=END_LIMIT_S)
            must_be_gone(token)
        self.check_rest(rests)
        self.check_work(works)


if __name__ == "__main__":
    MPIEXEC, BINARY = sys.argv[1:3]
    sys.exit(main_side_by_side(sys.argv[3:], 1))
