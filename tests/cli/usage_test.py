"""Exit codes, stdout and stderr of awex-colocate for wrong requests, help and the outputs of a job.

usage: usage_test.py BINARY MPIEXEC
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import hears_signal  # noqa: E402
from resident_job import wait_until  # noqa: E402
from storage import build_storage, through_storage  # noqa: E402

BINARY = ""
MPIEXEC = ""
LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
JOB_COMMANDS = ("update", "offload", "transfer", "resume")


ERROR_LINE = re.compile(r"(?m)^(?:\033\[\d*m)*error:")


def checked(result, errors=1):
    """The result of a command, which tells `errors` errors where it has failed and none elsewhere."""
    told = len(ERROR_LINE.findall(result.stderr))
    if told != (errors if result.returncode else 0):
        raise AssertionError(f"{told} error lines and exit code {result.returncode}: {result.stderr}")
    return result


def run(*arguments, env=None, ranks=0, timeout_s=120, errors=1):
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in LAUNCHER_VARIABLES and not k.startswith(("SLURM_", "PMI_", "PMIX_"))
    }
    environment.update(env or {})
    launcher = [MPIEXEC, "--oversubscribe", "-n", str(ranks)] if ranks else []
    return checked(
        subprocess.run(
            [*launcher, BINARY, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        ),
        errors,
    )


def run_shell(script, *arguments, **options):
    """The binary, started by a shell's script in which it is "$@"."""
    command = ["bash", "-c", script, "_", BINARY, *arguments]
    options = {"stdout": subprocess.PIPE, **options}
    return checked(subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options))


