"""What `awex-colocate plan` says, writes and returns.

usage: plan_test.py BINARY
"""

import json
import os
import re
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

BINARY = ""
DENSE = ("--model", "preset:qwen3-8b", "--trainer", "megatron:tp=4", "--inference", "sglang:tp=2")


def plan(*arguments, env=None):
    result = subprocess.run(
        [BINARY, "plan", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = len(re.findall("(?m)^error: ", result.stderr))
    if told != (1 if result.returncode else 0):
        raise AssertionError(f"{told} error lines and exit code {result.returncode}: {result.stderr}")
    return result


def plan_json(*arguments):
    result = plan(*arguments, "--json", "-")
    return result.returncode, json.loads(result.stdout)


class Plan(unittest.TestCase):
    def refused(self, *arguments, says, hint=None):
        result = plan(*arguments)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn(says, result.stderr)
        if hint:
            self.assertIn(hint, result.stderr)
        return result

    def test_wrong_requests(self):
        tiny = ("--model", "preset:tiny-dense")
        for arguments, says in (
            ((), "--model is missing"),
            ((*tiny, "--gpus", "0"), "--gpus"),
            ((*tiny, "--gpus", "9999999"), "--gpus"),
            ((*tiny, "--network", "fast"), "--network"),
            ((*tiny, "--network", "-1"), "--network"),
            ((*tiny, "--gpus", "2", "--list", "2"), "no GPU 2"),
            ((*tiny, "--gpus", "3", "--trainer", "megatron:tp=2"), "does not divide"),
            ((*tiny, "--json", "/nonexistent/plan.json"), "/nonexistent/plan.json"),
        ):
            with self.subTest(arguments):
                self.assertEqual(self.refused(*arguments, says=says).stdout, "")

    def test_tables(self):
        result = plan(*DENSE, "--gpus", "16", "--gpu-memory", "80GB")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertRegex(result.stdout, r"(?m)^# remote .* \(at least .* are needed\)$")
        # The matrix is folded: 16 columns do not fit.
        blocks = re.findall(r"(?m)^from \\ to +(GPU .*)$", result.stdout)
        self.assertEqual(" ".join(blocks).split(), [word for gpu in range(16) for word in ("GPU", str(gpu))])
        self.assertGreater(len(blocks), 1)
        self.assertRegex(result.stdout, r"(?m)^transfer +both +weights ")
        self.assertRegex(result.stdout, r"(?m)^result +fits$")
        self.assertNotIn("\033", result.stdout)
        colored = plan(*DENSE, "--gpus", "16", "--gpu-memory", "80GB", "--color", "always").stdout
        self.assertIn("\033[32mfits", colored)

    def test_notes_of_the_layout(self):
        latent = ("--model", "preset:tiny-mla", "--gpus", "2")
        code, forecast = plan_json(*latent, "--inference", "sglang:tp=2")
        self.assertEqual(code, 0)
        self.assertTrue(any("post_load_weights()" in note for note in forecast["notes"]), forecast)
        text = plan(*latent, "--inference", "sglang:tp=2").stdout
        words = re.sub(r"\n# {5,}", " ", text)  # they are folded
        for note in forecast["notes"]:
            self.assertRegex(words, rf"(?m)^# note +{re.escape(note)}$")
        self.assertEqual(plan_json(*latent, "--inference", "vllm:tp=2")[1]["notes"], [])
        self.assertNotIn("# note", plan(*latent, "--inference", "vllm:tp=2").stdout)

    def test_many_gpus_are_shown_by_nodes(self):
        for gpus, row in (("64", "node 7"), ("256", "nodes 30-31")):
            with self.subTest(gpus):
                text = plan(*DENSE, "--gpus", gpus).stdout
                self.assertRegex(text, rf"(?m)^{row} ")
                self.assertNotIn("GPU 0 ", text)

    def test_one_is_no_plural(self):
        for gpus, world in (("1", "1 GPU, 1 node"), ("2", "2 GPUs, 1 node"), ("16", "16 GPUs, 2 nodes")):
            with self.subTest(gpus):
                text = plan("--model", "preset:tiny-dense", "--gpus", gpus).stdout
                self.assertRegex(text, rf"(?m)^# world +{world}$")

    def test_numbers_agree_with_each_other(self):
        code, report = plan_json(*DENSE, "--gpus", "20", "--gpus-per-node", "8")
        self.assertEqual((code, report["ok"], report["error"]), (0, True, None))
        self.assertEqual(report["world"], {"ranks": 40, "gpus": 20, "nodes": 3})
        moved = report["plan"]["local_bytes"] + report["plan"]["remote_bytes"]
        self.assertEqual(report["plan"]["remote_bytes"], report["plan"]["remote_bytes_lower_bound"])
        self.assertEqual(sum(map(sum, report["traffic"]["bytes_from_row_to_column"])), moved)
        # Every engine instance of two GPUs gets the whole model, and its norms on both.
        self.assertGreaterEqual(moved, 10 * report["model"]["bytes"])
        self.assertEqual(report["model"]["elements"], 8190735360)

    def test_times_follow_the_links(self):
        def seconds(*links):
            _, report = plan_json(*DENSE, "--gpus", "16", "--gpus-per-node", "1", *links)
            phases = {(p["phase"], p["tag"]): p["seconds"] for p in report["phases"] if p["seconds"]}
            return phases["offload", "optimizer"], phases["transfer", "weights"]

        fast = seconds("--network", "40", "--link-d2h", "50")
        slow = seconds("--network", "20", "--link-d2h", "25")
        self.assertAlmostEqual(slow[0], 2 * fast[0])
        self.assertGreater(slow[1], 1.9 * fast[1])

    def test_what_does_not_fit_is_refused_and_the_advice_helps(self):
        gpus = ("--gpus", "16", "--gpu-memory", "40GB")
        for wrong in (("--kv-cache", "60GiB"), ("--no-offload", "--kv-cache", "5GiB")):
            with self.subTest(wrong):
                code, report = plan_json(*DENSE, *gpus, *wrong)
                self.assertEqual((code, report["ok"], report["exit_code"]), (2, False, 2))
                self.assertEqual(report["error"]["code"], 2)
                misfit = report["misfits"][0]
                self.assertGreater(misfit["needed_bytes"], misfit["budget_bytes"])
        text = self.refused(*DENSE, *gpus, "--kv-cache", "60GiB", says="72.7 GB in the rollout").stdout
        self.assertRegex(text, r"(?m)^result +does not fit$")
        self.refused(*DENSE, *gpus, "--no-offload", "--kv-cache", "5GiB", says="the whole cycle",
                     hint="leaving out --no-offload")
        _, report = plan_json(*DENSE, *gpus, "--kv-cache", "60GiB")
        advice = report["error"]["hint"].split("--kv-cache ")[1].split(",")[0]
        self.assertEqual(plan(*DENSE, *gpus, "--kv-cache", advice).returncode, 0)
        more = f"{int(advice.removesuffix('MiB')) + 1}MiB"
        self.assertEqual(plan(*DENSE, *gpus, "--kv-cache", more).returncode, 2)

    def test_a_suggested_layout_fits(self):
        job = ("--model", "preset:qwen3-8b", "--gpus", "16", "--gpu-memory", "40GB")
        _, report = plan_json(*job)
        advice = report["error"]["hint"].split("--trainer ")[1].split(", or")[0]
        self.assertEqual(plan(*job, "--trainer", advice).returncode, 0)

    def test_host_memory(self):
        fits = (*DENSE, "--gpus", "16", "--host-memory")
        self.assertEqual(plan(*fits, "400GB").returncode, 0)
        self.refused(*fits, "200GB", says="--host-memory")
        self.assertEqual(plan(*fits, "200GB", "--optimizer", "none").returncode, 0)

    def test_listed_pieces_and_their_reasons(self):
        tiny = ("--model", "preset:tiny-dense", "--layers", "1", "--trainer", "megatron:tp=2")
        _, report = plan_json(*tiny, "--gpus", "4", "--gpus-per-node", "2", "--list", "1")
        reasons = {piece["why"] for piece in report["pieces"]}
        self.assertEqual(reasons, {"on the same GPU", "the only source on the node"})
        for piece in report["pieces"]:
            self.assertIn(1, (piece["from"], piece["to"]))
            self.assertEqual(piece["from"] == piece["to"], piece["why"] == "on the same GPU")
        text = plan(*tiny, "--gpus", "4", "--gpus-per-node", "2", "--list", "1").stdout
        self.assertIn("why this source", text)

    def test_dtypes_of_inference(self):
        fp8 = (*DENSE[:-1], "sglang:tp=2,keeps_fp8=on,dtype=fp8", "--gpus", "4")
        _, plain = plan_json(*DENSE, "--gpus", "4")
        code, report = plan_json(*fp8)
        self.assertEqual((code, report["inference"]), (0, "sglang:tp=2,keeps_fp8=on,dtype=fp8"))
        # 252 matrices of 36 layers at a byte an element instead of two, and a scale for 16384.
        matrices = 36 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 12288)
        self.assertEqual(report["held"]["tensors"], 399 + 252)
        self.assertEqual(report["held"]["bytes"], plain["model"]["bytes"] - matrices + matrices // 4096)
        self.assertEqual(plain["held"]["bytes"], plain["model"]["bytes"])
        self.assertEqual(report["plan"]["remote_bytes"], report["plan"]["remote_bytes_lower_bound"])
        moved = report["plan"]["local_bytes"] + report["plan"]["remote_bytes"]
        self.assertEqual(sum(map(sum, report["traffic"]["bytes_from_row_to_column"])), moved)
        peak = {(p["phase"], p["role"]): p["device_peak_bytes"] for p in report["phases"]}
        peak_plain = {(p["phase"], p["role"]): p["device_peak_bytes"] for p in plain["phases"]}
        self.assertLess(peak["transfer", "both"], peak_plain["transfer", "both"])
        text = plan(*fp8).stdout
        self.assertRegex(text, r"(?m)^# holds +651 tensors of inference, 252 of them scales, ")
        self.assertIn("BF16 -> F8_E4M3", plan(*fp8, "--list", "0").stdout)

    def test_parts_that_cut_blocks_of_scales(self):
        self.refused("--model", "preset:qwen3-0.6b", "--gpus", "16", "--inference",
                     "sglang:tp=16,keeps_fp8=on,dtype=fp8", says="gate_proj", hint="block=128")
        self.refused("--model", "preset:tiny-dense", "--trainer", "hf:dtype=fp8", says="dtype")

    def test_a_refused_request_is_one_json_object(self):
        code, report = plan_json(*DENSE, "--gpus", "4", "--trainer", "megatron:tp=3")
        self.assertEqual((code, report["exit_code"], report["command"]), (2, 2, "plan"))
        places = {"rank", "host", "gpu", "role", "phase", "tag", "tensor"}
        self.assertEqual(set(report["error"]), {"code", "message", "hint", *places})

    def test_places_that_take_no_json(self):
        with tempfile.TemporaryDirectory() as directory:
            fifo = os.path.join(directory, "fifo")
            os.mkfifo(fifo)
            unread = plan("--model", "preset:tiny-dense", "--json", fifo)
            self.assertEqual(unread.returncode, 4, unread.stderr)
            self.assertIn(f'nobody reads "{fifo}"', unread.stderr)
        full = plan("--model", "preset:tiny-dense", "--json", "/dev/full")
        self.assertEqual(full.returncode, 1, full.stderr)
        self.assertEqual(full.stderr.count("No space left"), 1, full.stderr)

    def test_json_file_is_written_in_any_case(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "plan.json")
            self.refused("--model", "preset:no-such", "--json", str(path), says="no-such")
            report = json.loads(path.read_text(encoding="utf-8"))
            self.assertEqual((report["ok"], report["exit_code"]), (False, 2))
            good = plan(*DENSE, "--gpus", "4", "--json", str(path))
            self.assertEqual(good.returncode, 0, good.stderr)
            self.assertIn("# model", good.stdout)
            self.assertTrue(json.loads(path.read_text(encoding="utf-8"))["ok"])


if __name__ == "__main__":
    BINARY = sys.argv[1]
    unittest.main(argv=sys.argv[:1], verbosity=2)
