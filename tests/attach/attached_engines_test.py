"""Engines attach to a resident job on the host backend: processes that play them use the library.

usage: attached_engines_test.py MPIEXEC BINARY LIBRARY FAULTY_JOB
"""

import glob
import json
import os
import re
import signal
import sys
import tempfile
import time
import unittest

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from attached_job import (DEADLINE, FAILED, LOST, MIB, MISMATCH, OK, WRONG, Answer, Job, Player, Programs,  # noqa: E402
                          as_fp8_vllm, as_megatron, as_vllm, canonical, hand_over, take_back, usage_of)
from engine_process import pattern  # noqa: E402
from resident_job import text_of, wait_until  # noqa: E402


LARGE = 130 * MIB  # of an optimizer state: in several chunks
BARELY = ("--gpu-memory", "140MiB")  # for that and the trainer's weights, and for nothing of inference beside


class Attached(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.scratch = directory.name

    def job(self, *arguments, **named):
        job = Job(self.scratch, *arguments, **named)
        self.addCleanup(job.end)
        return job

    def player(self, *arguments, **named):
        player = Player(*arguments, **named)
        self.addCleanup(player.kill)
        return player

    def fails(self, status, call, *arguments, **named):
        with self.assertRaises(Answer) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.status, status, caught.exception.text)
        return caught.exception.text

    def pair(self, *options, admission="off", optimizer=(), trainer=None, **named):
        """A job of one trainer and one inference rank of the same layout, whose engines have sealed."""
        job = self.job(2, "--admission", admission, *options, **named)
        trainer, inference = self.player(job, "trainer", **(trainer or {})), self.player(job, "inference")
        self.layout = trainer.end()["tensors"]
        inference.end()
        trainer.do("declare", None, optimizer)
        inference.do("declare")
        trainer.do("step", 1)
        trainer.begin("seal")
        inference.do("seal")
        trainer.end()
        job.serves()
        return job, trainer, inference

    def hand_over(self, trainer, inference, newer_than):
        inference.begin("wait", newer_than)
        version = trainer.do("hand_over")
        self.assertEqual(inference.end(), version)
        return version

    def take_back(self, trainer, inference, call="take_back"):
        inference.begin("release")
        trainer.do(call)
        inference.end()

    def trainer_holds(self, trainer, seed):
        path = os.path.join(self.scratch, "wanted.npz")
        np.savez(path, **{tensor["name"]: pattern(tensor["name"], 0, tensor["rows"], tensor["cols"], tensor["dtype"],
                                                  seed) for tensor in self.layout})
        self.assertEqual(trainer.do("differing", path), [])

    def holds(self, inference, seed):
        """Inference holds what a trainer of the same layout has filled with a seed."""
        path = os.path.join(self.scratch, "held.npz")
        inference.do("save", path)
        with np.load(path) as held:
            for tensor in self.layout:
                wanted = pattern(tensor["name"], 0, tensor["rows"], tensor["cols"], tensor["dtype"], seed)
                self.assertTrue(np.array_equal(held[tensor["name"]], wanted), tensor["name"])


