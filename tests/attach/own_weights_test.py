#!/usr/bin/env python3
"""Trainers whose weights are memory of their own, which a real job reads where it is: memory that stays, memory that
the engine moves itself, and what becomes of it when an engine is lost.

    own_weights_test.py MPIEXEC AWEX-COLOCATE LIBRARY [TEST...]
"""

import os
import re
import signal
import sys
import unittest

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]
# pylint: disable=wrong-import-position
from attached_engines_test import Attached  # noqa: E402
from attached_job import (FAILED, LOST, MIB, WRONG, Programs, as_megatron, as_vllm, canonical,  # noqa: E402
                          hand_over, take_back)
from resident_job import text_of, wait_until  # noqa: E402


def mappings_of(pid):
    """Of files that are an engine's own."""
    return [line for line in text_of(f"/proc/{pid}/maps").splitlines() if "memfd:own" in line]


class Own(Attached):
    def begin(self, own, *options, kind="shared", admission="digest", open_files=None):
        """A job of one of each whose trainer has its own weights. `open_files`: the trainer's limit, the ranks' soft
        one."""
        job = self.job(2, "--admission", admission, *options, open_files=open_files and f"{open_files}:")
        trainer = self.player(job, "trainer", own=own)
        inference = self.player(job, "inference")
        self.layout = trainer.end()["tensors"]
        inference.end()
        if open_files:
            trainer.do("limit_open_files", open_files)
        inference.do("declare")
        trainer.do("take_own", kind)
        trainer.do("step", 1)
        if inference.do("memory")["is_mapped"]:
            inference.do("fill", 1)
        trainer.begin("seal")
        inference.do("seal")
        trainer.end()
        job.serves()
        return job, trainer, inference

    def own_bytes(self, job):
        return next(rank["engine_own_bytes"] for rank in job.status_at_rest()["ranks"] if rank["role"] == "trainer")

    def test_memory_that_stays(self):
        job, trainer, inference = self.begin("stays")
        self.assertEqual(trainer.do("memory"), {"address": None, "bytes": 0, "is_mapped": 1})
        for version in range(1, 7):
            trainer.do("step", version)
            state = trainer.do("sum_of", "optimizer")
            self.assertEqual(self.hand_over(trainer, inference, version - 1), version)
            self.holds(inference, version)
            self.assertFalse(trainer.do("memory", "optimizer")["is_mapped"])
            self.trainer_holds(trainer, version)  # it is there all the time
            self.take_back(trainer, inference)
            self.assertEqual(trainer.do("sum_of", "optimizer"), state)
        self.assertNotIn(["before_release", "weights", 1], trainer.do("heard"))
        weights = sum(one["rows"] * one["cols"] * 2 for one in self.layout)
        self.assertGreaterEqual(self.own_bytes(job), weights)
        trainer.do("book", "CUDA graphs", 7 * MIB)
        wait_until(lambda: self.own_bytes(job) >= weights + 7 * MIB, 10, "the books know of it")
        status = job.status_at_rest()
        self.assertEqual((status["committed_version"], status["memory"]["leaked_bytes"]), (6, 0))
        tags = {rank["role"]: {tag["tag"] for tag in rank["tags"]} for rank in status["ranks"]}
        self.assertEqual(tags, {"trainer": {"optimizer"}, "inference": {"weights", "kv_cache"}})

    def test_weights_that_stay_are_back_when_inference_has_given_its_memory(self):
        for call in ("take_back_weights", "take_back"):
            with self.subTest(call=call):
                job, trainer, inference = self.begin("stays")
                self.hand_over(trainer, inference, 0)
                trainer.begin(call)
                self.assertFalse(trainer.answers_within(0.5))
                self.assertTrue(inference.do("memory")["is_mapped"])
                inference.do("release")
                trainer.end()
                self.assertFalse(inference.do("memory")["is_mapped"])
                trainer.do(call)  # at once
                self.assertEqual(trainer.do("memory", "optimizer")["is_mapped"], int(call == "take_back"))
                job.end()

    def test_more_blocks_than_descriptors(self):
        """As expandable segments of a large model have: ranks take what they may have, an engine needs few at once."""
        job, trainer, inference = self.begin("stays", kind="pages", open_files=160)
        pages = len(mappings_of(trainer.process.pid))
        self.assertGreater(pages, 200)
        self.assertEqual(self.hand_over(trainer, inference, 0), 1)
        self.holds(inference, 1)

    def test_a_rank_without_descriptors_says_so(self):
        job = self.job(2, "--admission", "off", attach="trainer", open_files="160:160")
        trainer = self.player(job, "trainer", own="stays")
        trainer.end()
        trainer.do("take_own", "pages")
        told = r"process \d+ has too many open files \(ulimit -n\)"
        self.assertRegex(self.fails(LOST, trainer.do, "seal"), "rank 0 .* is lost: " + told)
        wait_until(lambda: re.search(f"(?m)^warning: the trainer engine of rank 0, .* is lost since .*: {told}",
                                     text_of(job.errors)), 10, "the job tells of it")

    def test_without_counted_steps(self):
        """An engine that tells nothing of its steps may have written whenever it did not consent."""
        _job, trainer, inference = self.begin("stays", admission="off")
        for version in range(1, 4):
            trainer.do("fill", version + 10)
            self.assertEqual(self.hand_over(trainer, inference, version - 1), version)
            self.take_back(trainer, inference)
        trainer.do("fill", 20)
        self.hand_over(trainer, inference, 3)
        self.holds(inference, 20)

    def test_memory_that_moves(self):
        job, trainer, inference = self.begin("moves")
        for version in range(1, 5):
            trainer.do("step", version)
            self.assertEqual(self.hand_over(trainer, inference, version - 1), version)
            self.holds(inference, version)
            self.assertFalse(trainer.do("memory")["is_mapped"])
            for rank in job.status_at_rest()["ranks"]:  # nobody keeps it
                self.assertEqual(mappings_of(rank["pid"]), [], rank["role"])
            self.take_back(trainer, inference)
            self.assertTrue(trainer.do("memory")["is_mapped"])
            self.trainer_holds(trainer, version)
        heard = [event[0] for event in trainer.do("heard") if event[1] == "weights"]
        self.assertEqual(heard, ["before_release", "after_resume"] * 4)

    def test_a_callback_that_fails(self):
        job, trainer, inference = self.begin("moves")
        trainer.do("fail", ["before_release weights"])
        inference.begin("wait", 0)
        self.assertIn("before_release", self.fails(FAILED, trainer.do, "hand_over"))
        trainer.do("fail", [])
        if inference.answers_within(1):  # The version may have served before the callback failed.
            self.assertEqual(inference.end(), 1)
            inference.begin("ready")
        self.assertEqual(trainer.do("hand_over"), 1)
        self.assertIn(inference.end(), (1, None))
        trainer.do("fail", ["after_resume weights"])
        inference.begin("release")
        self.assertIn("after_resume", self.fails(FAILED, trainer.do, "take_back"))
        self.fails(FAILED, inference.end)
        trainer.do("fail", [])
        self.take_back(trainer, inference)
        trainer.do("step", 2)
        self.assertEqual(self.hand_over(trainer, inference, 1), 2)
        self.holds(inference, 2)
        self.assertEqual(job.status_at_rest()["committed_version"], 2)

    def test_what_cannot_be_lent(self):
        job = self.job(2, "--admission", "off", attach="trainer")
        trainer = self.player(job, "trainer", own="stays")
        self.layout = trainer.end()["tensors"]
        text = self.fails(WRONG, trainer.do, "take_own", "private")
        first = self.layout[0]["name"]
        self.assertRegex(text, re.escape(first) + r".*is private to this process(.|\n)*share_memory")
        self.assertIn("awex_declare_own", self.fails(WRONG, trainer.do, "declare"))
        trainer.do("take_own")  # what was refused has not been declared
        trainer.do("seal")
        job.serves()
        self.assertIn("sealed", self.fails(WRONG, trainer.do, "declare_own"))
        trainer.do("step", 1)
        self.assertEqual(trainer.do("hand_over"), 1)

    def test_memory_that_has_gone_before_the_seal(self):
        job = self.job(2, "--admission", "off", attach="trainer")
        trainer = self.player(job, "trainer", own="stays")
        self.layout = trainer.end()["tensors"]
        trainer.do("take_own")
        trainer.do("move", "before_release")
        self.assertIn(self.layout[0]["name"], self.fails(WRONG, trainer.do, "seal"))
        trainer.do("take_own")  # begins a new list
        trainer.do("seal")
        job.serves()
        trainer.do("step", 1)
        self.assertEqual(trainer.do("hand_over"), 1)

    def test_who_may_not_lend(self):
        job = self.job(2, "--admission", "off")
        inference = self.player(job, "inference", own="stays")
        self.assertIn("trainer", self.fails(WRONG, inference.end))
        trainer = self.player(job, "trainer", own="stays", weights=MIB)
        self.assertIn("none of the job's", self.fails(WRONG, trainer.end))

    def test_scales_are_the_jobs(self):
        job = self.job(2, "--admission", "off", inference="sglang:tp=1,dtype=fp8,block=32,keeps_fp8=on", attach="trainer")
        self.player(job, "trainer", own="stays")
        wait_until(lambda: job.process.poll() is not None, 60, "the job ends")
        self.assertIn("its scales lie with the trainer's weights", text_of(job.errors).replace("\n", " "))

    def test_a_lost_trainer(self):
        job, trainer, inference = self.begin("stays")
        trainer.do("keep", "of step 1")
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference)
        ranks = job.rank_pids()
        self.assertTrue(all(mappings_of(pid) for pid in ranks))
        trainer.kill()
        update = job.client("update")
        self.assertEqual(update.returncode, LOST, update.stderr)
        wait_until(lambda: not any(mappings_of(pid) for pid in ranks), 10, "the lost engine's memory is let go")
        self.assertIn("has its weights in the job's memory", self.fails(WRONG, self.player(job, "trainer").end))
        other = self.player(job, "trainer", own="stays")
        place = other.end()
        self.assertEqual((place["reattached"], place["version"], place["kept"]), (1, 1, "of step 1"))
        other.do("take_own", "shared", 5)
        other.do("step", 8)
        other.do("seal")
        self.assertIn("are gone", text_of(job.errors))
        self.assertEqual(self.hand_over(other, inference, 1), 2)
        self.holds(inference, 8)
        self.take_back(other, inference)

    def test_a_job_lost_while_it_has_moved(self):
        job, trainer, inference = self.begin("moves", admission="off")
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        self.lose(job)
        trainer.do("fail", ["after_resume weights"])
        self.assertIn("after_resume", self.fails(FAILED, trainer.do, "restore"))
        self.assertFalse(trainer.do("memory")["is_mapped"])
        trainer.do("fail", [])
        self.assertEqual(trainer.do("restore"), 0)  # the optimizer's state is not declared
        self.assertTrue(trainer.do("memory")["is_mapped"])
        self.trainer_holds(trainer, 1)
        self.assertEqual(trainer.do("sum_of", "optimizer"), state)
        self.assertEqual(trainer.do("restore"), 0)  # and says so again

    def test_a_job_lost_while_it_moves(self):
        job, trainer, inference = self.begin("moves", admission="off")
        trainer.do("delay", "before_release weights", 4)
        inference.begin("wait", 0)
        trainer.begin("hand_over")
        wait_until(lambda: "trainer optimizer" not in text_of(f"/proc/{trainer.process.pid}/maps"), 10,
                   "the optimizer's state has left")
        self.lose(job)
        self.fails(LOST, trainer.end)
        self.assertFalse(trainer.do("memory")["is_mapped"])
        trainer.do("restore")
        self.trainer_holds(trainer, 1)

    def lose(self, job):
        pids = job.rank_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10, "its ranks are gone")

    def test_weights_of_another_engine_are_others(self):
        """Though it takes no step."""
        job, trainer, inference = self.begin("stays", admission="off")
        self.hand_over(trainer, inference, 0)
        trainer.kill()
        other = self.player(job, "trainer", own="stays")
        other.end()
        other.do("take_own")
        other.do("fill", 9)
        other.do("seal")
        self.assertEqual(self.hand_over(other, inference, 1), 2)
        self.holds(inference, 9)

    def test_a_trainer_lost_while_it_has_moved_its_memory(self):
        job, trainer, inference = self.begin("moves")
        self.hand_over(trainer, inference, 0)
        trainer.kill()
        other = self.player(job, "trainer", own="moves")
        other.end()
        other.do("take_own")
        other.do("seal")
        self.take_back(other, inference)
        other.do("step", 5)
        self.assertEqual(self.hand_over(other, inference, 1), 2)
        self.holds(inference, 5)


