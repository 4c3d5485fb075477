"""Tables of benchmarks/attached_engines.py from made-up figures whose results are known.

usage: attached_engines_test.py BENCHMARKS_FOLDER
"""
import copy
import pathlib
import sys
import tempfile
import types
import unittest

sys.path.insert(0, sys.argv.pop(1))

import attached_engines  # noqa: E402
import attached_engines_tables as tables  # noqa: E402
import attached_sides  # noqa: E402
from peer_shapes import elements, inference_tensors  # noqa: E402


def cycle(number, to_first_token, back):
    return {"digest": 10 + number, "tokens": [number, 7], "to_first_token": to_first_token,
            "back": back, "forward": back / 4, "more": 0.125, "steps": {"update": to_first_token / 2},
            "peak_bytes": (60 + number) * 10**9, "rollout_bytes": 13 * 10**9}


def side(*times):
    return {"cycles": [cycle(number, *both) for number, both in enumerate(times)], "digest": 99,
            "host_bytes": 57 * 10**9, "idle_bytes": 5 * 10**8, "vllm": "0.25.1",
            "moved": {"to_host": 56 * 10**9, "to_device": 56 * 10**9,
                      "written_on_device": 8 * 10**9}}


RESULTS = {
    "model": "4b", "layers": 0, "backend": "cuda", "cycles": 4, "first_step_s": 20, "activation_bytes": 12 << 30,
    "weights_bytes": 8044936192, "cores": 16, "host_memory_bytes": 128 << 30, "gpu": "a GPU",
    "versions": {"ours": "0.1.0", "commit": "abc", "driver": "1", "PyTorch": "2.11"}, "failures": [],
    "sides": {
        "ipc": side((36.6, 1.2), (1.4, 1.1), (1.3, 1.1), (1.5, 1.1)),
        "ours": {**side((2.5, 1.3), (0.9, 1.06), (0.8, 1.02), (1.9, 1.07)),
                 "phases": {"offload trainer optimizer": [0.95, 0.9, 0.88, 0.89]},
                 "prepared": ["48 GB were prepared in 9 s"]},
    }}  # fmt: skip

JOB_LOG = """not an object
[1]
{"event":"phase","message":"a","version":1,"phase":"ready","role":"all","tag":null,"seconds":0.25}
{"event":"phase","message":"b","version":1,"phase":"ready","role":"all","tag":null,"seconds":0.5}
{"event":"phase","message":"c","version":2,"phase":"ready","role":"all","tag":null,"seconds":2}
{"event":"phase","message":"d","version":2,"phase":"offload","role":"trainer","tag":"weights","seconds":4}
{"event":"detail","message":"1 GB of host memory were prepared in 1 s"}
{"event":"detail","message":"something else"}
"""


