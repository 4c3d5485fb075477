#!/usr/bin/env python3
"""Jobs under Slurm, on two hosts of a private cluster.

usage: with_hosts.py --slurm slurm_test.py MPIEXEC BINARY LIBRARY SOURCE [NAME...]
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest
import uuid

from hosts import DISK, JOB, START_LIMIT_S, Ended, lines_of, main_side_by_side, must_be_gone, new_directory, on
from hosts import text_of, whole_report
# pylint: disable=wrong-import-order
from mpi_run import hears_signal, runs_program
from resident_job import Trouble, wait_until
from storage import build_storage, variables_of

MPIEXEC = BINARY = LIBRARY = ROOT = ""
AT_ONCE = 4
QUEUE_LIMIT_S = 300.0  # of a job whose place others have
FIRST = ("test_out_of_time", "test_cancelled_in_phases", "test_batch_files", "test_what_is_typed", "test_every_way")
MEMORY = ("--mem=2000",)
# Of batch files that ask for whole nodes, as they do for all memory: then the jobs of one case would wait for those
# of all others.
SHARED = ("--oversubscribe", "--mincpus=8")
FINAL_STATES = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
COMMITTED = r"version 1 of \d+: committed"
LOADING = r"update: .* ranks, "


def update(*options):
    return [BINARY, "update", *JOB, *options]


def quoted(words):
    return " ".join(f"'{word}'" for word in words)


def launched(words, **variables):
    """A job of srun or salloc that has ended, after it may have waited for others."""
    return Ended(words, limit_s=QUEUE_LIMIT_S + START_LIMIT_S, **variables)


def srun(*words):
    return ["srun", "--mpi=pmix", "--kill-on-bad-exit=1", *MEMORY, *words]


def engine_command(role):
    return f"'{sys.executable}' '{ROOT}/tests/cluster/plain_engine.py' {role}"


def package():
    """Where engines find the Python package."""
    return {"AWEX_COLOCATE_LIBRARY": LIBRARY, "PYTHONPATH": f"{ROOT}/python/src"}


class BatchJob:
    """A job of sbatch with a directory of its own, where `log` is: of a script's text, or of a file."""

    def __init__(self, test, script, *options, batch_file="script", **variables):
        self.directory = new_directory("batch")
        self.token = uuid.uuid4().hex
        self.log = self.directory / "log"
        (self.directory / "script").write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        submitted = Ended(["sbatch", "--parsable", "--output=log", "--open-mode=append", *MEMORY, *options, batch_file],
                          self.directory, AWEX_TEST_TOKEN=self.token, **variables)
        self.id = submitted.must().out.strip()
        test.addCleanup(lambda: Ended(["scancel", "--quiet", self.id]))  # of a test that fails

    def facts(self):
        """What Slurm knows of it."""
        shown = Ended(["scontrol", "--oneliner", "show", "job", self.id]).must().out.splitlines()[0]
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def text(self):
        return text_of(self.log) if self.log.exists() else ""

    def await_text(self, pattern, after=0):
        """Waits for a line of the log, of what stands there behind `after` characters."""
        self.wait_until(lambda: lines_of(pattern, self.text()[after:]), f"it says /{pattern}/")

    def wait_until(self, condition, what):
        """Without the time for which others have its place."""
        def queues():
            time.sleep(0.2)
            return self.facts()["JobState"] == "PENDING"

        try:
            wait_until(lambda: condition() or not queues(), QUEUE_LIMIT_S, "it runs")
            wait_until(condition, START_LIMIT_S, what)
        except Trouble as late:
            raise Trouble(f"{late}\n{self.facts()}\n{self.text()}") from late

    def await_end(self):
        """Its state and exit code, as Slurm shows them, when no process of it is left."""
        def ended():
            time.sleep(0.2)
            return self.facts()["JobState"] in FINAL_STATES

        self.wait_until(ended, "it ends")
        must_be_gone(self.token)
        facts = self.facts()
        return facts["JobState"], facts["ExitCode"]


