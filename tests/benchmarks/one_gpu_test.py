"""Tables of benchmarks/one_gpu.py from made-up figures whose results are known.

usage: one_gpu_test.py BENCHMARKS_FOLDER
"""
import copy
import io
import os
import pathlib
import sys
import tempfile
import time
import types
import unittest
from unittest import mock

sys.path.insert(0, sys.argv.pop(1))

import one_gpu  # noqa: E402
import reports  # noqa: E402
import one_gpu_tables as tables  # noqa: E402
from peer_shapes import MODELS, elements, inference_tensors, trainer_tensors  # noqa: E402

KERNELS = """device: NVIDIA H100 80GB HBM3
set                    way                   tensors      time      rate   ratio
                                                            ms      GB/s  memcpy
Qwen3-4B               one cudaMemcpy            398     5.330    1509.0   1.000
Qwen3-4B               copy, whole tensors       398     5.340    1506.0   0.998
Qwen3-4B               copy, half columns        398     5.500    1463.0   0.969
Qwen3-4B               copy + digests of both sides      398     8.000    1006.0   0.666
half of 30B's experts  copy, whole tensors      9216    19.200    1509.0   0.999
"""


def phase(name, role, tag, start, seconds, size=0, limit=None):
    return {"phase": name, "role": role, "tag": tag, "start_s": start, "seconds": seconds,
            "bytes": size, "limit_bytes_per_s": limit}


def version(offload_s):
    """A cycle of 100 bytes of optimizer and 10 of weights over links of 100 bytes a second."""
    return {"seconds": 2.4 + offload_s, "phases": [
        phase("digest", "trainer", "weights", 0, 0.5, 10),
        phase("offload", "trainer", "optimizer", 0, offload_s, 100, 100),
        phase("transfer", "inference", "weights", 0.25, 0.0105, 10, 1000),
        phase("unmap", "inference", "weights", 0.2605, 0.0015),
        phase("verify", "all", "weights", offload_s, 0.0002),
        phase("commit", "all", "weights", offload_s, 0.0003),
        phase("offload", "trainer", "weights", offload_s, 0.1, 10, 100),
        phase("resume", "inference", "kv_cache", offload_s + 0.1, 0.001),
        phase("discard", "inference", "kv_cache", offload_s + 0.2, 0.005),
        phase("resume", "trainer", "weights", offload_s + 0.2, 0.1, 10, 100),
        phase("resume", "trainer", "optimizer", offload_s + 0.3, 1.0, 100, 100),
        phase("map", "all", "weights", offload_s + 1.3, 0.007),
        phase("train", "trainer", None, offload_s + 1.307, 1.0)]}


def report():
    return {"model": {"bytes": 10}, "versions": [version(4.0), version(1.0), version(1.0)],
            "memory": {"device_peak_bytes": 20 + (65 << 20), "by_role_and_tag": [
                {"role": "trainer", "tag": "weights", "device_peak_bytes": 12}]}}


def results():
    names = ("update", "verify-off", "transfer")
    cycle = {"seconds": {"offload optimizer": 2.0, "transfer": 0.1, "apply": 0.01},
             "trainer_peak_bytes": 30}
    first = copy.deepcopy(cycle)
    first["seconds"]["offload optimizer"] = 40.0
    return {"model": "preset:qwen3-4b", "gpu": "NVIDIA H100", "cores": 16,
            "host_memory_bytes": 125 << 30, "versions": {"driver": "580"},
            "ours": [{**{name: report() for name in names}, "kernels": KERNELS}],
            "peers": {"awex": [{"cycles": [first, cycle], "bytes": {"weights": 10}}],
                      "torch_memory_saver": [{"error": "failed: out of memory"}]}}