class TwoOfEach(Attached):
    """Megatron with tp=2, one of whose ranks lends; vLLM with tp=2."""

    def test_updates(self):
        job = self.job(4, "--admission", "off", trainer="megatron:tp=2", inference="vllm:tp=2")
        trainers = [self.player(job, "trainer", 0, own="stays"), self.player(job, "trainer", 1)]
        servers = [self.player(job, "inference", at) for at in range(2)]
        for player in trainers + servers:
            player.end()
        trainers[0].do("take_own")
        for player in [trainers[1], *servers]:
            player.do("declare")
        for player in trainers + servers:
            player.begin("seal")
        for player in trainers + servers:
            player.end()
        job.serves()
        given, held = os.path.join(self.scratch, "given.npz"), os.path.join(self.scratch, "held.npz")
        for version in range(1, 6):
            model = canonical(version)
            for rank, player in enumerate(trainers):
                np.savez(given, **as_megatron(model, rank, 2))
                player.do("step_from", given)
            self.assertEqual(hand_over(trainers, servers, version - 1), [version] * 4)
            for rank, player in enumerate(servers):
                player.do("save", held)
                with np.load(held) as arrays:
                    for name, bits in as_vllm(model, rank, 2).items():
                        self.assertTrue(np.array_equal(arrays[name].reshape(bits.shape), bits), name)
            take_back(trainers, servers)
        self.assertEqual(job.status_at_rest()["committed_version"], 5)


if __name__ == "__main__":
    Programs.mpiexec, Programs.binary, Programs.library = sys.argv[1:4]
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
