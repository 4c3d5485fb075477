#!/usr/bin/env python3
"""The doctor on machines that lack something: each check is made to fail, says so with a remedy, and
passes once the remedy is followed.

usage: doctor_test.py MPIEXEC PROGRAM
"""

import concurrent.futures
import errno
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import unittest

for folder in ("cycle", "support"):
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", folder))
# pylint: disable=wrong-import-position
from launch_test import PIDFD_GETFD, PIDFD_OPEN, refuse_calls  # noqa: E402
from preloaded import build_preloaded, preloading  # noqa: E402
from sessions import session_of  # noqa: E402

MPIEXEC, PROGRAM, LIBRARY = "", "", ""
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
TWO = ("--oversubscribe", "-n", "2")

# Calls fail or do not end where DOCTOR_FAULTS names them, on every rank or on that of DOCTOR_RANK.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

static int has(const char *fault) {
  const char *faults = getenv("DOCTOR_FAULTS"), *only = getenv("DOCTOR_RANK");
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  return faults && strstr(faults, fault) && (!only || (rank && !strcmp(rank, only)));
}
int memfd_create(const char *name, unsigned flags) {
  if (has("no-memfd")) return errno = ENOSYS, -1;
  if (has("stop") && !strcmp(name, "awex-doctor")) kill(getpid(), SIGSTOP);
  return ((int (*)(const char *, unsigned))dlsym(RTLD_NEXT, "memfd_create"))(name, flags);
}
int statvfs(const char *path, struct statvfs *to) {
  if (has("hang") && !strcmp(path, "/dev/shm") && gettid() != getpid()) while (1) pause();
  return ((int (*)(const char *, struct statvfs *))dlsym(RTLD_NEXT, "statvfs"))(path, to);
}
int connect(int fd, const struct sockaddr *to, socklen_t bytes) {
  const struct sockaddr_un *name = (const struct sockaddr_un *)to;
  if (has("no-socket") && to->sa_family == AF_UNIX && !strncmp(name->sun_path + 1, "awex-", 5))
    return errno = ECONNREFUSED, -1;
  return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(fd, to, bytes);
}
"""


def with_faults(*faults, rank=None):
    """Arguments before the program under which calls fail."""
    only = [f"DOCTOR_RANK={rank}"] if rank is not None else []
    return ("env", *(f"{name}={value}" for name, value in preloading(LIBRARY).items()),
            f"DOCTOR_FAULTS={','.join(faults)}", *only)


def run(command, refused=None, **variables):
    environment = {k: v for k, v in os.environ.items()
                   if "GPUS" not in k and k != "CUDA_VISIBLE_DEVICES"
                   and not k.startswith(("OMPI_COMM_", "PMI", "SLURM_"))}
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True,
                          timeout=100, check=False,
                          preexec_fn=(lambda: refuse_calls(*refused)) if refused else None)


def doctor(*options, backend="host"):
    return (PROGRAM, "doctor", "--backend", backend, "--json", "-", *options)


def sees_gpus():
    checks = json.loads(run(doctor(backend="auto")).stdout)["ranks"][0]["checks"]
    return next(c for c in checks if c["check"] == "gpus granted")["values"]["gpus"] > 0


def may(*command):
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def in_mounts(script, command):
    """The command in mounts of its own, where `script` has changed some."""
    return ("unshare", "--mount", "bash", "-c", f'set -e; {script}\nexec "$@"', "_", *command)


def command_in(remedy, pattern):
    """The command that a remedy names."""
    found = re.search(pattern, remedy)
    if not found:
        raise AssertionError(f"no {pattern} in {remedy!r}")
    return found.group(0)


class Doctor(unittest.TestCase):
    def examine(self, command, exit_code, **settings):
        """The checks of each rank, by name, of a doctor that prints JSON."""
        result = run(command, **settings)
        self.assertEqual(result.returncode, exit_code, result.stdout[-3000:] + result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["exit_code"], exit_code)
        self.assertEqual(report["ok"], exit_code == 0)
        ranks = [{check["check"]: check for check in rank["checks"]} for rank in report["ranks"]]
        # The exit code is that of the checks.
        failed = any(check["verdict"] == "failed" for rank in ranks for check in rank.values())
        self.assertEqual(failed, exit_code == 1)
        return ranks

    def assert_check(self, ranks, name, verdict, reason="", remedy=None):
        """The check of every rank; returns its remedy on the last."""
        for checks in ranks:
            check = checks[name]
            self.assertEqual(check["verdict"], verdict, check)
            self.assertIn(reason, check["reason"])
            if remedy:
                self.assertIn(remedy, check["remedy"])
            elif verdict == "failed":
                self.fail("a failed check is to be told with what remedy")
        return ranks[-1][name]["remedy"]

    def needs(self, *command):
        if not may(*command):
            self.skipTest(f"this machine lets nobody do '{shlex.join(command)}'")

    def test_a_sound_machine_passes_alone_and_as_a_job(self):
        for launch, verdict in (((), "waived"), ((MPIEXEC, *TWO), "passed")):
            ranks = self.examine((*launch, *doctor()), 0)
            self.assertEqual(len(ranks), 2 if launch else 1)
            for name in ("pidfd_getfd", "scm_rights", "memory sharing", "memfd", "device memory",
                         "open files", "host memory", "link speeds", "backend", "clock",
                         "namespaces", "mpi"):
                self.assert_check(ranks, name, "passed")
            for name in ("cuda driver", "gpus granted", "peer access", "nccl", "legacy ipc"):
                self.assert_check(ranks, name, "waived", "--backend host needs no GPU")
            for name in ("launcher", "roles", "gpu pairing"):
                self.assert_check(ranks, name, verdict)
            self.assertGreater(ranks[0]["link speeds"]["values"]["to_host_bytes_per_s"], 1e7)

    def test_the_table_fits_80_columns_and_folds_ranks_that_found_the_same(self):
        result = run((MPIEXEC, *TWO, PROGRAM, "doctor", "--backend", "cuda"))
        if not sees_gpus():
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertRegex(result.stdout, r"(?m)^backend +0-1 +failed +\S")
            self.assertRegex(result.stdout, r"(?m)^    remedy: \S")
            self.assertRegex(result.stdout, r"(?m)^result +an update cannot run: \d of \d+ checks")
        self.assertRegex(result.stdout, r"(?m)^check +ranks +verdict +reason$")
        self.assertRegex(result.stdout, r"(?m)^memfd +0-1 +passed +\S")
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)
        names = re.findall(r"(?m)^(\S.*?)  +[0-9,-]+ +(?:passed|waived|failed)", result.stdout)
        self.assertEqual(len(names), len(set(names)))

    def test_wrong_options_are_no_failed_checks(self):
        for options, says in ((("--backend", "gpu"), "gpu"), (("--timeout", "0s"), "--timeout"),
                              (("--backnd", "host"), "--backend"), (("--json", "/no/such/f"), "/no/such/f")):
            result = run((PROGRAM, "doctor", *options))
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(says, result.stderr)
            self.assertEqual(result.stdout, "")
        result = run((MPIEXEC, "--oversubscribe", "-n", "1", *doctor(), ":", "-n", "1",
                      *doctor(backend="auto")))
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("rank 0 has --backend host, rank 1 has --backend auto", result.stderr)

    def test_a_file_takes_the_findings_beside_the_table(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "doctor.json")
            result = run((PROGRAM, "doctor", "--backend", "host", "--json", path))
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("an update can run", result.stdout)
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            self.assertEqual((report["schema_version"], report["command"]), (1, "doctor"))
            self.assertIsNone(report["error"])
            self.assertEqual(os.listdir(directory), ["doctor.json"])

    def test_limits_of_this_process_are_told_and_raised(self):
        def examine(limits, exit_code):
            return self.examine(("bash", "-c", f'{limits}; exec "$@"', "_", *doctor()), exit_code)

        ranks = examine("ulimit -n 40; ulimit -Sl 64", 1)
        remedy = self.assert_check(ranks, "open files", "failed", "at most 40", "limits.conf")
        self.assertNotIn("ulimit -n ", remedy)  # the hard limit refuses that
        self.assert_check(ranks, "locked memory", "waived", "65.5 kB; the host backend locks no memory")
        self.assert_check(examine("ulimit -n 300", 0), "open files", "waived", "small models", "limits.conf")
        self.assert_check(examine("ulimit -Sn 40", 0), "open files", "passed", "")  # ranks raise that themselves

    def test_locked_memory_matters_to_gpus_alone(self):
        code = ("bash", "-c", 'ulimit -Sl 64; {}\nexec "$@"', "_")
        command = doctor(backend="cuda")
        result = json.loads(run((*code[:2], code[2].format(""), "_", *command)).stdout)
        check = {c["check"]: c for c in result["ranks"][0]["checks"]}["locked memory"]
        self.assertEqual(check["verdict"], "waived")
        self.assertIn("65.5 kB", check["reason"])
        raised = "ulimit -l unlimited"
        if not may("bash", "-c", f"ulimit -Sl 64; {raised}"):
            if raised in check["remedy"]:  # right for root alone
                self.assertEqual(resource.getrlimit(resource.RLIMIT_MEMLOCK)[1], resource.RLIM_INFINITY)
            self.assertIn("let root raise it", check["remedy"])
            return
        if raised not in check["remedy"]:
            self.assertEqual(os.getuid(), 0)  # who may raise a hard limit
        result = json.loads(run((*code[:2], code[2].format(raised), "_", *command)).stdout)
        check = {c["check"]: c for c in result["ranks"][0]["checks"]}["locked memory"]
        self.assertEqual((check["verdict"], check["reason"]), ("passed", "unlimited"))

    def test_a_small_dev_shm_is_told_and_enlarged(self):
        self.needs(*in_mounts("mount -t tmpfs x /dev/shm", ("true",)))
        small = "mount -t tmpfs -o size=1M x /dev/shm"
        ranks = self.examine(in_mounts(small, doctor()), 0)
        remedy = self.assert_check(ranks, "/dev/shm", "waived", "1.05 MB free of 1.05 MB", "remount")
        command = doctor(backend="cuda")
        result = json.loads(run(in_mounts(small, command)).stdout)
        check = {c["check"]: c for c in result["ranks"][0]["checks"]}["/dev/shm"]
        self.assertEqual(check["verdict"], "failed")
        larger = command_in(remedy, r"mount -o remount,size=\d+M /dev/shm")
        ranks = self.examine(in_mounts(f"{small}; {larger}", doctor()), 0)
        self.assert_check(ranks, "/dev/shm", "passed")

    def test_huge_pages_that_are_off_are_told_and_allowed(self):
        self.needs(*in_mounts(f"mount --bind {HUGE_PAGES} {HUGE_PAGES}", ("true",)))
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "enabled")

            def set_mode(text):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)

            set_mode("always madvise [never]\n")
            bind = f"mount --bind {path} {HUGE_PAGES}"
            ranks = self.examine(in_mounts(bind, doctor()), 0)
            remedy = self.assert_check(ranks, "huge pages", "waived", "never", "as root on the node")
            subprocess.run(in_mounts(f"{bind}; {command_in(remedy, 'echo .*')}", ("true",)), check=True)
            with open(path, encoding="utf-8") as file:
                self.assertEqual(file.read(), "madvise\n")
            set_mode("always [madvise] never\n")  # the kernel's answer to that
            self.assert_check(self.examine(in_mounts(bind, doctor()), 0), "huge pages", "passed")

    def test_a_cgroup_without_room_is_told_and_widened(self):
        self.needs(*in_mounts("mount -t tmpfs x /sys/fs/cgroup", ("true",)))
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        first = next((g for g in groups if "memory" in g[1].split(",")), None)
        unified = next((g for g in groups if g[1] == ""), None)
        if first:
            folder, used, limit = f"/sys/fs/cgroup/memory{first[2]}", "memory.usage_in_bytes", "memory.limit_in_bytes"
        elif unified:
            folder, used, limit = f"/sys/fs/cgroup{unified[2]}", "memory.current", "memory.max"
        else:
            self.skipTest("this process is in no cgroup")
        folder = shlex.quote(folder)
        script = (f"mount -t tmpfs x /sys/fs/cgroup; mkdir -p {folder}; "
                  f"echo 100000000 > {folder}/{used}; echo {{0}} > {folder}/{limit}")
        ranks = self.examine(in_mounts(script.format(150000000), doctor()), 1)
        self.assert_check(ranks, "host memory", "failed", limit, "memory.max of the cgroup")
        self.assertEqual(ranks[0]["host memory"]["values"]["left_bytes"], 50000000)
        ranks = self.examine(in_mounts(script.format(900000000), doctor()), 0)
        self.assert_check(ranks, "host memory", "passed")

    def test_one_way_of_descriptors_suffices(self):
        ranks = self.examine((MPIEXEC, *TWO, *doctor()), 0,
                             refused=((PIDFD_OPEN, PIDFD_GETFD), errno.EPERM))
        self.assert_check(ranks, "pidfd_getfd", "waived", "sockets serve", "--cap-add SYS_PTRACE")
        for name in ("scm_rights", "memory sharing"):
            self.assert_check(ranks, name, "passed")
        ranks = self.examine((MPIEXEC, *TWO, *with_faults("no-socket"), *doctor()), 0)
        self.assert_check(ranks, "scm_rights", "waived", "pidfd_getfd serves", "network namespace")
        for name in ("pidfd_getfd", "memory sharing"):
            self.assert_check(ranks, name, "passed")

    def test_no_way_of_descriptors_fails(self):
        ranks = self.examine((MPIEXEC, *TWO, *with_faults("no-socket"), *doctor()), 1,
                             refused=((PIDFD_GETFD,), errno.EPERM))
        self.assert_check(ranks, "pidfd_getfd", "failed", "Operation not permitted", "one of the two ways")
        self.assert_check(ranks, "scm_rights", "failed", "Connection refused", "one of the two ways")
        self.assert_check(ranks, "memory sharing", "waived", "not tried")

    def test_ranks_may_find_different_things(self):
        ranks = self.examine((MPIEXEC, *TWO, *with_faults("no-memfd", rank=1), *doctor()), 1)
        self.assert_check(ranks[:1], "memfd", "passed")
        self.assert_check(ranks[1:], "memfd", "failed", "memfd_create", "seccomp=unconfined")
        self.assert_check(ranks[:1], "memory sharing", "failed", "rank 1: ", "memfd")
        self.assert_check(ranks[1:], "memory sharing", "passed")
        result = run((MPIEXEC, *TWO, *with_faults("no-memfd", rank=1), PROGRAM, "doctor"))
        self.assertRegex(result.stdout, r"(?m)^memfd +0 +passed .*\nmemfd +1 +failed ")

    def test_a_check_that_hangs_has_failed_in_time(self):
        start = time.monotonic()
        ranks = self.examine((MPIEXEC, *TWO, *with_faults("hang", rank=1), *doctor("--timeout", "8s")), 1)
        self.assertLess(time.monotonic() - start, 30)  # however busy the machine is
        self.assert_check(ranks[1:], "/dev/shm", "failed", "hangs: no answer after 2", "dmesg")
        self.assert_check(ranks[:1], "/dev/shm", "passed")
        self.assert_check(ranks, "memory sharing", "passed")

    def test_a_rank_that_is_stopped_ends_the_examination_by_the_deadline(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "doctor.json")
            command = (MPIEXEC, *TWO, *with_faults("stop", rank=1), PROGRAM, "doctor", "--backend",
                       "host", "--timeout", "2s", "--json", path)
            with session_of(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                _, stderr = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 4, stderr)
            self.assertIn("rank 1", stderr)
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
        self.assertEqual((report["ok"], report["exit_code"], report["error"]["code"]), (False, 4, 4))

    def test_ranks_in_namespaces_of_their_own(self):
        alone = ("unshare", "--pid", "--fork", "--mount-proc")
        self.needs(*alone, "true")
        first = (MPIEXEC, "--oversubscribe", "-n", "1", *doctor(), ":", "-n", "1")
        ranks = self.examine((*first, *alone, *doctor()), 1)
        self.assert_check(ranks, "namespaces", "failed", "different PID namespaces", "--pid=host")
        self.assert_check(ranks, "memory sharing", "waived")
        ranks = self.examine((*first, "unshare", "--ipc", *doctor()), 0)
        self.assert_check(ranks, "namespaces", "waived", "different IPC namespaces")
        # Open MPI takes a file of an ended job of the same number, which only one of the ranks sees, for the other's:
        # so the job begins with nothing of others.
        apart = "mount -t tmpfs x /dev/shm"
        ranks = self.examine(in_mounts(apart, (*first, *in_mounts(apart, doctor()))), 0)
        self.assert_check(ranks, "namespaces", "waived", "at /dev/shm", "--ipc=host")
        ranks = self.examine((*first, "unshare", "--mount", *doctor()), 0)
        self.assert_check(ranks, "namespaces", "passed", "different mounts")

    def test_ranks_whose_clocks_differ(self):
        other = ("unshare", "--time", "--monotonic", "1000", "--fork")
        self.needs(*other, "true")
        ranks = self.examine((MPIEXEC, "--oversubscribe", "-n", "1", *doctor(), ":", "-n", "1",
                              *other, *doctor()), 0)
        self.assert_check(ranks, "clock", "waived", "are 1000 s apart", "one time namespace")

    def test_odd_ranks_are_told_how_to_start(self):
        ranks = self.examine((MPIEXEC, "--oversubscribe", "-n", "3", *doctor()), 1)
        remedy = self.assert_check(ranks, "roles", "failed", "1 trainer and 2 inference", "ppr:2:node")
        self.assert_check(ranks, "memory sharing", "passed")
        options = command_in(remedy, r"--map-by ppr:2:node").split()
        ranks = self.examine((MPIEXEC, "--oversubscribe", *options, *doctor()), 0)
        self.assertEqual(len(ranks), 2)
        self.assert_check(ranks, "roles", "passed", "1 trainer and 1 inference")
        trainer = doctor("--role", "trainer")
        for second, code, verdict in ((trainer, 1, "failed"), (doctor("--role", "inference"), 0, "passed")):
            ranks = self.examine((MPIEXEC, "--oversubscribe", "-n", "1", *trainer, ":", "-n", "1", *second), code)
            self.assert_check(ranks, "roles", verdict, "", "ppr:2:node" if code else None)

    def test_launches_that_make_no_job_are_told_how_to_start(self):
        torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        ranks = self.examine(doctor(), 1, **torchrun)
        remedy = self.assert_check(ranks, "launcher", "failed", "torchrun", "mpirun -np 2")
        self.assert_check(ranks, "memfd", "passed")
        options = command_in(remedy, r"-np 2").split()
        ranks = self.examine((MPIEXEC, "--oversubscribe", *options, *doctor()), 0, **torchrun)
        self.assert_check(ranks, "launcher", "passed", "mpirun, 2 ranks")
        ranks = self.examine((MPIEXEC, "-n", "1", *doctor()), 1)
        self.assert_check(ranks, "launcher", "failed", "one rank", "mpirun -np 2")

    def test_a_gpu_that_is_asked_for_or_granted_and_not_there(self):
        if sees_gpus():
            self.skipTest("this machine has GPUs")
        ranks = self.examine((MPIEXEC, *TWO, *doctor(backend="cuda")), 1)
        for name in ("cuda driver", "gpus granted", "backend"):
            remedy = self.assert_check(ranks, name, "failed", "", "--backend host")
        ranks = self.examine(doctor(backend="auto"), 1, CUDA_VISIBLE_DEVICES="0")
        remedy = self.assert_check(ranks, "gpus granted", "failed",
                                   "granted (CUDA_VISIBLE_DEVICES=0), but none is seen", "--backend host")
        chosen = command_in(remedy, r"--backend host").split()[-1]
        ranks = self.examine(doctor(backend=chosen), 0, CUDA_VISIBLE_DEVICES="0")
        self.assert_check(ranks, "gpus granted", "waived", "needs no GPU")
        ranks = self.examine(doctor(backend="auto"), 0, CUDA_VISIBLE_DEVICES="-1")
        self.assert_check(ranks, "gpus granted", "waived", "none: ")

    def test_ranks_on_one_core_are_told_how_to_have_more(self):
        if len(os.sched_getaffinity(0)) < 2 or os.cpu_count() < 2:
            self.skipTest("this machine has one processor for us")
        ranks = self.examine((MPIEXEC, "-n", "2", "--bind-to", "core", *doctor()), 0)
        remedy = self.assert_check(ranks, "cores and numa", "waived", "one core", "--bind-to none")
        options = command_in(remedy, r"--bind-to none").split()
        ranks = self.examine((MPIEXEC, "-n", "2", *options, *doctor()), 0)
        self.assert_check(ranks, "cores and numa", "passed")


def run_side_by_side(at_once):
    """Runs each test in a process of its own: they mostly wait for launchers. Whether all have passed."""
    names = unittest.defaultTestLoader.getTestCaseNames(Doctor)

    def run_one(name):
        done = subprocess.run([sys.executable, __file__, MPIEXEC, PROGRAM, f"Doctor.{name}"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.returncode, done.stdout

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(run_one, names))
    for code, output in results:
        print(output if code else output.splitlines()[0])
    if any(code == 77 for code, _ in results):
        sys.exit(77)
    return bool(names) and not any(code for code, _ in results)


if __name__ == "__main__":
    MPIEXEC, PROGRAM = sys.argv[1:3]
    if len(sys.argv) == 3:
        sys.exit(0 if run_side_by_side(4) else 1)
    with tempfile.TemporaryDirectory() as faults_directory:
        LIBRARY = build_preloaded(faults_directory, "faults", SOURCE, "calls that fail")
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
