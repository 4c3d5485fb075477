#!/usr/bin/env python3
"""Settings, figures, verdicts and tables of benchmarks/several_gpus.py, on reports made by hand."""

import copy
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "benchmarks"))
import several_gpus  # noqa: E402  pylint: disable=wrong-import-position
import several_gpus_table as tables  # noqa: E402  pylint: disable=wrong-import-position

DENSE = tables.Model("dense", "preset:dense", 36, False)
MOE = tables.Model("moe", "preset:moe", 8, True)
GB = 10 ** 9
PLAN = {"plan": {"local_bytes": GB, "remote_bytes": 3 * GB}}
LINKS = {"device_to_host": {"best_bytes_per_s": 100 * GB},
         "host_to_device": {"best_bytes_per_s": 50 * GB},
         "devices": [{"index": 0, "numa_node": 1, "host_bytes_by_numa_node": {"1": GB}}]}


def phase(name, role, tag, seconds, size=0):
    return {"phase": name, "role": role, "tag": tag, "seconds": seconds, "bytes": size}


def version(number, scale=1.0):
    """Of a cycle that takes 2 s without its training step, in the steady state."""
    return {"version": number, "committed": True, "seconds": 2.5 * scale,
            "digest": {"model": f"0x{number}", "mismatched": 0},
            "phases": [phase("offload", "trainer", "optimizer", 0.75 * scale, 60 * GB),
                       phase("transfer", "inference", "weights", 0.02 * scale, 4 * GB),
                       phase("offload", "trainer", "weights", 0.2 * scale, 10 * GB),
                       phase("resume", "inference", "kv_cache", 0.01 * scale),
                       phase("resume", "trainer", "weights", 0.2 * scale, 10 * GB),
                       phase("resume", "trainer", "optimizer", 0.75 * scale, 60 * GB),
                       phase("train", "trainer", None, 0.5 * scale)]}


def report():
    """The first version is slow, and must not count."""
    return {"ok": True, "error": None, "plan": dict(PLAN["plan"]),
            "versions": [version(1, 9), version(2), version(3)]}


class Settings(unittest.TestCase):
    def test_pipelines_are_even_or_differ_at_their_ends(self):
        self.assertEqual(tables.pipeline_spec(36, 4), "megatron:pp=4")
        self.assertEqual(tables.pipeline_spec(36, 8), "megatron:pp=8,first=3,last=3")
        with self.assertRaises(ValueError):
            tables.pipeline_spec(5, 2)
        with self.assertRaises(ValueError):
            tables.pipeline_spec(4, 8)

    def test_uneven_pipelines_keep_all_layers(self):
        for layers in range(10, 100):
            for stages in (4, 8):
                try:
                    spec = tables.pipeline_spec(layers, stages)
                except ValueError:
                    continue
                if "first" not in spec:
                    continue
                end = int(spec.rpartition("=")[2])
                self.assertEqual((layers - 2 * end) % (stages - 2), 0, spec)
                self.assertGreater(layers, 2 * end, spec)

    def test_only_experts_are_spread_as_experts(self):
        self.assertEqual([s.letter for s in tables.settings_of(DENSE, 4)], ["a", "b", "c"])
        self.assertEqual([s.letter for s in tables.settings_of(MOE, 8)], ["a", "b", "c", "d"])
        self.assertEqual([s.letter for s in tables.settings_of(MOE, 1)], ["a"])

    def test_settings_have_names_of_their_own(self):
        settings = [s for model in (DENSE, MOE) for gpus in (1, 2, 4, 8)
                    for s in tables.settings_of(model, gpus)]
        self.assertEqual(len({s.name for s in settings}), len(settings))

    def test_only_what_travels_is_exchanged(self):
        self.assertEqual(tables.exchanged([[5, 1], [2, 6]]), [[0, 1], [2, 0]])
        self.assertEqual(tables.exchanged([[5]]), [[5]])