def ranks_of(name, command="update"):
    """Pids of the ranks whose command line names a file."""
    found = subprocess.run(["pgrep", "--full", f"{BINARY} {command}.*{name}"], capture_output=True, text=True,
                           check=False).stdout.split()
    return [int(pid) for pid in found if runs_program(pid, BINARY)]


class SlurmTest(unittest.TestCase):
    longMessage = True

    def check_told_to_end(self, job, report="report.json"):
        """The job was told to end: the cause is told once, and no finished version is lost."""
        text = job.text()
        self.assertEqual(len(lines_of("error: rank ", text)), 1, text)
        self.assertRegex(text, r"(?m)^error: .*told to end by SIGTERM")
        found = whole_report(job.directory / report, text)
        self.assertIn("told to end by SIGTERM", found["error"]["message"])
        self.assertEqual(found["exit_code"], 1)


    def check_refused(self, code, text):
        """One error, and exit code 2; srun's is 143 where it has ended a rank that was still being started."""
        self.assertEqual(len(lines_of("error:", text)), 1, text)
        self.assertIn("Exited with exit code 2", text)
        if not (code == 128 + 15 and lines_of(r"srun: error: \w+: tasks? [\d,-]+: Terminated", text)):
            self.assertEqual(code, 2, text)

    def check_batch_refused(self, job):
        state, code = job.await_end()
        self.assertEqual(state, "FAILED", job.text())
        self.check_refused(int(code.partition(":")[0]), job.text())


class Launches(SlurmTest):
    def digests(self, ended):
        report = json.loads(ended.must().out)
        self.assertTrue(report["ok"])
        return report["world"]["nodes"], [version["digest"]["model"] for version in report["versions"]]

    def test_every_way_to_start_a_job_gives_the_digests_of_one_host(self):
        job = update("--json", "-")
        expected = self.digests(Ended([MPIEXEC, "--oversubscribe", "-n", "4", *job]))[1]
        two_hosts = ("-N2", "--ntasks-per-node=4")
        allocation = ["salloc", *MEMORY, *two_hosts]
        for start, nodes in (([*srun("-N1", "-n4"), *job], 1), ([*srun(*two_hosts), *job], 2),
                             ([*allocation, MPIEXEC, *job], 2), ([*allocation, *srun(), *job], 2)):
            with self.subTest(start[:6]):
                self.assertEqual(self.digests(launched(start)), (nodes, expected))

    def test_mpirun_in_a_batch_file(self):
        job = BatchJob(self, f"{MPIEXEC} {quoted(update('--json', 'report.json'))}", "-N2", "--ntasks-per-node=4")
        self.assertEqual(job.await_end(), ("COMPLETED", "0:0"), job.text())
        report = json.loads(text_of(job.directory / "report.json"))
        self.assertEqual((report["ok"], report["world"]["nodes"], report["world"]["ranks"]), (True, 2, 8))

    def test_srun_without_pmix_is_one_error(self):
        ended = launched(["srun", "--kill-on-bad-exit=1", *MEMORY, "-n4", *update()])
        self.check_refused(ended.code, ended.err)
        self.assertIn("srun --mpi=pmix -n 4", ended.err)

    def test_wrong_options_are_one_error(self):
        ended = launched([*srun("-n4"), BINARY, "update", "--modl", "x"])
        self.check_refused(ended.code, ended.err)

    def test_ranks_of_unequal_nodes_are_counted(self):
        """7 and 1 ranks cannot be; 6 and 2 can."""
        for counts, code in (((7, 1), 2), ((6, 2), 0)):
            with self.subTest(counts):
                hosts = DISK / f"hosts-{uuid.uuid4().hex}"
                hosts.write_text("n1\n" * counts[0] + "n2\n" * counts[1], encoding="ascii")
                words = [*srun("-N2", "-n8", "-m", "arbitrary"), *update()]
                ended = launched(words, SLURM_HOSTFILE=str(hosts)).must(code)
                if code != 0:
                    self.assertEqual(len(lines_of("error:", ended.err)), 1, ended)
                    self.assertIn("of 8 ranks: 7 on n1, 1 on n2", ended.err)
                    self.assertIn("--ntasks-per-node", ended.err)

    def test_doctor_examines_both_hosts(self):
        words = [*srun("-N2", "--ntasks-per-node=2"), BINARY, "doctor", "--backend", "host", "--json", "-"]
        report = json.loads(launched(words).must().out)
        self.assertTrue(report["ok"])