class Usage(unittest.TestCase):
    def refused(self, *arguments, says, hint=None, **settings):
        result = run(*arguments, **settings)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertIn("error: ", result.stderr)
        self.assertIn(says, result.stderr)
        if hint:
            self.assertIn("hint: ", result.stderr)
            self.assertIn(hint, result.stderr)
        return result

    def test_help_and_version_are_no_errors(self):
        for arguments in (["--help"], ["-h"], ["--version"], *([c, "--help"] for c in JOB_COMMANDS)):
            with self.subTest(arguments):
                result = run(*arguments)
                self.assertEqual(result.returncode, 0)
                self.assertEqual(result.stderr, "")
                self.assertIn("awex-colocate", result.stdout)
        self.assertRegex(run("--version").stdout, r"^awex-colocate \d+\.\d+\.\d+\+[gs][.0-9a-f]+ \(backends host")

    def test_help_names_every_option_of_a_command(self):
        text = run("update", "--help").stdout
        for option in (
            "model layers trainer inference role backend optimizer kv-cache versions timeout verify "
            "no-offload share-gpu gpu-memory config json trace limits verbose quiet color"
        ).split():
            self.assertIn("--" + option, text)
        for command in ("offload", "transfer", "resume"):
            text = run(command, "--help").stdout
            self.assertNotRegex(text, r"(?m)^ *--versions")
            self.assertNotRegex(text, r"(?m)^ *--no-offload")

    def test_commands(self):
        self.refused(says="no command is given", hint="--help")
        self.refused("updat", "--model", "m", says='unknown command "updat"', hint='"update"')
        self.refused("--frob", "update", says='unknown option "--frob"', hint="--help")

    def test_options(self):
        for command in JOB_COMMANDS:
            with self.subTest(command):
                self.refused(command, says="--model is missing", hint="preset:")
                self.refused(
                    command, "--modle", "m", says='unknown option "--modle"', hint='"--model"'
                )
                self.refused(command, "--model", says="--model")
                self.refused(command, "--model", "m", "--timeout", "x", says="--timeout: ", hint="30s")
        self.refused("update", "--model", "m", "-v", "-q", says="--quiet")
        for option in ("--model", "--json", "--trace", "--metrics", "--trainer"):
            self.refused("update", option, "", says=f"{option}: its value is empty", hint="variable")
        self.refused("offload", "--model", "m", "--versions", "3", says='unknown option "--versions"')

    def test_checkpoint_and_digest(self):
        self.refused("checkpoint", "--out", "d", says="--preset is missing", hint="tiny-dense")
        self.refused("checkpoint", "--preset", "tiny-dense", says="--out is missing")
        with tempfile.TemporaryDirectory() as directory:
            out = os.path.join(directory, "model")
            self.refused("checkpoint", "--preset", "tiny-dens", "--out", out, says="tiny-dens")
            self.assertEqual(os.listdir(directory), [])
            self.refused("digest", "tiny-dense", says="tiny-dense", hint="weights: preset:tiny-dense")
            self.refused("digest", out, says=out)
        self.refused("digest", says="digest needs a checkpoint")

    def test_a_checkpoint_outlives_its_terminal_under_nohup(self):
        with tempfile.TemporaryDirectory() as directory:
            # The shell ignores SIGHUP as nohup does; the checkpoint inherits that.
            command = ["bash", "-c", 'trap "" HUP; exec "$@"', "_", BINARY, "checkpoint", "-q"]
            out = os.path.join(directory, "model")
            with subprocess.Popen([*command, "--preset", "tiny-moe", "--out", out]) as process:
                partial = out + ".partial"
                while process.poll() is None:
                    if os.path.exists(partial):
                        process.send_signal(signal.SIGHUP)
                    time.sleep(0.002)
            self.assertEqual(process.returncode, 0)

    def test_checkpoint_is_digested_alike_in_any_form(self):
        with tempfile.TemporaryDirectory() as directory:
            digests = {run("digest", "preset:tiny-dense").stdout}
            for name, size in (("whole", "5GB"), ("sharded", "64KiB")):
                out = os.path.join(directory, name)
                written = run(
                    "checkpoint", "--preset", "tiny-dense", "--out", out, "--max-shard-size", size
                )
                self.assertEqual(written.returncode, 0, written.stderr)
                self.assertEqual(written.stdout, "")
                digests.add(run("digest", out).stdout)
            self.assertEqual(len(digests), 1)
            lines = digests.pop().splitlines()
            self.assertGreater(len(lines), 2)
            for line in lines:
                self.assertRegex(line, r"^0x[0-9a-f]{16}  \S+$")
            self.assertTrue(lines[-1].endswith("  model"))
            report = json.loads(run("digest", "--json", out).stdout)
            self.assertEqual(report["model"], lines[-1].split()[0])
            self.assertEqual(
                [f"{digest}  {name}" for name, digest in report["tensors"].items()], lines[:-1]
            )

    def test_wrong_options_replace_an_old_report(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "report.json")
            path.write_text('{"ok": true}', encoding="utf-8")
            result = run("update", "--json", str(path), "--versions", "0")
            self.assertEqual(result.returncode, 2)
            report = json.loads(path.read_text(encoding="utf-8"))
            self.assertEqual((report["ok"], report["exit_code"]), (False, 2))
            self.assertIn("--versions", report["error"]["message"])

    def test_a_config_file_names_the_report_of_a_wrong_request(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "report.json")
            config = pathlib.Path(directory, "run.json")
            config.write_text(json.dumps({"json": str(path), "versions": 0}), encoding="utf-8")
            self.assertEqual(run("update", "--config", str(config)).returncode, 2)
            self.assertIn("versions", json.loads(path.read_text(encoding="utf-8"))["error"]["message"])

    def test_digest_never_writes_a_file(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "config.json")
            path.write_text("{}", encoding="utf-8")
            self.refused("digest", "--json", str(path), says=str(path))
            self.assertEqual(path.read_text(encoding="utf-8"), "{}")

    def test_config_file(self):
        with tempfile.TemporaryDirectory() as directory:
            config = os.path.join(directory, "run.json")
            pathlib.Path(config).write_text('{"model": "m", "version": 1}', encoding="utf-8")
            self.refused("update", "--config", config, says=config, hint='"versions"')

    @unittest.skipUnless(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"), "no C compiler")
    def test_a_config_on_storage_that_hangs_is_given_up(self):
        with tempfile.TemporaryDirectory() as directory:
            # The storage holds back what is read of files with .safetensors in their names.
            held_back = pathlib.Path(directory, "config.safetensors.json")
            held_back.write_text("{}", encoding="utf-8")
            pathlib.Path(directory, "config.json").symlink_to(held_back)
            variables = through_storage(build_storage(directory), hang_rank=0, hang_after=0)[1::2]
            environment = dict(variable.split("=", 1) for variable in variables)
            result = run("update", "--model", directory, "--timeout", "1s",
                         env={**environment, "OMPI_COMM_WORLD_RANK": "0"})
            self.assertEqual(result.returncode, 4, result.stderr)
            self.assertIn("reading the model's config: 0 B read, then nothing more for 1.00 s", result.stderr)

    def test_rank_0_speaks_first_of_wrong_options(self):
        for variable in LAUNCHER_VARIABLES:
            with self.subTest(variable):
                self.refused("update", says="--model is missing", env={variable: "0"})
                with self.assertRaises(subprocess.TimeoutExpired) as waits:
                    run("update", env={variable: "1"}, timeout_s=1)
                self.assertFalse(waits.exception.stderr)
        # In an MPMD launch the options differ by role, and rank 0 may not have the wrong ones.
        self.refused(
            *("update", "--role", "traner", "--json", "-"),
            says="--role: ",
            env={"OMPI_COMM_WORLD_RANK": "1"},
        )

    def test_whom_no_launcher_ends_speaks_later_and_leaves_the_report_to_rank_0(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "report.json")

            def refused(rank, to):
                result = run("update", "--json", to, env={"SLURM_PROCID": str(rank)})
                if rank == 0 and to != "-":  # long before the others
                    path.write_text("of rank 0", encoding="utf-8")
                return result

            asked = [(rank, to) for rank in (0, 1, 2) for to in ("-", str(path))]
            with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
                results = dict(zip(asked, pool.map(refused, *zip(*asked))))
            self.assertEqual(path.read_text(encoding="utf-8"), "of rank 0")
            for (rank, to), result in results.items():
                self.assertEqual(result.returncode, 2)
                self.assertIn("--model is missing", result.stderr)
                self.assertEqual(bool(result.stdout), (rank, to) == (0, "-"), (rank, to))
        self.assertEqual(json.loads(results[0, "-"].stdout)["exit_code"], 2)

    def test_colour_of_errors(self):
        plain = run("update").stderr
        self.assertNotIn("\033", plain)
        self.assertIn("\033", run("update", "--color", "always").stderr)

    def test_mpirun_returns_the_code_and_one_message(self):
        result = run("update", "--modle", "m", ranks=3)
        self.assertEqual(result.returncode, 2)
        self.assertEqual(result.stderr.count('unknown option "--modle"'), 1)

    def test_one_rank_is_no_job(self):
        for command in [*JOB_COMMANDS, "serve"]:
            with self.subTest(command), tempfile.TemporaryDirectory() as directory:
                self.refused(
                    command,
                    *(("--job", directory) if command == "serve" else ()),
                    *("--model", "preset:tiny-dense", "--backend", "host"),
                    says="needs a trainer and an inference rank",
                    hint="mpirun -np 2",
                    ranks=1,
                )

    def test_one_process_of_a_slurm_job_is_told_of_srun(self):
        for variables in ({}, {"SLURM_PROCID": "0"}):  # salloc's shell, a batch script
            self.refused(
                *("update", "--model", "preset:tiny-dense", "--backend", "host"),
                says="the job has one rank",
                hint="srun --mpi=pmix -n 2 awex-colocate update",
                env={"SLURM_JOB_ID": "7", **variables},
            )

    def test_a_launcher_that_mpi_cannot_join_is_named_before_mpi_starts(self):
        step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
        launches = [
            ({**step, "SLURM_PROCID": "{}"}, ("srun started 4", "srun --mpi=list")),
            ({**step, "SLURM_PROCID": "{}", "PMI_RANK": "{}", "PMI_SIZE": "4"},
             ("srun started 4", "srun --mpi=pmix -n 4 awex-colocate update")),
            ({"PMI_RANK": "{}", "PMI_SIZE": "4"}, ("another MPI", "built with Open MPI v")),
            ({"RANK": "{}", "WORLD_SIZE": "4", "LOCAL_RANK": "{}"}, ("torchrun", "mpirun -np 4")),
        ]
        job = ("update", "--model", "preset:tiny-dense", "--backend", "host")

        def start(launch, rank):
            variables = {k: v.format(rank) for k, v in launch[0].items()}
            # Rank 0 of torchrun may be elsewhere: the others speak later.
            speaks = rank == 0 or "RANK" in launch[0]
            return run(*job, "--json", "-", env=variables, errors=int(speaks))

        asked = [(launch, rank) for launch in range(len(launches)) for rank in (0, 1)]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            results = list(pool.map(lambda one: start(launches[one[0]], one[1]), asked))
        for (launch, rank), result in zip(asked, results):
            with self.subTest(launch=launches[launch][0], rank=rank):
                self.assertEqual(result.returncode, 2, result.stderr)
                if rank == 0:
                    self.assertEqual(json.loads(result.stdout)["exit_code"], 2)
                else:
                    self.assertEqual(result.stdout, "")
                for text in launches[launch][1] if "error: " in result.stderr else ():
                    self.assertIn(text, result.stderr)

    def test_who_is_quiet_ends_with_the_same_code_when_the_launcher_ends_it(self):
        environment = dict(os.environ, PMI_RANK="1", PMI_SIZE="2")
        job = [BINARY, "update", "--model", "preset:tiny-dense"]
        with subprocess.Popen(job, env=environment, stderr=subprocess.PIPE) as process:
            wait_until(lambda: hears_signal(process.pid, signal.SIGTERM), 60, "it hears of signals")
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()
            self.assertEqual((process.wait(60), process.stderr.read()), (2, b""))

    def test_one_task_of_srun_without_pmix_is_no_job(self):
        self.refused(
            *("update", "--model", "preset:tiny-dense", "--backend", "host"),
            says="srun started one process",
            hint="srun --mpi=pmix -n 2 awex-colocate update",
            env={"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1",
                 "SLURM_PROCID": "0"},
        )

    def test_commands_that_run_alone_run_under_any_launcher(self):
        for variables in (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
             "SLURM_PROCID": "1"},
            {"PMI_RANK": "1", "PMI_SIZE": "4"},
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
        ):
            result = run("digest", "preset:tiny-dense", "--layers", "1", env=variables)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertIn("model", result.stdout)

    def test_report_that_cannot_be_written_is_refused_before_the_work(self):
        for option in ("--json", "--trace"):
            with self.subTest(option):
                result = self.refused(
                    *("update", "--model", "preset:tiny-dense", "--backend", "host"),
                    *(option, "/nonexistent/report.json"),
                    says="/nonexistent/report.json",
                    hint="directory",
                    ranks=2,
                )
                self.assertEqual(result.stderr.count("cannot write the report"), 1)

    def test_a_good_job_writes_every_output(self):
        job = ("update", "--model", "preset:tiny-dense", "--backend", "host", "--kv-cache", "1MiB")
        with tempfile.TemporaryDirectory() as directory:
            report, trace = (os.path.join(directory, name) for name in ("r.json", "t.json"))
            result = run(*job, "--json", report, "--trace", trace, ranks=2)
            self.assertEqual(result.returncode, 0)
            self.assertRegex(result.stderr, r"(?s)^update: .*\nloaded the weights: (.+) of \1 in .*\n"
                                            r"version 1 of 1: committed in [^\n]+\n$")
            self.assertRegex(result.stdout, r"(?m)^digest +\d+ tensors, 0 wrong, model 0x[0-9a-f]{16}$")
            self.assertRegex(result.stdout, r"(?m)^committed +version 1$")
            self.assertRegex(result.stdout, r"(?m)^result +ok$")
            self.assertNotIn("\033", result.stdout)
            content = json.loads(pathlib.Path(report).read_text(encoding="utf-8"))
            self.assertTrue(content["ok"])
            self.assertTrue(content["versions"][0]["committed"])
            events = json.loads(pathlib.Path(trace).read_text(encoding="utf-8"))["traceEvents"]
            self.assertEqual({e["pid"] for e in events if e["ph"] == "X"}, {0, 1})
        printed = run(*job, "--json", "-", ranks=2)
        self.assertEqual(printed.returncode, 0)
        self.assertEqual(
            json.loads(printed.stdout)["versions"][0]["digest"],
            content["versions"][0]["digest"],
        )

    def test_two_sigterms_lose_neither_the_cause_nor_finished_versions(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "report.json")
            # A rank looks for signals between its kernels: under sanitizers on a busy machine for longer than the
            # second that mpirun gives.
            job = [MPIEXEC, "--mca", "odls_base_sigkill_timeout", "4", "--oversubscribe", "-n", "2", BINARY, "update",
                   "--model", "preset:tiny-dense", "--backend", "host", "--kv-cache", "1MiB", "--versions", "100000",
                   "--limits", "off", "--json", str(path)]
            with subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                while not (path.exists() and json.loads(path.read_text(encoding="utf-8"))["versions"]):
                    time.sleep(0.02)  # the file is whole at every moment
                process.send_signal(signal.SIGTERM)
                time.sleep(0.02)
                _, stderr = process.communicate(timeout=120)
            report = json.loads(path.read_text(encoding="utf-8"))
            self.assertIn("told to end by SIGTERM", stderr)
            self.assertTrue(report["versions"][0]["committed"])
            self.assertEqual((report["ok"], report["exit_code"]), (False, 1))

    def test_a_full_file_limit_and_a_cancelled_checkpoint(self):
        with tempfile.TemporaryDirectory() as directory:
            out = os.path.join(directory, "model")
            result = run_shell('ulimit -f 8; exec "$@"', "checkpoint", "--preset", "tiny-dense", "--out", out)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("ulimit -f", result.stderr)
            self.assertEqual(os.listdir(directory), [])
            os.mkdir(out + ".partial")  # what kill -9 leaves
            pathlib.Path(out + ".partial", "model.safetensors").write_bytes(b"half")
            self.assertEqual(run("checkpoint", "--preset", "tiny-dense", "--out", out).returncode, 0)
            self.assertEqual(os.listdir(directory), ["model"])

    def test_a_limit_of_open_files_is_called_so(self):
        with tempfile.TemporaryDirectory() as directory:
            out = os.path.join(directory, "model")
            run("checkpoint", "--preset", "tiny-dense", "--out", out, "--max-shard-size", "64KiB")
            result = run_shell('ulimit -n 16; exec "$@"', "digest", out)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertRegex(result.stderr, r"cannot read \S+\.safetensors: open: Too many open files \(24\)")
            self.assertIn("raise the limit (ulimit -n)", result.stderr)

    def test_a_full_disk_is_called_so(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            results = [run_shell('exec "$@"', "digest", "preset:tiny-dense", stdout=full)]
        for ranks in (1, 2):  # a job that is refused, which is told first, and a good one
            results.append(run("update", "--model", "preset:tiny-dense", "--backend", "host",
                               "--kv-cache", "0", "--limits", "off", "--json", "/dev/full", ranks=ranks))
        for result in results:
            self.assertIn("No space left on device (28)", result.stderr)
        self.assertEqual([result.returncode for result in results], [1, 2, 1])
        self.assertIn("make room there (df -h)", results[0].stderr)
        self.assertIn("make room there (df -h)", results[2].stderr)
        self.assertRegex(results[1].stderr, r"(?m)^warning: .*No space left")

    def test_a_fifo_and_stdout_get_one_report(self):
        good = ("update", "--model", "preset:tiny-dense", "--backend", "host", "--kv-cache", "0",
                "--limits", "off", "--versions", "2")
        with tempfile.TemporaryDirectory() as directory:
            fifo = os.path.join(directory, "fifo")
            os.mkfifo(fifo)
            for job, code, ranks in ((good, 0, 2), (("update", "--versions", "0"), 2, 0), (good, 2, 1)):
                with self.subTest(code=code, ranks=ranks), subprocess.Popen(
                        ["cat", fifo], stdout=subprocess.PIPE) as reader:
                    result = run(*job, "--json", fifo, ranks=ranks)
                    self.assertEqual(result.returncode, code, result.stderr)
                    report = json.loads(reader.communicate(timeout=60)[0])
                    self.assertEqual((report["exit_code"], report["ok"]), (code, code == 0))
        for path in ("/dev/stdout", "/proc/self/fd/1"):
            self.assertTrue(json.loads(run(*good, "--json", path, ranks=2).stdout)["ok"])
            wrong = run("update", "--versions", "0", "--json", path)
            self.assertEqual(json.loads(wrong.stdout)["exit_code"], 2)
        planned = run("plan", "--model", "preset:tiny-dense", "--json", "/dev/stdout")
        self.assertTrue(json.loads(planned.stdout)["ok"])

    def test_a_rank_that_does_not_start_ends_the_others_with_their_names(self):
        def start(living, path):
            ranks = [["sleep", "100"], ["sleep", "100"]]
            ranks[living] = [BINARY, "update", "--model", "preset:tiny-dense", "--backend", "host",
                             "--timeout", "1s", "--json", path]
            command = [MPIEXEC, "--oversubscribe", "-n", "1", *ranks[0], ":", "-n", "1", *ranks[1]]
            return checked(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))

        words = r"rank {} {}has not got through MPI's start after 6(\.00)? s"
        with tempfile.TemporaryDirectory() as directory, \
                concurrent.futures.ThreadPoolExecutor(2) as pool:
            paths = [os.path.join(directory, f"{rank}.json") for rank in (0, 1)]
            for rank, result in enumerate(pool.map(start, (0, 1), paths)):
                self.assertEqual(result.returncode, 4, result.stderr)
                self.assertRegex(result.stderr, words.format(rank, r"on host \S+ "))
            report = json.loads(pathlib.Path(paths[0]).read_text(encoding="utf-8"))
            self.assertEqual((report["exit_code"], report["error"]["rank"]), (4, 0))
            self.assertRegex(report["error"]["message"], words.format(0, ""))
            self.assertFalse(os.path.exists(paths[1]))  # rank 0 alone writes

    def test_a_stopped_reader_of_stderr_holds_no_job_up(self):
        with tempfile.TemporaryDirectory() as directory:
            fifo, path = os.path.join(directory, "stderr"), os.path.join(directory, "report.json")
            os.mkfifo(fifo)
            reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
            self.addCleanup(os.close, reader)
            with self.assertRaises(BlockingIOError):
                while True:
                    os.write(reader, b"." * 4096)
            job = ["sh", "-c", f'exec "$@" 2>{fifo}', "_", BINARY, "update", "--model", "preset:tiny-dense",
                   "--backend", "host", "--kv-cache", "0", "--limits", "off", "-v", "--timeout", "4s",
                   "--json", path]
            result = subprocess.run([MPIEXEC, "--oversubscribe", "-n", "2", *job], capture_output=True,
                                    text=True, timeout=120, check=False)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertTrue(json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["ok"])

    def test_a_refused_job_leaves_a_report_that_says_so(self):
        with tempfile.TemporaryDirectory() as directory:
            report = os.path.join(directory, "report.json")
            self.refused(
                *("update", "--model", "preset:no-such", "--backend", "host", "--json", report),
                says="no-such",
                ranks=2,
            )
            content = json.loads(pathlib.Path(report).read_text(encoding="utf-8"))
            self.assertEqual((content["ok"], content["exit_code"]), (False, 2))
            self.assertEqual(content["error"]["code"], 2)
            self.assertIn("no-such", content["error"]["message"])


if __name__ == "__main__":
    BINARY, MPIEXEC = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1], verbosity=2)