class Pairs(Attached):
    """Megatron with tp=2 hands over to vLLM with tp=2."""

    INFERENCE, FORM = "vllm:tp=2", staticmethod(as_vllm)

    def store(self, held):
        path = os.path.join(self.scratch, "given.npz")
        np.savez(path, **held)
        return path

    def give(self, players, model, form, what="load"):
        for rank, player in enumerate(players):
            player.do(what, self.store(form(model, rank, len(players))))

    def check(self, players, model):
        path = os.path.join(self.scratch, "held.npz")
        for rank, player in enumerate(players):
            player.do("save", path)
            with np.load(path) as held:
                wanted = self.FORM(model, rank, len(players))
                self.assertEqual(set(held.files), set(wanted))
                for name, bits in wanted.items():
                    self.assertTrue(np.array_equal(held[name].reshape(bits.shape), bits), name)

    def check_trainers(self, players, seed):
        for rank, player in enumerate(players):
            self.assertEqual(player.do("differing", self.store(as_megatron(canonical(seed), rank, 2))), [])

    def attach(self, *options, admission="digest", scatter=False, fault=None, optimizer=(MIB, MIB)):
        job = self.job(4, "--admission", admission, *options, trainer="megatron:tp=2", inference=self.INFERENCE,
                       fault=fault)
        trainers = [self.player(job, "trainer", at, weights=8 * MIB if scatter else 0, optimizer=optimizer[at])
                    for at in range(2)]
        servers = [self.player(job, "inference", at, weights=8 * MIB if scatter else 0) for at in range(2)]
        for player in trainers + servers:
            tensors = player.end()["tensors"]
            if scatter:  # anywhere, in another order, with room between them
                end = 4 * MIB
                for tensor in tensors[::2] + tensors[1::2]:
                    end -= -(-tensor["rows"] * tensor["cols"] * 2 // 8) * 8 + 8
                    tensor["offset"] = end
            player.do("declare", tensors)
        return job, trainers, servers

    def begin(self, job, trainers, servers):
        self.give(trainers, canonical(0), as_megatron)
        if servers[0].do("memory")["is_mapped"]:
            self.give(servers, canonical(0), self.FORM)
        for player in trainers + servers:
            player.begin("seal")
        for player in trainers + servers:
            player.end()
        job.serves()

    def update(self, trainers, servers, version):
        self.assertEqual(hand_over(trainers, servers, version - 1), [version] * 4)

    def held_by_ranks(self, job):
        """And by their engines."""
        return [usage_of(pid) for rank in job.status()["ranks"] for pid in (rank["pid"], rank["engine_pid"])]

    def grown(self, before, now):
        most_kb = {"anonymous_kb": 1023, "pss_kb": 1023}
        return [(what, old[what], new[what]) for old, new in zip(before, now) for what in new
                if new[what] - old[what] > most_kb.get(what, 0)]


class TwoOfEach(Pairs):
    def test_twenty_updates(self):
        job, trainers, servers = self.attach()
        self.begin(job, trainers, servers)
        self.assertFalse(servers[0].do("memory")["is_mapped"])
        places = [player.do("memory")["address"] for player in trainers + servers]
        for version in range(1, 21):
            model = canonical(version)
            for rank, player in enumerate(trainers):
                path = self.store(as_megatron(model, rank, 2))
                player.do("step_from", path)
                player.do("fill_tag", "optimizer", version)
            sums = [player.do("sum_of", "optimizer") for player in trainers]
            self.update(trainers, servers, version)
            self.assertFalse(any(player.do("memory")["is_mapped"] for player in trainers))
            self.check(servers, model)
            if version % 2:
                take_back(trainers, servers, "take_back_weights")
                self.check_trainers(trainers, version)
                self.assertFalse(any(player.do("memory", "optimizer")["is_mapped"] for player in trainers))
            take_back(trainers, servers)
            self.assertEqual([player.do("sum_of", "optimizer") for player in trainers], sums)
            if version == 8:
                before = self.held_by_ranks(job)
        self.assertEqual([player.do("memory")["address"] for player in trainers + servers], places)
        # A client that has asked for the status may still be there for a moment.
        wait_until(lambda: not self.grown(before, self.held_by_ranks(job)), 10, "nothing has grown")
        status = job.status_at_rest()
        self.assertEqual((status["committed_version"], status["memory"]["leaked_bytes"]), (20, 0))
        self.assertEqual({rank["steps"] for rank in status["ranks"] if rank["role"] == "trainer"}, {20})

    def test_a_trainer_that_wants_all_waits_for_one_that_wants_its_weights(self):
        job, trainers, servers = self.attach()
        self.begin(job, trainers, servers)
        sums = [player.do("sum_of", "optimizer") for player in trainers]
        self.update(trainers, servers, 1)
        for player in servers:
            player.begin("release")
        trainers[0].begin("take_back_weights")
        trainers[1].begin("take_back")
        trainers[0].end()
        self.assertFalse(trainers[1].answers_within(0.5))
        trainers[0].do("take_back")
        for player in trainers[1:] + servers:
            player.end()
        self.assertEqual([player.do("sum_of", "optimizer") for player in trainers], sums)
        self.update(trainers, servers, 2)

    def test_tensors_lie_anywhere(self):
        job, trainers, servers = self.attach(scatter=True)
        self.begin(job, trainers, servers)
        for version in (1, 2):
            model = canonical(100 + version)
            for rank, player in enumerate(trainers):
                player.do("step_from", self.store(as_megatron(model, rank, 2)))
            self.update(trainers, servers, version)
            self.check(servers, model)
            take_back(trainers, servers)

    def test_admission_names_what_is_permuted(self):
        job, trainers, servers = self.attach()
        self.give(trainers, canonical(0), as_megatron)
        self.give(servers, canonical(0), as_vllm)
        wrong = as_vllm(canonical(0), 1, 2)["model.layers.3.mlp.gate_up_proj.weight"]
        servers[1].do("write", "model.layers.3.mlp.gate_up_proj.weight",
                      np.concatenate([wrong[96:], wrong[:96]]).tolist())
        for player in trainers + servers:
            player.begin("seal")
        for player in trainers + servers:
            text = self.fails(MISMATCH, player.end)
            self.assertIn("model.layers.3.mlp.", text)
            self.assertIn("--admission off", text)
        self.assertEqual(job.process.wait(30), MISMATCH)

    def test_no_inference_rank_goes_on_before_all_can(self):
        job, trainers, servers = self.attach(admission="off")
        self.begin(job, trainers, servers)
        servers[1].do("delay", "after_resume kv_cache", 0.5)
        servers[1].do("fail", ["after_resume kv_cache"])
        for player in servers + trainers:
            player.begin("hand_over" if player in trainers else "ready")
        for player in servers + trainers:
            self.assertIn("after_resume", self.fails(FAILED, player.end))
        servers[1].do("fail", [])
        self.update(trainers, servers, 1)
        self.check(servers, canonical(0))

    def test_trainers_that_have_come_unequally_far(self):
        job, trainers, servers = self.attach(admission="off")
        self.begin(job, trainers, servers)
        trainers[1].do("step_from", self.store({}))
        for player in servers + trainers:
            player.begin("hand_over" if player in trainers else "ready")
        for player in trainers:
            text = self.fails(FAILED, player.end)
            self.assertRegex(text, r"rank 0 .*has taken 0, rank 1 .*has taken 1")
        for player in servers:
            self.fails(FAILED, player.end)
        back = job.client("resume")  # they may train on
        self.assertEqual(back.returncode, OK, back.stderr)
        trainers[0].do("step_from", self.store({}))
        self.update(trainers, servers, 1)
        self.check(servers, canonical(0))

    def test_trainers_lost_at_different_moments_return_together(self):
        job, trainers, servers = self.attach(admission="off")
        self.begin(job, trainers, servers)
        for rank, player in enumerate(trainers):
            player.do("step_from", self.store(as_megatron(canonical(1), rank, 2)))
            player.do("keep", "one")
        self.update(trainers, servers, 1)
        take_back(trainers, servers)
        trainers[0].do("step_from", self.store(as_megatron(canonical(2), 0, 2)))
        trainers[0].do("keep", "two")
        trainers[1].do("half_step", 2)
        for player in trainers:
            player.kill()
        again = [self.player(job, "trainer", at) for at in range(2)]
        for player in again:
            place = player.end()
            self.assertEqual((place["reattached"], place["version"], place["kept"]), (1, 1, "one"))
            player.do("declare")
            player.do("seal")
        self.check_trainers(again, 1)
        for rank, player in enumerate(again):
            player.do("step_from", self.store(as_megatron(canonical(3), rank, 2)))
        self.update(again, servers, 2)
        self.check(servers, canonical(3))

    def test_one_trainers_memory_that_has_not_come_back(self):
        for call in ("take_back", "take_back_weights"):
            with self.subTest(call=call):
                self.comes_back_to_one_alone(call)

    def comes_back_to_one_alone(self, call):
        fault = os.path.join(self.scratch, call)
        job, trainers, servers = self.attach(admission="off", fault=fault)
        self.begin(job, trainers, servers)
        self.update(trainers, servers, 1)
        with open(fault, "w", encoding="utf-8") as file:
            file.write("1 1 late resume trainer weights 1.0\n")
        for player in servers:
            player.begin("release")
        for player in trainers:
            player.begin(call)
        for player in trainers + servers:
            self.assertIn("a fault on purpose", self.fails(FAILED, player.end))
        self.assertEqual([player.do("memory")["is_mapped"] for player in trainers], [1, 0])
        for player in servers:
            player.begin("release")
        trainers[0].do(call)  # at once
        trainers[1].do(call, 10.0)  # while the other trainer is busy
        for player in servers:
            player.end()
        self.check_trainers(trainers, 0)
        take_back(trainers, servers)
        for rank, player in enumerate(trainers):
            player.do("step_from", self.store(as_megatron(canonical(2), rank, 2)))
        self.update(trainers, servers, 2)
        self.check(servers, canonical(2))
        job.end()

    def test_trainers_whose_hand_over_has_failed_return_to_one_step(self):
        """One of them has given a part of its optimizer state for it, the other nothing."""
        fault = os.path.join(self.scratch, "fault")
        job, trainers, servers = self.attach("--gpu-memory", "184MiB", admission="off", fault=fault,
                                             optimizer=(LARGE, MIB))
        self.begin(job, trainers, servers)
        for version in (1, 2):
            for rank, player in enumerate(trainers):
                player.do("step_from", self.store(as_megatron(canonical(version), rank, 2)))
                player.do("keep", f"step {version}")
            if version == 1:
                self.update(trainers, servers, 1)
                take_back(trainers, servers)
        with open(fault, "w", encoding="utf-8") as file:
            file.write("1 2 late transfer inference weights 0\n")
        for player in servers + trainers:
            player.begin("hand_over" if player in trainers else "ready")
        for player in servers + trainers:
            self.assertIn("a fault on purpose", self.fails(FAILED, player.end))
        for player in servers:
            player.begin("ready")
        for player in trainers:
            player.begin("take_back")
        for player in trainers:
            player.end()
            player.do("half_step", 3)
        for player in trainers:
            player.kill()
        again = [self.player(job, "trainer", at, optimizer=size) for at, size in enumerate((LARGE, MIB))]
        for player in again:
            self.assertEqual(player.end()["kept"], "step 2")
            player.do("declare")
            player.do("seal")
        self.check_trainers(again, 2)


class Quantised(Pairs):
    """The same to a vLLM whose projections are in fp8; their scales are the job's to find."""

    INFERENCE, FORM = "vllm:tp=2,deep_gemm=off,dtype=fp8,block=32", staticmethod(as_fp8_vllm)

    def test_updates(self):
        job, trainers, servers = self.attach()
        self.begin(job, trainers, servers)
        for version, call in enumerate(("take_back", "take_back_weights", "take_back"), 1):
            model = canonical(version)
            for rank, player in enumerate(trainers):
                player.do("step_from", self.store(as_megatron(model, rank, 2)))
            self.update(trainers, servers, version)
            self.check(servers, model)
            take_back(trainers, servers, call)
            self.check_trainers(trainers, version)
            take_back(trainers, servers)
        self.assertEqual(job.status_at_rest()["memory"]["leaked_bytes"], 0)


class OneOfEach(Attached):
    def test_callbacks_consent_and_calls_again(self):
        job, trainer, inference = self.pair()
        self.assertEqual(self.hand_over(trainer, inference, 0), 1)
        self.holds(inference, 1)
        self.assertEqual(inference.do("heard"), [["after_resume", "weights", 0], ["weights_changed", "weights", 1],
                                                 ["after_resume", "kv_cache", 1]])
        self.assertEqual(trainer.do("heard")[-2:], [["before_release", "optimizer", 0],
                                                    ["before_release", "weights", 0]])
        inference.begin("ready")  # again: the version is there, and nothing moves
        self.assertEqual(trainer.do("hand_over"), 1)
        inference.end()
        wait_until(lambda: len(re.findall("update: version 1 ", text_of(job.log))) == 2, 10, "the log tells of both")
        self.assertEqual(inference.do("heard"), [])
        self.take_back(trainer, inference)
        trainer.do("take_back")  # it has it
        trainer.do("step", 2)
        inference.begin("wait", 1)
        self.assertEqual(trainer.do("hand_over"), 2)
        self.assertEqual(inference.end(), 2)
        self.holds(inference, 2)
        status = job.status_at_rest()
        states = {rank["role"]: (rank["engine"], rank["engine_pid"]) for rank in status["ranks"]}
        self.assertEqual(states, {"trainer": ("a trainer", trainer.process.pid),
                                  "inference": ("a inference", inference.process.pid)})
        self.assertIn("busy", job.client("status").stdout)
        self.assertEqual(job.client("stop").returncode, 0)
        self.assertIn("lost", self.fails(LOST, trainer.do, "take_back"))
        self.fails(LOST, inference.do, "wait", 2)
        self.holds(inference, 2)  # what is mapped stays

    def test_status_names_whom_a_job_waits_for_that_starts(self):
        job = self.job(2, "--admission", "off")

        def awaits(*expected):
            def found():
                status = job.client("status", "--json", "-")
                waits = json.loads(status.stdout)["waits"] if status.returncode == OK else []
                self.assertEqual([wait["role"] for wait in waits], [["trainer", "inference"][w["rank"]] for w in waits])
                return [(wait["rank"], wait["awaits"]) for wait in waits]
            wait_until(lambda: found() == list(expected), 30, f"{expected} is told")

        awaits((0, "an engine to attach"), (1, "an engine to attach"))
        trainer = self.player(job, "trainer")
        awaits((1, "an engine to attach"))
        inference = self.player(job, "inference")
        trainer.end(), inference.end()
        to_declare = [f"{player.name} (pid {player.process.pid}) to declare its tensors" for player in (trainer, inference)]
        awaits(*enumerate(to_declare))
        trainer.do("declare", None, [])
        trainer.do("step", 1)
        trainer.begin("seal")
        awaits((1, to_declare[1]))
        inference.do("declare")
        inference.do("seal")
        trainer.end()
        job.serves()
        self.assertEqual(job.status()["waits"], [])

    def test_a_shell_drives(self):
        job, trainer, inference = self.pair()
        trainer.begin("ready")
        inference.begin("ready")
        update = job.client("update", "--json", "-")
        self.assertEqual(update.returncode, OK, update.stderr)
        report = json.loads(update.stdout)
        self.assertEqual((report["committed_version"], report["admission"]), (1, "off"))
        self.assertEqual([phase["phase"] for phase in report["versions"][0]["phases"]][0], "ready")
        trainer.end()
        inference.end()
        self.holds(inference, 1)

    def test_failed_callbacks_fail_the_command(self):
        _, trainer, inference = self.pair()
        for what in ("after_resume weights", "after_resume kv_cache"):
            inference.do("fail", [what])
            inference.begin("ready")
            text = self.fails(FAILED, trainer.do, "hand_over")
            self.assertIn(what.split()[0], text)
            self.assertIn("callback", self.fails(FAILED, inference.end))
            inference.do("fail", [])
        # However far the trainer's memory had come.
        self.hand_over(trainer, inference, 0)
        self.holds(inference, 1)

    def test_a_failed_callback_that_makes_room_fails_the_command(self):
        _, trainer, inference = self.pair(*BARELY, trainer={"optimizer": LARGE})
        trainer.do("fail", ["before_release optimizer"])
        inference.begin("ready")
        self.assertIn("before_release", self.fails(FAILED, trainer.do, "hand_over"))
        self.assertIn("callback", self.fails(FAILED, inference.end))
        trainer.do("fail", [])
        self.hand_over(trainer, inference, 0)
        self.holds(inference, 1)

    def test_inference_generates_while_the_trainers_memory_leaves(self):
        """Where the GPU has room for all, none of it has to go before."""
        _, trainer, inference = self.pair()
        trainer.do("delay", "before_release optimizer", 1.0)
        start = time.monotonic()
        trainer.begin("hand_over")
        self.assertEqual(inference.do("wait", 0), 1)
        self.assertLess(time.monotonic() - start, 0.9)
        self.holds(inference, 1)
        self.assertEqual(trainer.end(), 1)
        self.assertGreater(time.monotonic() - start, 1.0)

    def test_inference_generates_once_it_has_room(self):
        """Of three chunks of optimizer state one goes before, as often as it is asked for."""
        job, trainer, inference = self.pair(*BARELY, trainer={"optimizer": LARGE})
        for version in (1, 2):
            trainer.begin("ready")
            inference.begin("ready")
            told = job.client("update", "--json", "-")
            self.assertEqual(told.returncode, OK, told.stderr)
            trainer.end()
            inference.end()
            self.holds(inference, version)
            phases = json.loads(told.stdout)["versions"][-1]["phases"]
            names = [" ".join(filter(None, (one["phase"], one["tag"]))) for one in phases]
            offloads = [at for at, name in enumerate(names) if name == "offload optimizer"]
            self.assertEqual([round(phases[at]["bytes"] / LARGE, 1) for at in offloads], [0.3, 0.7])
            commit = names.index("commit weights")
            self.assertTrue(offloads[0] < commit < offloads[1], names)
            self.assertLess(commit, names.index("serve"))
            self.take_back(trainer, inference)
            self.trainer_holds(trainer, version)
            trainer.do("step", version + 1)

    def test_a_trainer_takes_its_weights_back_alone(self):
        for options in ((), BARELY):
            with self.subTest(options=options):
                self.takes_weights_back(options)

    def takes_weights_back(self, options):
        job, trainer, inference = self.pair(*options, trainer={"optimizer": LARGE})
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference, "take_back_weights")
        self.trainer_holds(trainer, 1)
        self.assertEqual([(rank["role"], memory["tag"]) for rank in job.status_at_rest()["ranks"] for memory in rank["tags"]
                          if memory["device_bytes"]], [("trainer", "weights")])
        self.assertIn("awex_take_back", self.fails(WRONG, trainer.do, "step", 2))
        trainer.do("take_back_weights", 0)  # at once
        trainer.do("take_back")
        self.assertEqual(trainer.do("sum_of", "optimizer"), state)
        trainer.do("step", 2)
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 1)
        self.holds(inference, 2)
        # Whoever does not need it leaves it where it is.
        self.take_back(trainer, inference, "take_back_weights")
        self.assertEqual(self.hand_over(trainer, inference, 2), 3)
        self.holds(inference, 2)
        self.take_back(trainer, inference)
        self.trainer_holds(trainer, 2)
        self.assertEqual(trainer.do("sum_of", "optimizer"), state)
        job.end()

    def test_a_version_serves_whatever_becomes_of_the_trainers_memory(self):
        for what in ("before_release optimizer", "before_release weights"):
            with self.subTest(what=what):
                self.serves_although_it_fails(what)

    def serves_although_it_fails(self, what):
        job, trainer, inference = self.pair()
        trainer.do("delay", what, 0.5)
        trainer.do("fail", [what])
        trainer.begin("hand_over")
        self.assertEqual(inference.do("wait", 0), 1)
        self.holds(inference, 1)
        self.assertIn("before_release", self.fails(FAILED, trainer.end))
        self.assertEqual(inference.do("wait", 0), 1)  # at once
        trainer.do("fail", [])
        inference.begin("ready")
        self.assertEqual(trainer.do("hand_over"), 1)
        inference.end()
        self.holds(inference, 1)
        self.take_back(trainer, inference)
        trainer.do("step", 2)
        self.hand_over(trainer, inference, 1)
        self.holds(inference, 2)
        job.end()

    def test_a_hand_over_that_failed_behind_its_commit_goes_on(self):
        """There is no room for the part of the optimizer state that has left: it goes on leaving."""
        job, trainer, inference = self.pair(*BARELY, trainer={"optimizer": LARGE})
        state = trainer.do("sum_of", "optimizer")
        inference.do("fail", ["after_resume kv_cache"])
        inference.begin("ready")
        self.assertIn("after_resume", self.fails(FAILED, trainer.do, "hand_over"))
        self.fails(FAILED, inference.end)
        self.assertEqual(job.status_at_rest()["committed_version"], 1)
        self.assertFalse(trainer.do("memory", "optimizer")["is_mapped"])
        inference.do("fail", [])
        self.assertEqual(self.hand_over(trainer, inference, 0), 1)
        self.holds(inference, 1)
        self.take_back(trainer, inference)
        self.trainer_holds(trainer, 1)
        self.assertEqual(trainer.do("sum_of", "optimizer"), state)

    def test_a_hand_over_makes_room_after_whatever_a_shell_did(self):
        job, trainer, inference = self.pair(*BARELY, trainer={"optimizer": LARGE})
        for command in (("offload", "--tag", "weights"), ("resume", "--role", "inference")):
            for player in (trainer, inference):
                player.begin("ready")
            done = job.client(*command)
            self.assertEqual(done.returncode, OK, done.stderr)
            trainer.end()
            inference.end()
        self.hand_over(trainer, inference, 0)
        self.holds(inference, 1)
        self.take_back(trainer, inference)
        self.trainer_holds(trainer, 1)

    def test_a_busy_engine_is_named(self):
        job, trainer, inference = self.pair(timeout="2s")
        text = self.fails(DEADLINE, trainer.do, "hand_over")
        self.assertIn("a inference", text)
        self.assertIn("busy", text)
        trainer.begin("ready")
        update = job.client("update")
        self.assertEqual(update.returncode, DEADLINE, update.stderr)
        self.assertIn("a inference", update.stderr)
        self.fails(DEADLINE, trainer.end)
        self.hand_over(trainer, inference, 0)
        self.holds(inference, 1)

    def test_wrong_declarations_are_listed(self):
        job = self.job(2, "--admission", "off")
        trainer, inference = self.player(job, "trainer"), self.player(job, "inference")
        layout = trainer.end()["tensors"]
        inference.end()
        wrong = [dict(one) for one in layout]
        for tensor in wrong:
            if tensor["name"].endswith("gate_proj.weight"):
                tensor["rows"] //= 2
        trainer.do("declare", wrong)
        text = self.fails(WRONG, trainer.do, "seal")
        self.assertIn("layers.0.mlp.gate_proj.weight is BF16 96 x 96", text)
        self.assertIn("the likely cause: tp", text)
        missing = [one for one in layout if "layers.11.self_attn.q_proj" not in one["name"]]
        trainer.do("declare", missing + [dict(layout[0], name="strange", offset=0)])
        text = self.fails(WRONG, trainer.do, "seal")
        for part_of in ("model.layers.11.self_attn.q_proj.weight", "is missing", "strange", "is unknown", "overlaps"):
            self.assertIn(part_of, text)
        dtyped = [dict(one, dtype="f16") for one in layout]
        trainer.do("declare", dtyped)
        text = self.fails(WRONG, trainer.do, "seal")
        self.assertIn("dtype", text)
        self.assertIn("and 123 more", text)
        self.layout = layout
        for player in (trainer, inference):
            player.do("declare")
        trainer.do("fill", 5)
        trainer.begin("seal")
        inference.do("seal")
        trainer.end()
        job.serves()
        self.hand_over(trainer, inference, 0)
        self.holds(inference, 5)

    def test_one_role_alone(self):
        for attach in ("trainer", "inference"):
            with self.subTest(attach=attach), tempfile.TemporaryDirectory() as scratch:
                self.scratch = scratch
                job = self.job(2, "--admission", "off", attach=attach)
                player = self.player(job, attach)
                self.layout = player.end()["tensors"]
                player.do("declare")
                if attach == "trainer":
                    player.do("step", 1)
                player.do("seal")
                job.serves()
                if attach == "trainer":
                    self.assertEqual(player.do("hand_over"), 1)
                    player.do("take_back")
                else:
                    player.begin("wait", 0)
                    self.assertEqual(job.client("update", "--verify", "full").returncode, OK)
                    self.assertEqual(player.end(), 1)
                    player.begin("release")
                    self.assertEqual(job.client("resume").returncode, OK)
                    player.end()
                self.assertEqual(job.client("stop").returncode, OK)


    def test_inference_goes_on_while_the_trainers_weights_leave(self):
        _, trainer, inference = self.pair()
        trainer.do("delay", "before_release weights", 2.0)
        for version in (1, 2):
            trainer.begin("hand_over")
            start = time.monotonic()
            self.assertEqual(inference.do("wait", version - 1), version)
            self.assertLess(time.monotonic() - start, 1.5)
            self.holds(inference, version)
            inference.begin("release")  # which the end of that update does not answer
            self.assertEqual(trainer.end(), version)
            self.assertGreater(time.monotonic() - start, 1.9)
            trainer.do("take_back")
            inference.end()
            self.assertFalse(inference.do("memory")["is_mapped"])
            trainer.do("step", version + 1)

    def test_the_trainer_goes_on_while_inferences_memory_goes(self):
        _, trainer, inference = self.pair()
        inference.do("delay", "before_release weights", 2.0)
        self.hand_over(trainer, inference, 0)
        start = time.monotonic()
        inference.begin("release")
        trainer.do("take_back")
        self.assertLess(time.monotonic() - start, 1.5)
        self.trainer_holds(trainer, 1)
        trainer.do("step", 2)
        trainer.begin("hand_over")  # which the end of that take-back does not answer
        inference.end()
        self.assertGreater(time.monotonic() - start, 1.9)
        self.assertEqual(inference.do("wait", 1), 2)
        self.assertEqual(trainer.end(), 2)
        self.holds(inference, 2)

    def test_inference_gives_first_where_there_is_no_room(self):
        _, trainer, inference = self.pair("--gpu-memory", "16MiB")
        inference.do("delay", "before_release weights", 1.0)
        self.hand_over(trainer, inference, 0)
        start = time.monotonic()
        inference.begin("release")
        trainer.do("take_back")
        self.assertGreater(time.monotonic() - start, 0.9)
        inference.end()
        self.trainer_holds(trainer, 1)

    def test_no_memory_is_taken(self):
        """Without offloading nothing is to be given up, nor taken back."""
        _, trainer, inference = self.pair("--no-offload")
        for version in (1, 2):
            self.hand_over(trainer, inference, version - 1)
            self.holds(inference, version)
            inference.do("release", 1.0)
            trainer.do("take_back", 1.0)
            self.assertTrue(inference.do("all_mapped") and trainer.do("all_mapped"))
            trainer.do("step", version + 1)

    def test_a_take_back_waits_for_those_alone_whose_memory_it_moves(self):
        job, trainer, inference = self.pair(timeout="5s")
        for player in (trainer, inference):
            player.begin("ready")
        self.assertEqual(job.client("offload").returncode, OK)
        for player in (trainer, inference):
            player.end()
        trainer.do("take_back")  # inference has nothing, and does something else
        for player in (trainer, inference):
            player.begin("ready")
        self.assertEqual(job.client("resume", "--role", "inference", "--tag", "weights,kv_cache").returncode, OK)
        trainer.end()
        inference.end()
        inference.begin("release")
        back = job.client("resume")  # the trainer has all, and does something else
        self.assertEqual(back.returncode, OK, back.stderr)
        inference.end()