class Arrays(SlurmTest):
    def test_tasks_side_by_side_do_not_meet(self):
        """Three jobs of an array, on one host, at work at once."""
        meet = "touch here-$SLURM_ARRAY_TASK_ID; until [[ $(ls here-* | wc -l) == 3 ]]; do sleep 0.1; done"
        words = quoted(update("--versions", "5", "--json"))
        job = BatchJob(self, f"{meet}\nexec srun --mpi=pmix {words} report-$SLURM_ARRAY_TASK_ID.json", "--array=0-2", "-N1",
                       "-n4", "-w", "n1", "--output=log-%a")
        job.wait_until(lambda: not Ended(["squeue", "-h", "-j", job.id]).out, "all tasks have ended")
        must_be_gone(job.token)
        reports = [json.loads(text_of(job.directory / f"report-{task}.json")) for task in range(3)]
        self.assertEqual([report["ok"] for report in reports], [True] * 3)
        self.assertEqual([report["memory"]["leaked_bytes"] for report in reports], [0] * 3)
        self.assertEqual(len({str([version["digest"] for version in report["versions"]]) for report in reports}), 1)


class Ends(SlurmTest):
    """How Slurm ends jobs."""

    def started(self, versions=100000, options=("-n4",), launch="", loading=False, variables=None):
        """A job that makes versions, when it has come to load its weights or to make the second version."""
        words = list(update("--versions", str(versions), "--json", "report.json"))
        variables = dict(variables or {})
        if loading:
            directory = new_directory("storage")
            Ended([BINARY, "checkpoint", "--preset", "tiny-dense", "--out", directory / "model", "-q"]).must()
            words[words.index("preset:tiny-dense")] = str(directory / "model")
            slow = variables_of(build_storage(str(directory)), {"ms": 200})
            words = ["env", *(f"{name}={value}" for name, value in slow.items()), *words]
        job = BatchJob(self, f"exec {launch or quoted(srun())} {quoted(words)}", *options, **variables)
        job.await_text(LOADING if loading else COMMITTED)
        return job

    def test_cancelled_while_loading(self):
        job = self.started(loading=True)
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED")
        self.check_told_to_end(job)

    def test_cancelled_while_mpi_starts(self):
        """As one rank does not come, MPI's start lasts. The report of an earlier run must not stay."""
        directory = new_directory("late")
        late = directory / "late"
        late.write_text('#!/bin/bash\nif [[ $SLURM_PROCID == 3 ]]; then exec sleep 600; fi\nexec "$@"\n', encoding="ascii")
        late.chmod(0o755)
        report = directory / "report.json"
        report.write_text('{"ok": true}', encoding="ascii")
        job = BatchJob(self, f"exec {quoted([*srun(), late, *update('--json', report)])}", "-n4")

        def in_start():
            return any(hears_signal(pid, signal.SIGTERM) for pid in ranks_of(report))

        job.wait_until(in_start, "a rank is in MPI's start")
        time.sleep(0.5)
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED")
        self.assertEqual(len(lines_of("error: told to end by a signal while MPI starts", job.text())), 1, job.text())
        found = whole_report(report, job.text())
        self.assertEqual((found["exit_code"], found["error"]["rank"]), (1, 0))

    def test_cancelled_in_phases(self):
        """At moments that differ, on one host and on two."""
        for moment, options in ((0.11, ("-N2", "--ntasks-per-node=2")), (0.23, ("-n4",))):
            with self.subTest(moment):
                job = self.started(options=options)
                time.sleep(moment)
                Ended(["scancel", job.id]).must()
                self.assertEqual(job.await_end()[0], "CANCELLED")
                self.check_told_to_end(job)

    def test_mpirun_is_cancelled(self):
        """Slurm tells mpirun and its daemons, which tell the ranks, or kill them: finished versions stay."""
        job = self.started(options=("-N2", "--ntasks-per-node=2"), launch=MPIEXEC)
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED")
        whole_report(job.directory / "report.json", job.text())

    def test_out_of_time(self):
        """While it loads and in its phases. Slurm looks twice a minute: until then others have the processors."""
        nice = quoted([*srun(), "nice"])
        jobs = [self.started(launch=nice), self.started(loading=True),
                self.started(launch=nice, options=("-N2", "--ntasks-per-node=2"))]
        for job in jobs:
            Ended(["scontrol", "update", f"JobId={job.id}", "EndTime=now+2"]).must()
        for job in jobs:
            self.assertEqual(job.await_end()[0], "TIMEOUT")
            self.check_told_to_end(job)

    def test_requeued(self):
        """The first run ends as one that is cancelled; the second, which Slurm starts, is as if alone."""
        job = self.started(options=("-n4", "--requeue"))
        Ended(["scontrol", "requeue", job.id]).must()
        job.wait_until(lambda: job.facts()["JobState"] == "PENDING", "it is queued again")
        must_be_gone(job.token)
        self.check_told_to_end(job)
        told = len(job.text())
        time.sleep(1)  # credentials of the second in which a run was ended are revoked: a job begun within it fails
        Ended(["scontrol", "update", f"JobId={job.id}", "StartTime=now"]).must()
        job.await_text(COMMITTED, after=told)
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED")
        self.assertEqual(job.facts()["Restarts"], "1")
        whole_report(job.directory / "report.json", job.text()[told:])

    def test_out_of_memory(self):
        """Slurm kills what holds more than it was granted: here a child of rank 0. Finished versions stay."""
        directory = new_directory("greedy")
        greedy = directory / "greedy"
        greedy.write_text("#!/bin/bash\nif [[ $SLURM_PROCID == 0 ]]; then\n"
                          f"  (until [[ -e {directory}/go ]]; do sleep 0.1; done\n"
                          "   python3 -c 'held = bytearray(1000 << 20); input()') < <(sleep 60) &\nfi\n"
                          'exec "$@"\n', encoding="ascii")
        greedy.chmod(0o755)
        job = self.started(options=("-n4", "--mem=900"), launch=quoted([*srun("--mem=900"), greedy]))
        (directory / "go").touch()
        self.assertEqual(job.await_end(), ("FAILED", "137:0"), job.text())
        self.assertIn("exceeded memory limit", job.text())
        report = whole_report(job.directory / "report.json", job.text())
        self.assertGreater(len(report["versions"]), 0)


