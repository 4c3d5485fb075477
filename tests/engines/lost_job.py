"""A trainer whose job is lost while its memory is handed over brings it back, attaches to another job and trains on:

    lost_job.py PROGRAM [--device host|cuda:0] [--losses 3] [--large]

Jobs have a built-in inference engine. The same steps are taken once in one job and once in jobs of which each is
killed (SIGKILL, to its ranks) behind a hand-over; every loss must be the same, bit by bit. Prints how long it took to bring
the memory back, and to attach again with it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from killed_trainer import LARGE, Config, Job, Qwen3, load, save  # noqa: E402

import awex_colocate  # noqa: E402
import awex_colocate.torch as awex_torch  # noqa: E402

STEPS_A_JOB = 2


class Trainer:
    """AdamW on a fixed sequence of batches, attached to one job after the other."""

    def __init__(self, o: argparse.Namespace, initial: Path) -> None:
        torch.manual_seed(0)
        self.o, self.engine = o, None
        self.device = torch.device("cpu" if o.device == "host" else o.device)
        with self.device:
            self.model = Qwen3(Config.load(initial))
        load(self.model, initial)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def attach(self, job: Job) -> float:
        """Moves to a job, with what it has; the seconds that this took."""
        start = time.monotonic()
        memory = {"optimizer": awex_torch.optimizer_bytes(self.optimizer, self.model)}
        engine = awex_colocate.attach("trainer", str(job.work / "job"), device=self.o.device, memory=memory)
        engine.adopt(self.model)
        engine.adopt_optimizer(self.optimizer)
        engine.seal()
        if self.engine is not None:
            self.engine.close()
        self.engine = engine
        return time.monotonic() - start

    def step(self, number: int) -> float:
        tokens = torch.randint(0, 32, (8, 16), generator=torch.Generator().manual_seed(number)).to(self.device)
        logits = self.model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        with self.engine.writing():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def survive(self, job: Job) -> float:
        """The job's ranks are killed; the seconds in which its memory is back."""
        for pid in ranks_of(self.o.program, job):
            os.kill(pid, signal.SIGKILL)
        try:
            self.engine.take_back()
            sys.exit("a take-back of a killed job has returned")
        except awex_colocate.EngineLost as error:
            print(error.message, flush=True)
        start = time.monotonic()
        if not self.engine.restore():
            sys.exit("what came back was not proven")
        return time.monotonic() - start


def ranks_of(program: str, job: Job) -> list[int]:
    status = subprocess.run(
        [program, "status", "--job", str(job.work / "job"), "--json", "-"], check=True, stdout=subprocess.PIPE
    )  # fmt: skip
    return [rank["pid"] for rank in json.loads(status.stdout)["ranks"]]


def new_job(o: argparse.Namespace, work: Path, initial: Path, number: int) -> Job:
    folder = work / str(number)
    folder.mkdir(parents=True)
    os.symlink(initial, folder / "initial")
    return Job(o, folder)


def run(o: argparse.Namespace, work: Path, initial: Path, losses: int) -> tuple[list[float], list[float], list[float]]:
    """The steps' losses, and the seconds of restoring and of attaching again."""
    trainer, found, restored, attached = Trainer(o, initial), [], [], []
    job = new_job(o, work, initial, 0)
    try:
        trainer.attach(job)
        for number in range(1, o.steps + 1):
            found.append(trainer.step(number))
            trainer.engine.hand_over()
            if number % STEPS_A_JOB or len(restored) == losses:
                trainer.engine.take_back()
                continue
            restored.append(trainer.survive(job))
            job.end()
            job = new_job(o, work, initial, number)
            attached.append(trainer.attach(job))
        trainer.engine.close()
    finally:
        job.end()
    return found, restored, attached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--device", default="host")
    parser.add_argument("--losses", type=int, default=3, help="jobs that are killed")
    parser.add_argument("--large", action="store_true", help="4 billion parameters: 48 GB of state")
    o = parser.parse_args()
    o.steps = STEPS_A_JOB * (o.losses + 1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lost_job.") as folder:
        initial = Path(folder) / "initial"
        torch.manual_seed(0)
        save(Qwen3(LARGE if o.large else Config()), initial)
        whole, _, _ = run(o, Path(folder) / "whole", initial, 0)
        broken, restored, attached = run(o, Path(folder) / "broken", initial, o.losses)
    if whole != broken:
        sys.exit(f"losses differ: {json.dumps(whole)} {json.dumps(broken)}")
    print(f"{len(restored)} jobs killed: {len(whole)} losses equal those of one job, bit by bit")
    print("brought back in " + ", ".join(f"{seconds:.2f} s" for seconds in restored)
          + "; attached again in " + ", ".join(f"{seconds:.2f} s" for seconds in attached))  # fmt: skip


if __name__ == "__main__":
    main()