class TwoJobs(Attached):
    """Of one user on one machine. What others of this machine do is elsewhere, as their sockets are."""

    def test_they_do_not_meet(self):
        runtime = os.path.join(self.scratch, "runtime")
        os.mkdir(runtime, 0o700)
        here = {"XDG_RUNTIME_DIR": runtime, "AWEX_COLOCATE_JOB": ""}
        errors = os.path.join(self.scratch, "errors")
        with open(errors, "wb") as file:
            early = self.player(os.path.join(self.scratch, "none"), "trainer", environment=here, errors=file, timeout=4.0)
        nobody = self.player(None, "trainer", environment=here)
        self.assertIn("none of this user waits for engines", self.fails(WRONG, nobody.end))
        jobs = [self.job(2, "--admission", "off", name=name, environment=here) for name in ("first", "second")]
        for job in jobs:
            wait_until(lambda job=job: len(glob.glob(job.directory + "/engines/*.json")) == 2, 30, "its doors are open")
        told_none = self.player(None, "trainer", environment=here)
        text = self.fails(WRONG, told_none.end)
        for job in jobs:
            self.assertIn(job.directory, text)
        pairs = []
        for number, job in enumerate(jobs):
            by_variable = dict(here, AWEX_COLOCATE_JOB=job.directory)
            pairs.append((self.player(job, "trainer"), self.player(None, "inference", environment=by_variable)))
        for number, pair in enumerate(pairs):
            self.layout = pair[0].end()["tensors"]
            pair[1].end()
            for player in pair:
                player.do("declare")
            pair[0].do("step", 10 + number)
            pair[0].begin("seal")
            pair[1].do("seal")
            pair[0].end()
            jobs[number].serves()
        for number, pair in enumerate(pairs):
            pair[1].begin("wait", 0)
            pair[0].begin("hand_over")
        for number, pair in enumerate(pairs):
            self.assertEqual((pair[0].end(), pair[1].end()), (1, 1))
            self.holds(pair[1], 10 + number)
        pairs[0][0].kill()
        self.take_back(*pairs[1])
        jobs[0].end()
        pairs[1][0].do("step", 12)
        self.hand_over(*pairs[1], 1)
        self.holds(pairs[1][1], 12)
        more = self.player(None, "trainer", environment=here)  # the only job that is left has one
        self.assertIn("is attached to rank 0", self.fails(WRONG, more.end))
        self.assertIn("there is no such directory", self.fails(DEADLINE, early.end))
        self.assertRegex(text_of(errors), "waits for its rank at .*/none.*: there is no such directory")