class Figures(unittest.TestCase):
    def setUp(self):
        self.setting = tables.settings_of(MOE, 2)[2]

    def test_rates_and_ratios_are_of_warm_versions(self):
        row = tables.figures(self.setting, PLAN, report(), report(), {"best_seconds": 0.015}, LINKS)
        self.assertAlmostEqual(row["transfer_seconds"], 0.02)
        self.assertAlmostEqual(row["remote_bytes_per_s_per_gpu"], 75 * GB)
        self.assertAlmostEqual(row["nccl_bytes_per_s_per_gpu"], 100 * GB)
        self.assertAlmostEqual(row["remote_ratio"], 0.75)
        self.assertAlmostEqual(row["offload_bytes_per_s"], 80 * GB)
        self.assertAlmostEqual(row["offload_ratio"], 0.8)
        self.assertAlmostEqual(row["cycle_seconds"], 2.0)
        self.assertAlmostEqual(row["link_seconds"], 0.7 + 1.4)
        self.assertAlmostEqual(row["cycle_ratio"], 2.1 / 2.0)

    def test_what_failed_is_unknown(self):
        row = tables.figures(self.setting, PLAN, None, None, None, None)
        self.assertEqual(row["remote_bytes"], 3 * GB)
        for key in ("transfer_seconds", "remote_ratio", "offload_ratio", "cycle_ratio"):
            self.assertIsNone(row[key], key)

    def test_what_could_not_be_planned_stands_in_the_table(self):
        row = tables.figures(self.setting, None, None, None, None, None)
        self.assertIn("**no**: refused", tables.results_table([row | {"failures": ["refused"]}]))


class Verdicts(unittest.TestCase):
    def faults(self, changed, expected=(), first="0x1"):
        return tables.faults_of_update(changed, PLAN, first, list(expected))

    def test_a_right_update_has_none(self):
        self.assertEqual(self.faults(report(), ["0x1", "0x2", "0x3"]), [])

    def test_each_fault_is_found(self):
        def change(path, value):
            changed = copy.deepcopy(report())
            target = changed
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            return changed

        failed = change(["ok"], False)
        failed["error"] = {"message": "lost"}
        cases = [(failed, "failed: lost"),
                 (change(["plan", "remote_bytes"], 1), "remote_bytes"),
                 (change(["versions", 1, "committed"], False), "version 2 is not committed"),
                 (change(["versions", 1, "digest"], None), "version 2 has no digest"),
                 (change(["versions", 2, "digest", "mismatched"], 4), "4 tensors differ"),
                 (change(["versions", 0, "digest", "model"], "0x9"), "the checkpoint 0x1"),
                 (change(["versions", 0, "phases", 1, "bytes"], 5), "moved 5 bytes")]
        for changed, message in cases:
            self.assertIn(message, "; ".join(self.faults(changed)))
        self.assertIn("0x7'] are expected", "; ".join(self.faults(report(), ["0x1", "0x2", "0x7"])))

    def test_without_training_all_versions_are_the_checkpoint(self):
        still = report()
        for one in still["versions"]:
            one["digest"]["model"] = "0x1"
        self.assertEqual(self.faults(still, ["0x1"] * 3), [])
        self.assertEqual(self.faults(report(), ["0x1"] * 3),
                         ["digests ['0x1', '0x2', '0x3'], but ['0x1', '0x1', '0x1'] are expected"])

    def test_an_unknown_checkpoint_is_a_fault(self):
        self.assertEqual(self.faults(report(), first=None), ["the checkpoint's digest is unknown"])

    def test_a_killed_rank_must_be_named(self):
        def run(code, stderr, stdout="phase train trainer \n", left=()):
            return types.SimpleNamespace(code=code, stderr=stderr, stdout=stdout, left=list(left))

        def faults(of_run):
            return tables.faults_of_disturbed("kill", 3, ("train", "trainer", ""), of_run)

        gone = "error: rank 3 (inference) pid 7 is gone"
        self.assertEqual(faults(run(137, gone)), [])
        self.assertIn("exit code 0 instead of 137", faults(run(0, gone)))
        self.assertTrue(faults(run(137, "error: rank 2 (inference) pid 7 is gone")))
        self.assertIn("the phase did not come", faults(run(137, gone, stdout="")))
        self.assertIn("process 7 is left", faults(run(137, gone, left=["process 7"])))