class ExitCodes(SlurmTest):
    def test_slurm_shows_those_of_the_job(self):
        for code, options in ((0, ("--versions", "1")), (2, ("--layers", "0")), (2, ("--model", "/nowhere"))):
            with self.subTest(options):
                words = update() if "--model" not in options else [BINARY, "update", "--backend", "host"]
                job = BatchJob(self, f"exec {quoted([*srun(), *words, *options])}", "-n4")
                self.assertEqual(job.await_end(), ("FAILED" if code else "COMPLETED", f"{code}:0"), job.text())

    def test_those_of_ranks_that_hang_or_die(self):
        for number, timeout, codes in (("STOP", "4s", ("4:0",)), ("KILL", "30s", ("137:0", "5:0"))):
            with self.subTest(number):
                words = [BINARY, "update", *JOB[:-1], timeout, "--versions", "100000"]
                job = BatchJob(self, f"exec {quoted([*srun(), *words])} --json $PWD/report.json", "-n4")
                job.await_text(COMMITTED)
                pids = ranks_of(job.directory)
                self.assertEqual(len(pids), 4)
                Ended(["kill", f"-{number}", max(pids)]).must()
                state, code = job.await_end()
                self.assertEqual(state, "FAILED")
                self.assertIn(code, codes, job.text())
                self.assertEqual(len(lines_of("error: rank ", job.text())), 1, job.text())
                report = whole_report(job.directory / "report.json", job.text())
                self.assertIn("rank 3", report["error"]["message"])


