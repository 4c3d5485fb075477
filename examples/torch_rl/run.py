#!/usr/bin/env python3
"""Reinforcement learning with real PyTorch on both sides, and a hand-over after every step.

    python examples/torch_rl/run.py                     # on a CPU, about 2 minutes
    python examples/torch_rl/run.py --device cuda:0     # on a GPU, a model of 0.4 billion parameters

Starts a job (mpirun … awex-colocate serve), a trainer and an inference process, and ends with what it has
checked: rewards have risen; logits and tokens of the inference process equal, bit by bit, those of a fresh model
that loads the checkpoint which the trainer saved of that version; with --compare, losses equal those of a job
that gives no memory back. Writes rewards.svg and phases.svg beside its logs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
try:
    import torch
except ImportError:
    print("this example needs PyTorch: pip install torch", file=sys.stderr)
    sys.exit(77)

sys.path.insert(0, str(HERE))
from model import Config, Qwen3, cache_shape, load, save  # noqa: E402
from plot import bars, line  # noqa: E402
from rollout import generate  # noqa: E402
from task import LENGTH, prompts  # noqa: E402

LARGE = Config(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8, head_dim=64,
    intermediate_size=4096,
)  # fmt: skip


def parse(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="host", help="host, or cuda:N")
    parser.add_argument("--steps", type=int, help="default: 60, on a GPU 100")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, help="default: 3e-3, on a GPU 1e-4")
    parser.add_argument("--check-every", type=int, default=20, help="versions whose logits are compared")
    parser.add_argument("--compare", type=int, default=0, metavar="STEPS", help="compare with --no-offload")
    parser.add_argument("--program", default=str(ROOT / "build" / "awex-colocate"))
    parser.add_argument("--work", type=Path, help="folder for logs and plots, kept (default: a temporary one)")
    chosen = parser.parse_args()
    on_gpu = chosen.device != "host"
    chosen.steps = chosen.steps or (100 if on_gpu else 60)
    chosen.learning_rate = chosen.learning_rate or (1e-4 if on_gpu else 3e-3)
    return chosen


class Run:
    """A job and its two engines. All are ended when it is left."""

    def __init__(self, o: argparse.Namespace, work: Path, steps: int, *serve_options: str) -> None:
        self.o, self.work, self.steps = o, work, steps
        self.job = work / "job"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        on_gpu = o.device != "host"
        joined = "," if ":" in o.layout else ":"
        environment = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        } if os.geteuid() == 0 else {}  # fmt: skip
        self.start(
            "serve",
            ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "2", o.program, "serve",
             "--job", str(self.job), "--model", str(work / "initial"), "--trainer", "hf",
             "--inference", f"{o.layout}{joined}dtype=bf16" if on_gpu else o.layout,
             "--backend", "cuda" if on_gpu else "host",
             "--attach", "trainer,inference", *serve_options],
            **environment,
        )  # fmt: skip
        stays = ["--memory-stays"] if "--no-offload" in serve_options else []
        for role, script in (("inference", o.inference), ("trainer", HERE / "trainer.py")):
            self.start(
                role,
                [sys.executable, str(script), "--job", str(self.job), "--work", str(work),
                 "--device", o.device, "--steps", str(steps), "--batch", str(o.batch),
                 "--learning-rate", str(o.learning_rate), "--check-every", str(o.check_every),
                 *stays],
            )  # fmt: skip

    def start(self, name: str, command: list[str], **environment: str) -> None:
        with open(self.work / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def finish(self) -> list[dict]:
        """Waits until both engines are done, and ends the job. Returns the trainer's log."""
        told = 0
        while any(self.processes[name].poll() is None for name in ("trainer", "inference")):
            for name, process in self.processes.items():
                if process.poll() not in (None, 0) or (name == "serve" and process.poll() is not None):
                    self.fail(name)
            done = self.log()
            if len(done) >= told + 10:
                told = len(done)
                print(f"step {told} of {self.steps}: reward {done[-1]['reward']:.3f}", flush=True)
            time.sleep(0.2)
        for name in ("trainer", "inference"):
            if self.processes[name].returncode:
                self.fail(name)
        subprocess.run([self.o.program, "stop", "--job", str(self.job)], check=True, stdout=subprocess.DEVNULL)
        if self.processes["serve"].wait(60):
            self.fail("serve")
        return self.log()

    def log(self) -> list[dict]:
        path = self.work / "trainer.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(row) for row in text.splitlines(keepends=True) if row.endswith("\n")]

    def fail(self, name: str) -> None:
        print(f"error: the {name} process ended with {self.processes[name].returncode}", file=sys.stderr)
        for other in self.processes:
            tail = (self.work / f"{other}.log").read_text(errors="replace").splitlines()[-25:]
            print(f"--- {other}.log", *tail, sep="\n", file=sys.stderr)
        sys.exit(1)