class Figures(unittest.TestCase):
    def goal(self, text, of=None):
        rows = [row for row in tables.goals(of or results()) if text in row[0]]
        self.assertEqual(len(rows), 1, text)
        return rows[0][2:]

    def test_kernel_lines(self):
        sets = tables.parse_kernels(KERNELS)
        self.assertEqual(sorted(sets), ["Qwen3-4B", "half of 30B's experts"])
        self.assertEqual(sets["Qwen3-4B"]["copy, half columns"],
                         {"seconds": 0.0055, "ratio": 0.969})

    def test_kernel_goals_take_the_slowest_way(self):
        self.assertEqual(self.goal("qwen3-4b: copy kernel against"), ("0.969", "**missed**"))
        self.assertEqual(self.goal("qwen3-4b: copy kernel with"), ("0.666", "reached"))
        # The other way of the experts is not in the lines, so the slowest is not known.
        self.assertEqual(self.goal("a3b: copy kernel against"), ("not measured", "–"))

    def test_transfer(self):
        self.assertEqual(self.goal("qwen3-4b: transfer phase beyond"), ("0.500 ms", "reached"))
        self.assertEqual(self.goal("qwen3-4b: transfer with digests"), ("0.020", "**missed**"))
        self.assertEqual(self.goal("qwen3-4b: device memory"), ("65.0 MiB", "**missed**"))

    def test_digests_inside_the_transfer_count_once(self):
        fused = results()
        for one in fused["ours"][0]["update"]["versions"]:
            one["phases"] = [p for p in one["phases"] if p["phase"] != "digest"]
        self.assertEqual(self.goal("qwen3-4b: transfer with digests", fused), ("0.952", "reached"))
        rows = {row[0]: row[1:] for row in tables.peers(fused)}
        self.assertEqual(rows["transfer with handles and proof"][:2], ["19.5 ms", "19.5 ms"])

    def test_first_and_warm_are_apart(self):
        self.assertEqual(self.goal("offload optimizer, warm"), ("1.000", "reached"))
        self.assertEqual(self.goal("offload optimizer, first, `--warm"), ("not measured", "–"))
        self.assertEqual(self.goal("discard of the KV"), ("5.000 ms", "**missed**"))

    def test_cycle(self):
        # 220 bytes over a link of 100 a second, in 2.4 s without the step, in 3.4 s with it.
        self.assertEqual(self.goal("without the training step, warm, against the link, digests"),
                         ("0.917", "**missed**"))
        self.assertEqual(self.goal("with the training step, warm, against the link, digests"),
                         ("0.647", "–"))

    def test_time_to_a_usable_kv_cache_begins_with_the_version(self):
        self.assertEqual(self.goal("to a KV cache that is usable"), ("1.101 s", "–"))

    def test_kernels_of_another_model_are_not_shown(self):
        other = results() | {"model": "preset:tiny-dense"}
        names = [row[0] for row in tables.goals(other)]
        self.assertFalse([name for name in names if name.startswith("tiny-dense: copy kernel")])
        self.assertTrue([name for name in names if name.startswith("tiny-dense: transfer")])
        self.assertEqual(self.goal("a3b: copy kernel against", other), ("not measured", "–"))

    def test_the_commit_is_named_where_it_is_known(self):
        self.assertNotIn("commit", tables.describe(results()))
        known = results()
        known["versions"]["commit"] = "1234abc"
        self.assertIn("commit 1234abc", tables.describe(known))

    def test_a_needed_phase_that_is_absent_is_not_measured(self):
        poor = results()
        for one in poor["ours"][0]["update"]["versions"]:
            one["phases"] = [p for p in one["phases"] if p["phase"] != "discard"]
        self.assertEqual(self.goal("discard of the KV", poor), ("not measured", "–"))

    def test_peers(self):
        rows = {row[0]: row[1:] for row in tables.peers(results())}
        self.assertEqual(rows["offload optimizer"],
                         ["4.00 s", "1.00 s", "40.00 s", "2.00 s", "–", "–", "2.00"])
        self.assertEqual(rows["transfer"], ["10.5 ms", "10.5 ms", "–", "–", "–", "–", "–"])
        # The trainer's digest runs from 0 to 0.5 s, the transfer within this time; and 9 ms more.
        self.assertEqual(rows["transfer with handles and proof"],
                         ["509 ms", "509 ms", "100 ms", "100 ms", "–", "–", "0.20"])
        self.assertEqual(rows["trainer's peak memory in the transfer, × W"],
                         ["1.20", "1.20", "3.00", "3.00", "–", "–", "2.50"])
        self.assertEqual(tables.peer_notes(results()),
                         ["torch_memory_saver: failed: out of memory"])

    def test_covered_time(self):
        spans = [phase("a", "", "", 0, 2), phase("b", "", "", 1, 2), phase("c", "", "", 5, 1)]
        self.assertEqual(tables.covered_seconds(spans), 4)

    def test_both_layouts_hold_the_published_model(self):
        model = MODELS["preset:qwen3-4b"]
        self.assertEqual(2 * elements(inference_tensors(model)), 8044936192)
        self.assertEqual(elements(trainer_tensors(model)), elements(inference_tensors(model)))