class LostJob(Attached):
    """A rank, or mpirun, is lost: engines are told, keep what they have, and nothing is left."""

    def loses(self, pid, number, code, words, **named):
        job, trainer, inference = self.pair(**named)
        self.hand_over(trainer, inference, 0)
        left = job.private_directories()
        pids = job.rank_pids()
        self.assertEqual(len([path for path in left if os.path.exists(path)]), 3)
        trainer.begin("take_back")
        os.kill(pid(job, pids), number)
        self.assertRegex(self.fails(LOST, trainer.end), words)
        self.assertRegex(self.fails(LOST, inference.do, "ready"), words + "|the other end has gone")
        self.holds(inference, 1)
        wait_until(lambda: not any(map(os.path.exists, left)), 10, "its sockets are gone")
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10, "its ranks are gone")
        record = json.loads(text_of(job.directory + "/job.json"))
        self.assertEqual(record["exit_code"], code, record)
        self.assertRegex(record["end"], words)
        self.assertEqual(os.listdir(job.directory + "/engines"), [])

    def test_a_rank_is_killed(self):
        self.loses(lambda _, pids: pids[1], signal.SIGKILL, LOST, r"rank 1 .* is gone")

    def test_mpirun_is_killed(self):
        self.loses(lambda job, _: job.process.pid, signal.SIGKILL, LOST, r"mpirun \(pid \d+\), .* is gone")

    def test_rank_0_is_stopped_at_rest(self):
        job, trainer, inference = self.pair(timeout="2s")
        pids = job.rank_pids()
        os.kill(pids[0], signal.SIGSTOP)
        trainer.begin("take_back")  # at once: it has all
        trainer.end()
        self.fails(LOST, trainer.do, "ready")
        self.assertIn("rank 0", self.fails(LOST, inference.do, "ready"))
        self.assertEqual(job.process.wait(20), DEADLINE)
        self.assertRegex(json.loads(text_of(job.directory + "/job.json"))["end"], "rank 0 .*is stopped")