def check_logits(o: argparse.Namespace, work: Path) -> int:
    """Compares what the inference process computed with a fresh model; returns the number of versions."""
    files = sorted((work / "logits").glob("*.pt"), key=lambda path: int(path.stem))
    for path in files:
        version = int(path.stem)
        answer, logits = torch.load(path)
        config = Config.load(work / "initial")
        device, dtype = ("cpu", torch.float32) if o.device == "host" else (o.device, torch.bfloat16)
        fresh = Qwen3(config).to(device, dtype)
        load(fresh, work / "checkpoints" / str(version))
        shape = cache_shape(config, o.batch, 2 * LENGTH + 1)
        cache = torch.zeros(shape, dtype=dtype, device=device)
        want, want_logits = generate(fresh, prompts(version, o.batch).to(device), cache, seed=version)
        if not torch.equal(want.cpu(), answer) or not torch.equal(want_logits.cpu(), logits):
            sys.exit(f"error: version {version} differs from the checkpoint that the trainer saved of it")
    if not files:
        sys.exit("error: no version was compared")
    return len(files)


def new_work(work: Path, initial: Path | Config) -> Path:
    """A folder with a checkpoint to begin with: a copy, or a new model's."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if isinstance(initial, Config):
        torch.manual_seed(0)
        save(Qwen3(initial), work / "initial")
    else:
        shutil.copytree(initial, work / "initial")
    return work


def main(
    about: str = __doc__,
    *,
    inference: Path = HERE / "inference.py",
    layout: str = "hf",
    small: Config = Config(),  # noqa: B008: frozen
    check: Callable[[argparse.Namespace, Path], int] = check_logits,
) -> None:
    """The script of the inference process, its layout in the job, the model on a CPU, and what compares versions
    with checkpoints and returns their number: other examples have others."""
    o = parse(about)
    o.inference, o.layout, o.model = inference, layout, small if o.device == "host" else LARGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that nothing is left running.
    if o.device == "host":
        torch.set_num_threads(1)  # As the processes have it: other numbers of threads sum in other orders.
    keep = o.work is not None
    folder = o.work or Path(tempfile.mkdtemp(prefix="torch_rl."))
    try:
        run_in(o, folder, check)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def run_in(o: argparse.Namespace, folder: Path, check: Callable[[argparse.Namespace, Path], int]) -> None:
    work = new_work(folder / "run", o.model)
    begin = time.monotonic()
    with Run(o, work, o.steps) as run:
        log = run.finish()
    rewards = [row["reward"] for row in log]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    print(f"reward     {first:.3f} in the first 5 steps, {last:.3f} in the last 5 of {len(log)}")
    print(f"versions   {check(o, work)} equal those of the trainer's checkpoints, bit by bit")
    phases = {
        name: sum(row["seconds"].get(name, 0) for row in log) / len(log) * 1e3
        for name in ("train", "hand over", "rollout", "take back")
    }
    print("phases     " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in phases.items()))
    line(folder / "rewards.svg", rewards, "step", "reward")
    bars(folder / "phases.svg", phases, "ms a step")
    if o.compare:
        compare(o, folder, [row["loss"] for row in log][: o.compare])
    print(f"seconds    {time.monotonic() - begin:.0f}")
    if last < first + 0.2 and o.steps >= 40:
        sys.exit("error: rewards have not risen")
    print("result     ok")


def compare(o: argparse.Namespace, folder: Path, losses: list[float]) -> None:
    work = new_work(folder / "no-offload", folder / "run" / "initial")
    with Run(o, work, len(losses), "--no-offload") as run:
        log = run.finish()
    if [row["loss"] for row in log] != losses:
        sys.exit("error: losses differ from those of a job that gives no memory back")
    print(f"losses     {len(losses)} equal those of a job that gives no memory back, bit by bit")


if __name__ == "__main__":
    main()