class Refusals(unittest.TestCase):
    """Programs that fail: what they were to say is missing, and the rest goes on."""

    def setUp(self):
        self.bench = several_gpus.Bench(pathlib.Path("build"), pathlib.Path("out"), "host", False)

    def test_a_failed_program_is_a_failure(self):
        setting = tables.settings_of(MOE, 2)[0]
        for refusal in (SystemExit("plan\nexit code 2\nerror: no"),
                        subprocess.TimeoutExpired(["plan"], 200), ["no JSON"]):
            with mock.patch.object(several_gpus, "output_of", side_effect=refusal), \
                    mock.patch("sys.stderr", io.StringIO()):
                plan, failures = several_gpus.plan_of(self.bench, setting)
            self.assertIsNone(plan)
            self.assertIn("plan of 2gpus-moe-a: ", failures[0])
            if isinstance(refusal, list):
                continue
            with mock.patch.object(several_gpus, "output_of", side_effect=refusal), \
                    mock.patch("sys.stderr", io.StringIO()):
                digest, failures = several_gpus.digest_of(self.bench, MOE)
            self.assertIsNone(digest)
            self.assertIn("digest of moe: ", failures[0])

    def test_a_setting_without_a_plan_fails_alone(self):
        def plan_of(_, setting):
            return (None, ["plan: refused"]) if setting.letter == "b" else (PLAN, [])

        with mock.patch.multiple(several_gpus, plan_of=plan_of,
                                 measure_links=lambda *_: None, measure_nccl=lambda *_: {},
                                 measure_setting=lambda *_: (report(), report(), [])):
            group = several_gpus.measure_group(self.bench, 2, [DENSE], {DENSE: {}})
        self.assertEqual([row["setting"] for row in group["rows"]], ["a", "b", "c"])
        self.assertEqual([row["failures"] for row in group["rows"]], [[], ["plan: refused"], []])


class Tables(unittest.TestCase):
    def result(self, failures=()):
        setting = tables.settings_of(MOE, 2)[2]
        row = tables.figures(setting, PLAN, report(), report(), {"best_seconds": 0.015}, LINKS)
        fault = {"fault": "kill", "rank": 1, "phase": "commit all weights", "seconds": 4.2,
                 "failures": list(failures)}
        return {"machine": {"name": "a machine"},
                "groups": [{"gpus": 2, "links": LINKS, "faults": [fault],
                            "rows": [row | {"failures": list(failures)}]}]}

    def test_every_line_has_as_many_cells(self):
        text = tables.results_table(self.result()["groups"][0]["rows"])
        self.assertEqual(len({line.count("|") for line in text.splitlines()}), 1)
        self.assertIn("| 75.0 | 100.0 | 0.750 |", text)

    def test_failures_show(self):
        self.assertNotIn("**", tables.tables([self.result()]))
        text = tables.tables([self.result(["it broke"])])
        self.assertIn("**no**: it broke", text)
        self.assertIn("**kill of rank 1 in commit all weights**: it broke", text)
        self.assertIn("0 of 1 runs ended", text)

    def write_docs(self, document):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "docs.md")
            path.write_text(document, encoding="utf-8")
            with mock.patch.object(tables, "tables", lambda _: "new\n"):
                tables.write_docs(path, [])
            return path.read_text(encoding="utf-8")

    def test_documents_keep_what_is_around_the_markers(self):
        document = f"before\n{tables.BEGIN}\n{tables.END}\nafter\n"
        written = self.write_docs(document)
        self.assertEqual(written, f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n")
        self.assertEqual(self.write_docs(written.replace("new", "old")), written)
        for broken in ("", tables.BEGIN, tables.END + tables.BEGIN, document * 2):
            with self.assertRaises(ValueError):
                self.write_docs(broken)


if __name__ == "__main__":
    unittest.main()