class Restored(Attached):
    """A trainer whose job is lost while its memory is away brings it back from what the rank has shared."""

    def lose(self, job, pids=None):
        pids = pids or job.rank_pids()
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10, "its ranks are gone")

    #: All of the optimizer's memory, so that it is proven.
    STATE = dict(name="state", dtype="f32", rows=1, cols=MIB // 4, offset=0)

    def handed_over(self):
        job, trainer, inference = self.pair(optimizer=[self.STATE])
        trainer.do("step", 1)
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        return job, trainer, inference, state

    def restores(self, trainer, seed, state, proven=1):
        places = trainer.do("memory")["address"]
        self.assertEqual(trainer.do("restore"), proven)
        self.trainer_holds(trainer, seed)
        self.assertEqual(trainer.do("sum_of", "optimizer"), state)
        self.assertEqual(trainer.do("memory"), {**trainer.do("memory"), "address": places, "is_mapped": 1})

    def test_what_was_handed_over(self):
        job, trainer, inference, state = self.handed_over()
        self.assertIn("awex_take_back", self.fails(WRONG, trainer.do, "restore"))
        self.assertIn("trainer", self.fails(WRONG, inference.do, "restore"))
        self.lose(job)
        self.assertFalse(trainer.do("memory")["is_mapped"])
        trainer.do("heard")
        self.restores(trainer, 1, state)
        self.assertEqual({(event[0], event[1]) for event in trainer.do("heard")},
                         {("after_resume", "weights"), ("after_resume", "optimizer")})
        self.assertEqual(trainer.do("restore"), 1)  # nothing is left to do
        self.fails(LOST, trainer.do, "hand_over")
        # It goes on in another job.
        saved = os.path.join(self.scratch, "saved.npz")
        trainer.do("save", saved)
        trainer.do("detach")
        self.assertEqual(trainer.do("truly_mapped"), [])
        job = self.job(2, "--admission", "off", attach="trainer", name="next")
        trainer.do("attach", job.directory, "trainer", 0, bytes=(0, MIB, 0))
        trainer.do("declare")
        trainer.do("load", saved)
        trainer.do("seal")
        self.trainer_holds(trainer, 1)
        self.assertEqual(trainer.do("hand_over"), 1)

    def test_later_versions_and_engines(self):
        """Descriptors come once, digests each time; the engine that comes in place of a lost one gets both."""
        job, trainer, inference, _ = self.handed_over()
        for version in (2, 3):
            self.take_back(trainer, inference)
            trainer.do("step", version)
            state = trainer.do("sum_of", "optimizer")
            self.hand_over(trainer, inference, version - 1)
        trainer.kill()
        other = self.player(job, "trainer")
        other.end()
        other.do("declare", None, [self.STATE])
        other.do("seal")
        self.lose(job)
        self.restores(other, 3, state)

    def test_one_that_comes_while_all_is_away_may_take_its_time(self):
        job, trainer, inference = self.pair(timeout="2s", optimizer=[self.STATE])
        trainer.do("step", 1)
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        trainer.kill()
        other = self.player(job, "trainer")
        other.end()
        time.sleep(3)  # as it builds its model
        other.do("declare", None, [self.STATE])
        other.do("seal")
        self.lose(job)
        self.restores(other, 1, state)

    def test_a_part_that_is_away(self):
        """The weights are still there when the rank dies, the optimizer's state has left."""
        job, trainer, inference = self.pair(optimizer=[self.STATE])
        trainer.do("step", 1)
        state = trainer.do("sum_of", "optimizer")
        trainer.do("delay", "before_release weights", 5)
        inference.begin("wait", 0)
        trainer.begin("hand_over")
        maps = f"/proc/{trainer.process.pid}/maps"
        wait_until(lambda: "trainer optimizer" not in text_of(maps), 10, "the optimizer's state has left")
        self.assertIn("trainer weights", text_of(maps))
        time.sleep(0.5)  # its copy is told of
        self.lose(job)
        self.fails(LOST, trainer.end)
        self.restores(trainer, 1, state)
        events = [tuple(event[:2]) for event in trainer.do("heard")]
        for tag in ("weights", "optimizer"):
            self.assertEqual([what for what, of in events if of == tag][-2:], ["before_release", "after_resume"], events)

    #: The same, in several chunks, and a job that has no room for inference's weights before some have left.
    LARGE_STATE = dict(name="large state", dtype="f32", rows=1, cols=LARGE // 4, offset=0)

    def large_pair(self, **named):
        job, trainer, inference = self.pair(*BARELY, trainer={"optimizer": LARGE}, optimizer=[self.LARGE_STATE], **named)
        trainer.do("step", 1)
        return job, trainer, inference, trainer.do("sum_of", "optimizer")

    @staticmethod
    def chunks_of(trainer):
        """How many of its optimizer state it has mapped."""
        return text_of(f"/proc/{trainer.process.pid}/maps").count("awex-trainer optimizer")

    def test_some_chunks_that_are_away(self):
        """The rank ends while it copies, or waits for the trainer to let go what it has copied."""
        for waits in (False, True):
            with self.subTest(waits=waits):
                job, trainer, inference, state = self.large_pair(name=f"waits-{waits}")
                pids, chunks = job.rank_pids(), self.chunks_of(trainer)
                self.assertGreater(chunks, 2)
                inference.begin("wait", 0)
                trainer.begin("hand_over")
                while self.chunks_of(trainer) == chunks:
                    self.assertIsNone(job.process.poll())
                if waits:
                    os.kill(trainer.process.pid, signal.SIGSTOP)
                    time.sleep(0.3)
                self.lose(job, pids)
                os.kill(trainer.process.pid, signal.SIGCONT)
                self.fails(LOST, trainer.end)
                self.assertFalse(trainer.do("memory", "optimizer")["is_mapped"])
                self.restores(trainer, 1, state)

    def test_a_rank_that_is_stopped_while_it_is_given_the_optimizers_state(self):
        job, trainer, inference, state = self.large_pair(timeout="2s")
        pids = job.rank_pids()
        trainer.do("delay", "before_release optimizer", 1)
        inference.begin("wait", 0)
        trainer.begin("hand_over")
        wait_until(lambda: job.status()["phase"] == "offload", 10, "the trainer is asked for its memory")
        os.kill(pids[0], signal.SIGSTOP)
        self.fails(LOST, trainer.end)
        self.assertEqual(job.process.wait(20), DEADLINE)
        self.restores(trainer, 1, state)

    def test_what_a_hand_over_that_failed_has_left_on_both_sides(self):
        """A job is lost with a part of the optimizer's state in host memory: of the trainer that has handed over, and of
        one that has come in its place."""
        for comes in (False, True):
            with self.subTest(comes=comes):
                fault = os.path.join(self.scratch, f"fault-{comes}")
                job, trainer, inference, state = self.large_pair(name=f"comes-{comes}", fault=fault)
                with open(fault, "w", encoding="utf-8") as file:
                    file.write("1 1 late transfer inference weights 0\n")
                chunks = self.chunks_of(trainer)
                inference.begin("ready")
                self.assertIn("a fault on purpose", self.fails(FAILED, trainer.do, "hand_over"))
                self.fails(FAILED, inference.end)
                if comes:
                    trainer.kill()
                    trainer = self.player(job, "trainer", optimizer=LARGE)
                    trainer.end()
                    trainer.do("declare", None, [self.LARGE_STATE])
                    trainer.do("seal")
                self.assertIn(self.chunks_of(trainer), range(1, chunks))
                self.assertFalse(trainer.do("memory", "optimizer")["is_mapped"])
                self.lose(job)
                self.restores(trainer, 1, state)

    def test_what_is_spoilt_or_was_not_proven(self):
        job, trainer, _, _ = self.handed_over()
        self.assertTrue(trainer.do("spoil", 4096))
        self.lose(job)
        self.assertRegex(self.fails(MISMATCH, trainer.do, "restore"), "is not in host memory what it was")
        job, trainer, inference = self.pair(name="unproven")  # nothing of the optimizer's state is declared
        trainer.do("step", 1)
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        self.lose(job)
        self.restores(trainer, 1, state, proven=0)


class Lost(Attached):
    def again(self, job, role, **named):
        player = self.player(job, role, **named)
        place = player.end()
        player.do("declare")
        player.do("seal")
        return player, place

    def refuses(self, job, name):
        update = job.client("update")
        self.assertEqual(update.returncode, LOST, update.stderr)
        self.assertIn(name, update.stderr)
        self.assertIn(f"attaches to {job.directory}", update.stderr)
        return update.stderr

    def test_a_trainer_in_its_step(self):
        job, trainer, inference = self.pair()
        trainer.do("keep", "of step 1")
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference)
        state = trainer.do("sum_of", "optimizer")
        trainer.do("keep", "of step 2")
        trainer.do("half_step", 2)
        trainer.kill()
        self.assertIn("is lost since", self.refuses(job, "a trainer"))
        wait_until(lambda: "lost since" in job.client("status").stdout, 10, "status tells of it")
        other, place = self.again(job, "trainer")
        self.assertEqual((place["reattached"], place["version"], place["kept"]), (1, 1, "of step 1"))
        self.trainer_holds(other, 1)
        self.assertEqual(other.do("sum_of", "optimizer"), state)
        other.do("step", 3)
        self.hand_over(other, inference, 1)
        self.holds(inference, 3)

    def test_a_trainer_between_steps_and_while_it_is_offloaded(self):
        job, trainer, inference = self.pair()
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference)
        trainer.do("step", 2)
        state = trainer.do("sum_of", "optimizer")
        trainer.do("keep", "of step 2")
        trainer.kill()
        other, place = self.again(job, "trainer")
        self.assertEqual((place["reattached"], place["kept"]), (1, "of step 2"))
        self.trainer_holds(other, 2)
        self.hand_over(other, inference, 1)
        self.holds(inference, 2)
        other.kill()
        third, place = self.again(job, "trainer")
        self.assertEqual((place["reattached"], place["version"]), (1, 2))
        self.assertFalse(third.do("memory")["is_mapped"])
        self.take_back(third, inference)
        self.trainer_holds(third, 2)
        self.assertEqual(third.do("sum_of", "optimizer"), state)

    def test_a_trainer_that_has_its_weights_alone(self):
        job, trainer, inference = self.pair()
        state = trainer.do("sum_of", "optimizer")
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference, "take_back_weights")
        trainer.kill()
        other, place = self.again(job, "trainer")
        self.assertEqual((place["reattached"], place["version"]), (1, 1))
        self.assertFalse(other.do("memory", "optimizer")["is_mapped"])
        self.trainer_holds(other, 1)
        other.do("take_back")
        self.assertEqual(other.do("sum_of", "optimizer"), state)
        other.do("step", 2)
        self.hand_over(other, inference, 1)
        self.holds(inference, 2)

    def test_an_inference_engine_that_has_nothing_is_not_missed_by_a_take_back(self):
        for end in ("kill", "detach"):
            with self.subTest(end=end):
                job, trainer, inference = self.pair()
                state = trainer.do("sum_of", "optimizer")
                self.hand_over(trainer, inference, 0)
                self.take_back(trainer, inference, "take_back_weights")
                if end == "kill":
                    inference.kill()
                else:
                    inference.do("detach")
                wait_until(lambda: re.match("lost|detached", job.status()["ranks"][1]["engine_state"]), 10, "it is missed")
                trainer.do("take_back")
                self.assertEqual(trainer.do("sum_of", "optimizer"), state)
                trainer.do("step", 2)
                self.fails(LOST, trainer.do, "hand_over")
                other, _ = self.again(job, "inference")
                self.hand_over(trainer, other, 1)
                self.holds(other, 2)
                job.end()

    def test_a_trainer_in_its_first_step_begins_anew(self):
        job, trainer, inference = self.pair()
        trainer.do("half_step", 1)
        trainer.kill()
        other, place = self.again(job, "trainer")
        self.assertEqual((place["reattached"], place["kept"]), (0, ""))
        other.do("step", 7)
        self.hand_over(other, inference, 0)
        self.holds(inference, 7)

    def test_a_trainer_that_writes_before_it_seals(self):
        job = self.job(2, "--admission", "off", attach="trainer")
        first = self.player(job, "trainer")
        first.end()
        first.do("declare")
        first.do("half_step", 1)
        first.kill()
        wait_until(lambda: "waits for another" in text_of(job.errors), 10, "the rank waits for another")
        other = self.player(job, "trainer")
        other.end()
        other.do("declare")
        other.do("fill", 3)
        other.do("seal")
        job.serves()
        self.assertEqual(other.do("hand_over"), 1)  # it has begun no step

    def test_an_inference_engine(self):
        job, trainer, inference = self.pair()
        self.hand_over(trainer, inference, 0)
        inference.kill()
        self.refuses(job, "a inference")
        other, place = self.again(job, "inference")
        self.assertEqual((place["reattached"], place["version"]), (1, 1))
        self.holds(other, 1)  # without a transfer
        self.take_back(trainer, other)
        other.kill()
        third, place = self.again(job, "inference")
        self.assertEqual((place["reattached"], place["version"]), (0, 1))
        trainer.do("step", 2)
        self.hand_over(trainer, third, 1)
        self.holds(third, 2)

    def lose_in_hand_over(self, before, *options, cache_delay=0, optimizer=MIB):
        """A trainer, before it gives a tag's memory, while inference waits for its version."""
        job, trainer, inference = self.pair(*options, timeout="20s", trainer={"optimizer": optimizer})
        inference.do("delay", "after_resume kv_cache", cache_delay)
        inference.begin("wait", 0)
        trainer.do("delay", f"before_release {before}", 600)
        trainer.begin("hand_over")
        wait_until(lambda: job.status()["phase"] == "offload", 10, "the trainer hangs")
        time.sleep(0.3)
        trainer.kill()
        return job, inference

    def goes_on_behind_the_hand_over(self, job, inference, **named):
        """What inference serves is what the next trainer gets back."""
        self.holds(inference, 1)
        job.status_at_rest()
        other, place = self.again(job, "trainer", **named)
        self.assertEqual((place["reattached"], place["version"]), (1, 1))
        self.assertFalse(other.do("memory")["is_mapped"])
        self.take_back(other, inference)
        self.trainer_holds(other, 1)
        other.do("step", 2)
        self.hand_over(other, inference, 1)
        self.holds(inference, 2)

    def test_what_is_handed_over_is_served_whoever_dies(self):
        """The trainer dies before its optimizer state or its weights have left; the KV cache may be on its way."""
        for before, delay in (("optimizer", 0), ("weights", 0), ("optimizer", 2.0), ("weights", 2.0)):
            with self.subTest(before=before, delay=delay):
                job, inference = self.lose_in_hand_over(before, cache_delay=delay)
                self.assertEqual(inference.end(), 1)
                self.goes_on_behind_the_hand_over(job, inference)
                job.end()

    def test_what_is_handed_over_is_served_although_its_trainer_dies_before_the_commit(self):
        """Its optimizer state makes room for inference's weights: nothing is brought before some of it has left."""
        job, inference = self.lose_in_hand_over("optimizer", *BARELY, optimizer=LARGE)
        self.assertEqual(inference.end(), 1)
        self.goes_on_behind_the_hand_over(job, inference, optimizer=LARGE)

    def test_who_comes_while_the_hand_over_of_a_dead_trainer_goes_on(self):
        job, inference = self.lose_in_hand_over("optimizer", "--gpu-memory", "1GiB", cache_delay=3.0)
        other = self.player(job, "trainer")
        self.assertEqual(inference.end(), 1)
        place = other.end()
        self.assertEqual((place["reattached"], place["version"]), (1, 1))
        other.do("declare")
        other.do("seal")
        self.take_back(other, inference)
        self.trainer_holds(other, 1)

    def test_others_places_and_doors(self):
        job, trainer, inference = self.pair()
        second = self.player(job, "trainer", name="another")
        self.assertIn("a trainer", self.fails(WRONG, second.end))
        self.hand_over(trainer, inference, 0)
        self.take_back(trainer, inference)
        trainer.do("detach")
        wait_until(lambda: "detached 2" in job.client("status").stdout, 10, "status tells that it has left")
        more = self.player(job, "trainer", optimizer=64 * MIB)
        self.assertIn("asks for", self.fails(WRONG, more.end))
        odd = self.player(job, "trainer", asks=(0, 0, MIB))
        self.assertIn("kv_cache, which is none of a trainer engine's", self.fails(WRONG, odd.end))
        moved = self.player(job, "trainer")
        moved.end()
        layout = [dict(one) for one in self.layout]
        layout[-1]["offset"] += 8
        moved.do("declare", layout)
        self.fails(WRONG, moved.do, "seal")
        moved.do("declare")
        moved.do("seal")
        moved.do("step", 2)
        self.hand_over(moved, inference, 1)
        self.holds(inference, 2)

    def test_stopped_engine_and_signal(self):
        job, trainer, inference = self.pair(timeout="2s")
        inference.begin("wait", 0)
        time.sleep(0.2)
        os.kill(inference.process.pid, signal.SIGSTOP)
        text = self.fails(DEADLINE, trainer.do, "hand_over")
        self.assertIn("a inference", text)
        os.kill(inference.process.pid, signal.SIGCONT)
        self.assertGreaterEqual(trainer.do("hand_over"), 1)
        inference.end()
        self.holds(inference, 1)
        self.assertEqual(job.client("stop").returncode, OK)


if __name__ == "__main__":
    Programs.mpiexec, Programs.binary, Programs.library, Programs.faulty = sys.argv[1:5]
    unittest.main(argv=[sys.argv[0], *sys.argv[5:]], verbosity=2)
