#!/usr/bin/env python3
"""Jobs whose machine or launcher is not as usual: system calls refused, containers, bindings, GPUs that
are granted and cannot be used, ranks that do not divide.

usage: launch_test.py MPIEXEC PROGRAM
"""

import ctypes
import errno
import json
import os
import re
import struct
import subprocess
import sys
import unittest

MPIEXEC, PROGRAM = "", ""
JOB = ("update", "--model", "preset:tiny-dense", "--layers", "1", "--kv-cache", "1MiB",
       "--limits", "off", "--timeout", "60s")
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # on every architecture


def refuse_calls(numbers, error):
    """Lets system calls of this process and its children fail with `error`, by a seccomp filter."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0)]  # the call's number
    for at, number in enumerate(numbers):
        program.append((jump_if_equal, len(numbers) - at, 0, number))
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.c_char_p(filters), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def job(launch, *options, refused=None, backend="host", **variables):
    """Runs the job under mpirun with the arguments `launch`."""
    environment = {k: v for k, v in os.environ.items()
                   if "GPUS" not in k and k != "CUDA_VISIBLE_DEVICES"}
    command = [MPIEXEC, *launch]
    if PROGRAM not in command:
        command += [PROGRAM, *JOB, "--backend", backend, *options]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True,
                          timeout=200, check=False,
                          preexec_fn=(lambda: refuse_calls(*refused)) if refused else None)


class Launch(unittest.TestCase):
    def test_the_cycle_runs_where_pidfds_are_refused(self):
        for refused in (((PIDFD_OPEN, PIDFD_GETFD), errno.EPERM),
                        ((PIDFD_OPEN, PIDFD_GETFD), errno.ENOSYS),
                        ((PIDFD_OPEN,), errno.EACCES), ((PIDFD_GETFD,), errno.EPERM)):
            with self.subTest(refused):
                result = job(["--oversubscribe", "-n", "4"], "--trainer", "megatron:tp=2", "-v",
                             refused=refused)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("taking them through a socket", result.stderr)
                self.assertIn("committed  version 1", result.stdout)

    def test_roles_in_different_pid_namespaces_are_refused(self):
        apart = ("unshare", "--pid", "--fork", "--mount-proc")
        if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("this machine lets nobody make a PID namespace")
        part = [PROGRAM, *JOB, "--backend", "host", "--role"]
        result = job(["--oversubscribe", "-n", "1", *part, "trainer", ":",
                      "-n", "1", *apart, *part, "inference"])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("different PID namespaces", result.stderr)
        self.assertIn("--pid=host", result.stderr)
        self.assertNotIn("gone", result.stderr)
        self.assertEqual(result.stderr.count("error: "), 1)

    def test_roles_in_containers_with_host_names_of_their_own_are_told_what_to_share(self):
        other = ("unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c",
                 'hostname elsewhere; exec "$@"', "_")
        if subprocess.run([*other, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("this machine lets nobody make namespaces")
        part = [PROGRAM, *JOB, "--backend", "host", "--role"]
        result = job(["--oversubscribe", "-n", "1", *part, "trainer", ":",
                      "-n", "1", *other, *part, "inference"])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("elsewhere has 0 trainers and 1 inference", result.stderr)
        self.assertIn("--pid=host --uts=host", result.stderr)

    def test_odd_ranks_of_a_node_are_counted(self):
        result = job(["--oversubscribe", "-n", "3"])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertRegex(result.stderr, r"1 trainer and 2 inference; of 3 ranks: 3 on \S+")
        self.assertIn("ppr:2:node", result.stderr)
        result = job(["--oversubscribe", "-n", "3"], SLURM_JOB_ID="1")
        self.assertIn("ppr:2:node", result.stderr)  # mpirun, in a job of Slurm

    def test_gpus_that_are_granted_and_not_used_are_warned_of(self):
        if "cuda" in subprocess.run([PROGRAM, "--version"], capture_output=True, text=True,
                                    check=True).stdout:
            self.skipTest("this program may see GPUs")
        for name, value in (("CUDA_VISIBLE_DEVICES", "0,1"), ("SLURM_JOB_GPUS", "0"),
                            ("SLURM_GPUS_ON_NODE", "2")):
            result = job(["--oversubscribe", "-n", "2"], "-q", backend="auto", **{name: value})
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(result.stderr.count("warning: "), 1)
            self.assertIn(f"{name}={value}", result.stderr)
            self.assertIn("built without CUDA", result.stderr)
        for backend, value in (("auto", ""), ("auto", "-1"), ("host", "0")):
            result = job(["--oversubscribe", "-n", "2"], backend=backend, CUDA_VISIBLE_DEVICES=value)
            self.assertEqual(result.returncode, 0)
        self.assertNotIn("warning", result.stderr)
        result = job(["--oversubscribe", "-n", "2"], backend="cuda", CUDA_VISIBLE_DEVICES="0")
        self.assertEqual(result.returncode, 2)
        self.assertIn("built without CUDA", result.stderr)

    def test_ranks_on_one_core_are_said_in_the_report(self):
        if len(os.sched_getaffinity(0)) < 2 or os.cpu_count() < 2:
            self.skipTest("this machine has one processor for us")
        core = str(min(os.sched_getaffinity(0)))
        bound = ["taskset", "-c", core, PROGRAM, *JOB, "--backend", "host"]
        unbound = ["--oversubscribe", "--bind-to", "none", "-n", "1"]
        free = [PROGRAM, *JOB, "--backend", "host"]
        for output in ((), ("--json", "-")):
            result = job([*unbound, *free, *output, ":", "-n", "1", *bound, *output])
            self.assertEqual(result.returncode, 0, result.stderr)
            if output:
                self.assertEqual(json.loads(result.stdout)["world"]["one_core_ranks"], [1])
            else:
                self.assertRegex(re.sub(r"\n# {5,}", " ", result.stdout),
                                 r"(?m)^# binding +rank 1 bound .*--bind-to none")
        result = job([*unbound, *free, "--json", "-", ":", "-n", "1", *free])
        self.assertEqual(json.loads(result.stdout)["world"]["one_core_ranks"], [])


if __name__ == "__main__":
    MPIEXEC, PROGRAM = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1], verbosity=2)