def is_running(pid):
    """Whether there is such a process that has not ended; its parent may not have asked yet."""
    try:
        stat = pathlib.Path("/proc", pid, "stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Documents(unittest.TestCase):
    def write(self, old, new):
        with tempfile.TemporaryDirectory() as folder:
            out, docs = pathlib.Path(folder), pathlib.Path(folder, "docs.md")
            (out / "one_gpu.json").write_text("{}", encoding="utf-8")
            docs.write_text(old, encoding="utf-8")
            with mock.patch.multiple(tables, markdown=lambda *_: new, plot=lambda *_: None):
                reports.write_docs("one_gpu", tables, docs, out)
            return docs.read_text(encoding="utf-8")

    def test_what_is_around_the_markers_stays(self):
        once = self.write(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", "new\n")
        self.assertEqual(once, f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n")
        self.assertEqual(self.write(once, "new\n"), once)


class Programs(unittest.TestCase):
    """Runs of programs that end in unusual ways."""

    def setUp(self):
        self.failures = one_gpu.Failures()
        self.ours = one_gpu.Ours(types.SimpleNamespace(build=pathlib.Path("build")), self.failures)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def run_with_mpirun(self, script, limit_s=60):
        program = pathlib.Path(self.folder.name) / "mpirun"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        path = f"{self.folder.name}{os.pathsep}{os.environ['PATH']}"
        with mock.patch.dict(os.environ, PATH=path), mock.patch("sys.stderr", io.StringIO()), \
                mock.patch.object(one_gpu, "TIMEOUT_S", limit_s):
            return self.ours._run_json("a run", 2, (pathlib.Path("program"), "an option"))

    def test_json_is_read(self):
        self.assertEqual(self.run_with_mpirun("""echo '{"a": 1}'"""), {"a": 1})
        self.assertEqual(self.failures.messages, [])

    def test_an_output_that_is_no_json_names_the_command(self):
        self.assertIsNone(self.run_with_mpirun("echo words"))
        self.assertIn("mpirun -np 2 --bind-to none --oversubscribe program 'an option'",
                      self.failures.messages[0].splitlines()[0])

    def test_what_is_given_up_leaves_no_process(self):
        pids = pathlib.Path(self.folder.name) / "pids"
        rank = f"{sys.executable} -c 'import os, time; os.setpgid(0, 0); time.sleep(20)'"
        start = time.monotonic()
        self.assertIsNone(self.run_with_mpirun(
            f"sleep 20 & echo $! >{pids}; {rank} & echo $! >>{pids}; wait", 2))
        self.assertIn("did not end within 2 s", self.failures.messages[0])
        self.assertLess(time.monotonic() - start, 15)
        started = pids.read_text(encoding="ascii").split()
        self.assertEqual(len(started), 2)
        give_up = time.monotonic() + 10
        while any(map(is_running, started)) and time.monotonic() < give_up:
            time.sleep(0.01)
        self.assertFalse([pid for pid in started if is_running(pid)])

    def test_pages_are_touched_without_packages(self):
        self.assertGreater(one_gpu.available_bytes(), 0)
        one_gpu.touch_host_memory(64 << 20)


if __name__ == "__main__":
    unittest.main()