class Tables(unittest.TestCase):
    def setUp(self):
        self.results = copy.deepcopy(RESULTS)

    def rows(self):
        lines = tables.markdown(self.results, None).splitlines()
        return {cells[0]: cells[1:] for cells in
                ([cell.strip() for cell in line.strip("|").split("|")]
                 for line in lines if line.startswith("|"))}

    def test_times(self):
        rows = self.rows()
        self.assertEqual(rows["from the end of the step to the first token"], [
            "36.6 s", "1,400 ms (1,300 ms to 1,500 ms)", "2,500 ms",
            "900 ms (800 ms to 1,900 ms)"])
        self.assertEqual(rows["from the end of the rollouts to the trainer's forward"][3],
                         "265 ms (255 ms to 268 ms)")
        self.assertEqual(rows["16 tokens right after the first"][0], "125 ms")
        self.assertEqual(rows["the trainer's waits for its memory, all"][3],
                         "1,060 ms (1,020 ms to 1,070 ms)")
        self.assertEqual(rows["GPU memory, most in a cycle"], ["60.00 GB", "63.00 GB"] * 2)

    def test_goals(self):
        rows = self.rows()
        self.assertEqual(rows["to the first token, warm"], ["≤ 0.95 s", "0.900 s", "reached"])
        self.assertEqual(rows["to the first token, first, `--warm-host-memory`"],
                         ["≤ 3.00 s", "2.500 s", "reached"])
        self.assertEqual(rows["back to the trainer, warm"], ["≤ 1.05 s", "0.265 s", "reached"])
        for one in self.results["sides"]["ours"]["cycles"]:
            one["forward"] = 1.06
        self.assertEqual(self.rows()["back to the trainer, warm"][1:], ["1.060 s", "**missed**"])

    def test_the_goal_of_memory_is_the_peers(self):
        goal = "| GPU memory, most in a warm cycle | < 63.00 GB |"
        self.assertIn(f"{goal} 63.00 GB | **missed** |", tables.markdown(self.results, None))
        for one in self.results["sides"]["ours"]["cycles"]:
            one["peak_bytes"] -= 10**9
        self.assertIn(f"{goal} 62.00 GB | reached |", tables.markdown(self.results, None))

    def test_other_models_have_no_goals(self):
        self.results["model"] = "0.6b"
        self.assertNotIn("verdict", tables.markdown(self.results, None))

    def test_memory_that_nobody_measured(self):
        self.results["sides"]["ours"]["cycles"][2]["peak_bytes"] = None
        self.results["sides"]["ipc"]["host_bytes"] = None
        rows = self.rows()
        self.assertEqual(rows["GPU memory, most in a cycle"], ["60.00 GB", "63.00 GB", "60.00 GB", "–"])
        self.assertEqual(rows["host memory kept for it"], ["", "–", "", "57.00 GB"])

    def test_one_cycle(self):
        for one in self.results["sides"].values():
            del one["cycles"][1:]
        self.results["sides"]["ours"]["phases"] = {}
        self.assertEqual(self.rows()["from the end of the step to the first token"],
                         ["36.6 s", "–", "2,500 ms", "–"])

    def test_no_side(self):
        self.results.update(sides={}, failures=["ours: exit code 1\nits log"])
        text = tables.markdown(self.results, None)
        self.assertIn("**Failed:** ours: exit code 1\n", text)
        self.assertNotIn("its log", text)


class Differences(unittest.TestCase):
    def setUp(self):
        self.sides = copy.deepcopy(RESULTS["sides"])

    def test_none(self):
        self.assertEqual(tables.differences(self.sides), [])
        self.assertEqual(tables.differences({}), [])

    def test_tokens(self):
        self.sides["ours"]["cycles"][2]["tokens"] = [2, 8]
        found, = tables.differences(self.sides)
        self.assertIn("tokens after update 3 differ", found)

    def test_weights(self):
        self.sides["ours"]["digest"] = 98
        found, = tables.differences(self.sides)
        self.assertIn("the trainers' weights differ", found)

    def test_tokens_that_never_change(self):
        for one in self.sides.values():
            for number in range(4):
                one["cycles"][number]["tokens"] = [5]
        self.assertEqual(len(tables.differences(self.sides)), 2)


class Parts(unittest.TestCase):
    def test_what_a_job_tells(self):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "serve.log"
            log.write_text(JOB_LOG, encoding="utf-8")
            self.assertEqual(attached_engines.told_by_job(log), {
                "phases": {"ready all": [0.75, 2], "offload trainer weights": [4]},
                "prepared": ["1 GB of host memory were prepared in 1 s"]})

    def test_shapes_hold_as_much_as_those_of_the_other_benchmarks(self):
        model = attached_sides.MODELS["4b"]
        self.assertEqual(elements(attached_sides.tensors_of(model)),
                         elements(inference_tensors(model)))
        self.assertEqual(attached_sides.weights_bytes(model), RESULTS["weights_bytes"])

    def test_optimizer_state_fits_its_memory(self):
        model = attached_sides.model_of(types.SimpleNamespace(model="0.6b", layers=1))
        each = [4 * size for _, shape in attached_sides.tensors_of(model)
                for size in [elements([("", shape)])]]
        self.assertTrue(all(size % 512 == 0 for size in each))
        self.assertEqual(attached_sides.optimizer_bytes(model), 3 * sum(each))

    def test_peak_of_gpu_memory(self):
        memory = object.__new__(attached_engines.GpuMemory)
        memory._samples = [(0, 5), (1, 9), (2, 3), (4, 7)]
        self.assertEqual(memory.peak(1.5, 3), 9)
        self.assertEqual(memory.peak(2, 3), 3)
        self.assertEqual(memory.peak(3, 4), 7)
        self.assertEqual(memory.peak(3, 3), 3)

    def test_docs_have_the_place(self):
        docs = pathlib.Path(attached_engines.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
        self.assertEqual((docs.count(tables.BEGIN), docs.count(tables.END)), (1, 1))



if __name__ == "__main__":
    unittest.main()