class Guide(unittest.TestCase):
    """docs/cluster.md, word by word: every block of commands, with a smaller model, fewer GPUs and no ssh."""

    def setUp(self):
        self.directory = new_directory("guide")
        (self.directory / "examples").symlink_to(f"{ROOT}/examples")
        (self.directory / "build").mkdir()
        (self.directory / "build" / "awex-colocate").symlink_to(BINARY)
        self.variables = {
            "PATH": f"{self.directory}/build:{os.environ['PATH']}", "SBATCH_GPUS_PER_NODE": "2",
            "SLURM_STDINMODE": "none",
            "BACKEND": "host", "TRAINER_TP": "2", "INFERENCE_TP": "2", "VERSIONS": "1", "STEPS": "2",
            "OMPI_MCA_plm_rsh_agent": os.environ["AWEX_AGENT"], **package()}

    def blocks(self, word):
        """Those in which a word stands, less those marked as not run."""
        text = re.sub(r"(?ms)^<!-- not run: .*? -->\n```\n.*?^```$", "", text_of(f"{ROOT}/docs/cluster.md"))
        text = text.replace("MODEL=/models/Qwen3-8B", "MODEL=preset:tiny-dense")
        text = text.replace("python3 $PWD/train.py", f"{engine_command('trainer')} --steps 2")
        text = text.replace("python3 $PWD/serve.py", engine_command("inference"))
        text = text.replace("TP=4", "TP=2").replace("--nodes=2 --gpus-per-node=8", "--nodes=2")
        found = [block for block in re.findall(r"(?ms)^```\n(.*?)^```$", text) if word in block]
        self.assertTrue(found, f"no block has {word}")
        return found

    def typed(self, block):
        """What the commands say that a shell reads as they are typed, so that those behind salloc are its shell's."""
        done = subprocess.run(["bash", "-e"], input=block, cwd=self.directory, env={**os.environ, **self.variables},
                              capture_output=True, text=True, timeout=QUEUE_LIMIT_S + START_LIMIT_S, check=False)
        self.assertEqual(done.returncode, 0, f"{block}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def test_every_block_is_of_a_kind_that_is_run(self):
        kinds = ("doctor", "sbatch", "salloc", "mpirun --host", "mpirun --mca", "awex-colocate plan", "serve")
        for block in self.blocks(""):
            self.assertEqual(sum(kind in block for kind in kinds), 1, block)

    def test_batch_files(self):
        """Which run side by side, except that what asks for whole nodes is told not to."""
        for block in self.blocks("sbatch"):
            submitted = self.typed(re.sub("(?m)^sbatch ", f"sbatch {' '.join(SHARED + MEMORY)} ", block))
            jobs = lines_of(r"Submitted batch job (\d+)", submitted)
            self.assertEqual(len(jobs), len(lines_of("sbatch ", block)))

            def ended(queue=("squeue", "-h", "-j", ",".join(jobs))):
                time.sleep(0.2)
                return not Ended(queue).out

            wait_until(ended, QUEUE_LIMIT_S + START_LIMIT_S, "all batch jobs have ended")
            logs = [text_of(log) for log in self.directory.glob("awex-*[0-9].log")]
            self.assertEqual(len(logs), len(jobs))
            for log in logs:
                self.assertRegex(log, "(?m)^(result +ok|content .* version 2 was the last committed)")
            reports = [json.loads(text_of(report)) for report in self.directory.glob("awex-update-*.json")]
            self.assertEqual(sorted((report["world"]["nodes"], report["world"]["gpus"], report["trainer"])
                                    for report in reports),
                             [(1, 2, "megatron:tp=2"), (1, 4, "megatron:tp=2"), (2, 4, "megatron:tp=2,pp=2")])
            for report in reports:
                self.assertEqual((report["ok"], report["committed_version"]), (True, 1))
                self.assertEqual(report["world"]["one_core_ranks"], [])

    def test_what_is_typed(self):
        for word, results in (("doctor", 0), ("salloc", 2), ("mpirun --host", 1), ("mpirun --mca", 1), ("awex-colocate plan", 0)):
            for block in self.blocks(word):
                with self.subTest(block):
                    self.assertEqual(len(lines_of("result +ok", self.typed(block))), results)

    def test_resident_job(self):
        for block in self.blocks("serve"):
            job = BatchJob(self, f"set -e\n{block}wait", "-N2", "--ntasks-per-node=4",
                           PATH=self.variables["PATH"])
            self.assertEqual(job.await_end(), ("COMPLETED", "0:0"), job.text())
            self.assertEqual(len(lines_of("result +ok", job.text())), 2, job.text())


class BatchFiles(SlurmTest):
    """Those of examples/slurm, as they are shipped: the environment and sbatch's options fit them to these hosts."""

    def submit(self, name, *options, **variables):
        job = BatchJob(self, "", *SHARED, "--gpus-per-node=2", *options, batch_file=f"{ROOT}/examples/slurm/{name}",
                       **{"MODEL": "preset:tiny-dense", "AWEX": BINARY, "BACKEND": "host", **variables})
        return job

    def test_a_program_that_is_missing_is_named(self):
        job = self.submit("one_node.sbatch", AWEX="/nowhere/awex-colocate")
        self.assertEqual(job.await_end()[0], "FAILED")
        self.assertIn("/nowhere/awex-colocate", job.text())
        jobs = {name: self.submit(name, AWEX="") for name in ("one_node.sbatch", "many_nodes.sbatch",
                                                              "resident_job.sbatch")}
        for name, job in jobs.items():
            with self.subTest(name):
                self.assertEqual(job.await_end(), ("FAILED", "1:0"))
                self.assertIn("PATH has no awex-colocate: name it by AWEX", job.text())

    def test_resident_job(self):
        job = self.submit("resident_job.sbatch", "--nodes=2", STEPS="2")
        self.assertEqual(job.await_end(), ("COMPLETED", "0:0"), job.text())
        directory = job.directory / f"awex-job-{job.id}"
        reports = [json.loads(text_of(directory / f"update-{step}.json")) for step in (1, 2)]
        self.assertEqual([report["committed_version"] for report in reports], [1, 2])
        self.assertEqual({report["world"]["nodes"] for report in reports}, {2})
        self.assertEqual(json.loads(text_of(directory / "job.json"))["end"], "stopped by a client")

    def test_resident_job_whose_time_is_nearly_up(self):
        """What --signal=B:TERM@120 sends."""
        job = self.submit("resident_job.sbatch", STEPS="100000")
        job.await_text("committed  version 1")
        Ended(["scancel", "--batch", "--signal=TERM", job.id]).must()
        self.assertEqual(job.await_end(), ("COMPLETED", "0:0"), job.text())
        self.assertIn("told to end behind step", job.text())
        record = json.loads(text_of(job.directory / f"awex-job-{job.id}" / "job.json"))
        self.assertEqual(record["end"], "stopped by a client")

    def test_resident_job_that_is_cancelled(self):
        job = self.submit("resident_job.sbatch", STEPS="100000")
        job.await_text("committed  version 1")
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED", job.text())
        record = json.loads(text_of(job.directory / f"awex-job-{job.id}" / "job.json"))
        # "by a signal", or in a command "by SIGTERM in phase ..."
        self.assertTrue(record["end"].startswith("told to end by "), record["end"])

    def test_resident_job_that_cannot_begin(self):
        self.check_batch_refused(self.submit("resident_job.sbatch", MODEL="/nowhere"))


class AttachedEngines(SlurmTest):
    """attached_engines.sbatch, with engines of plain Python."""

    def submit(self, *options, trainer="", inference="", **variables):
        return BatchJob(self, "", *SHARED, *options, batch_file=f"{ROOT}/examples/slurm/attached_engines.sbatch",
                        **{"MODEL": "preset:tiny-dense", "AWEX": BINARY, "BACKEND": "host",
                           "TRAINER": f"{engine_command('trainer')} {trainer}",
                           "INFERENCE": f"{engine_command('inference')} {inference}", **package(), **variables})

    def log_of(self, job, role):
        log = job.directory / f"awex-attached-{job.id}-{role}.log"
        return text_of(log) if log.exists() else ""

    def facts_of(self, job, role):
        """What its engines have told: where they are, and versions. Slurm may put two in one line."""
        facts = [json.loads(fact) for fact in re.findall("{[^{}]*}", self.log_of(job, role))]
        return ([fact for fact in facts if "role" in fact],
                [fact["version"] for fact in facts if "version" in fact])

    def check_end(self, job, state, code, end="stopped by a client"):
        ended = job.await_end()
        self.assertEqual(ended, (state, code), job.text() + self.log_of(job, "trainer") + self.log_of(job, "inference"))
        record = json.loads(text_of(job.directory / f"awex-job-{job.id}" / "job.json"))
        self.assertTrue(record["end"].startswith(end), record["end"])

    def await_version(self, job, version):
        job.wait_until(lambda: version in self.facts_of(job, "trainer")[1], f"version {version} is there")

    def test_on_two_nodes(self):
        """Each engine is on the node of its rank and is that rank's; each inference engine serves each version."""
        job = self.submit("--nodes=2", "--gpus-per-node=2", trainer="--steps 3")
        self.check_end(job, "COMPLETED", "0:0")
        ports = set()
        for role in ("trainer", "inference"):
            places, versions = self.facts_of(job, role)
            self.assertEqual(sorted((place["rank"], place["role_rank"], place["host"]) for place in places),
                             [(0, 0, "n1"), (1, 1, "n1"), (2, 2, "n2"), (3, 3, "n2")])
            self.assertEqual({(place["ranks"], place["master"]) for place in places}, {(4, "n1")})
            self.assertEqual({len(place["gpus"].split(",")) for place in places}, {2})
            self.assertEqual(sorted(versions), sorted(4 * [1, 2, 3]))
            ports |= {place["port"] for place in places}
        self.assertEqual(len(ports), 2)
        self.assertRegex(job.text(), "version 3 was the last committed")

    def test_tensor_parallel_ones_when_time_is_nearly_up(self):
        """What --signal=B:TERM@120 sends reaches the trainer, which ends behind its step. Inference is one process
        that starts workers, as vLLM does."""
        workers = f"for LOCAL_RANK in 0 1; do export LOCAL_RANK; {engine_command('inference')} & done; wait"
        job = self.submit("--gpus-per-node=2", trainer="--ends-on-sigterm", TRAINER_TP="2", INFERENCE_TP="2",
                          INFERENCE=workers, INFERENCE_TASKS="1")
        self.await_version(job, 2)
        Ended(["scancel", "--batch", "--signal=TERM", job.id]).must()
        self.check_end(job, "COMPLETED", "0:0")
        self.assertIn("megatron:tp=2 -> vllm:tp=2", job.text())
        trained, served = (self.facts_of(job, role)[1] for role in ("trainer", "inference"))
        self.assertEqual(sorted(served), sorted(trained))

    def test_an_engine_that_fails_ends_it_with_its_code(self):
        jobs = [self.submit(**{role: f"--exits-at 2 --code {code}"}) for role, code in (("trainer", 7), ("inference", 9))]
        for job, code, role in zip(jobs, (7, 9), ("trainer", "inference")):
            self.check_end(job, "FAILED", f"{code}:0")
            self.assertIn(f"{role} has ended the job first; exit code {code}", job.text())

    def test_engines_that_are_killed_are_started_again(self):
        """A trainer of two ranks of which one is killed, then inference: both go on where they were."""
        job = self.submit("--gpus-per-node=2", trainer="--ends-on-sigterm", TRAINER_TP="2", INFERENCE_TP="2", RESTARTS="2")
        for place, (role, version) in enumerate((("trainer", 3), ("inference", 6))):
            self.await_version(job, version)
            before = len(self.facts_of(job, role)[0])
            victim = self.facts_of(job, role)[0][place]
            Ended(on(victim["host"], "kill", "-KILL", victim["pid"])).must()
            job.wait_until(lambda role=role, before=before: len(self.facts_of(job, role)[0]) >= before + 2,
                           f"{role} has attached again")
            last = max(self.facts_of(job, "trainer")[1])
            self.await_version(job, last + 2)
        Ended(["scancel", "--batch", "--signal=TERM", job.id]).must()
        self.check_end(job, "COMPLETED", "0:0")
        self.assertEqual(lines_of(r"(.*) has failed and is started again \(restarts left: (\d)\)", job.text()),
                         [("trainer", "1"), ("inference", "0")])
        self.assertEqual([place["reattached"] for place in self.facts_of(job, "trainer")[0]], [False] * 2 + [True] * 2)
        trained, served = (set(self.facts_of(job, role)[1]) for role in ("trainer", "inference"))
        self.assertLessEqual(trained, served)

    def test_restarts_that_are_used_up(self):
        job = self.submit(trainer="--exits-at 2 --code 7", RESTARTS="1")
        self.check_end(job, "FAILED", "7:0")
        self.assertEqual(self.facts_of(job, "trainer")[1], [1, 2, 3, 4])
        self.assertIn("trainer has failed and is started again (restarts left: 0)", job.text())
        self.assertIn("trainer has ended the job first; exit code 7", job.text())

    def test_a_job_that_is_stopped_or_loses_a_rank_takes_them_along(self):
        stopped, lost = self.submit("--nodelist=n1"), self.submit()
        self.await_version(stopped, 1)
        stop = on("n1", BINARY, "stop", "--job", stopped.directory / f"awex-job-{stopped.id}")
        Ended(stop).must()
        self.await_version(lost, 1)
        ranks = ranks_of(f"awex-job-{lost.id}", "serve")
        self.assertEqual(len(ranks), 2)
        Ended(["kill", "-KILL", max(ranks)]).must()
        self.check_end(stopped, "FAILED", "1:0")
        state, code = lost.await_end()
        self.assertEqual(state, "FAILED")
        self.assertIn(code, ("137:0", "5:0"), lost.text())

    def test_that_are_cancelled(self):
        job = self.submit()
        self.await_version(job, 1)
        Ended(["scancel", job.id]).must()
        self.assertEqual(job.await_end()[0], "CANCELLED", job.text())
        record = json.loads(text_of(job.directory / f"awex-job-{job.id}" / "job.json"))
        self.assertTrue(record["end"].startswith("told to end by "), record["end"])

    def test_what_cannot_begin(self):
        wrong_model, no_inference = self.submit(MODEL="/nowhere"), self.submit(INFERENCE="")
        self.check_batch_refused(wrong_model)
        self.assertIn("/nowhere", wrong_model.text())
        self.assertEqual(no_inference.await_end(), ("FAILED", "2:0"), no_inference.text())
        self.assertEqual(len(lines_of("error:.*", no_inference.text())), 1, no_inference.text())
        self.assertRegex(no_inference.text(), r"\Aerror: TRAINER and INFERENCE")


if __name__ == "__main__":
    MPIEXEC, BINARY, LIBRARY, ROOT = sys.argv[1:5]
    sys.exit(main_side_by_side(sys.argv[5:], AT_ONCE, FIRST))
