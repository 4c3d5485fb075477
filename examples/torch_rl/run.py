#!/usr/bin/env python3
"""Reinforcement learning with real PyTorch on both sides, and a hand-over after every step.

    python examples/torch_rl/run.py                     # on a CPU, about 2 minutes
    python examples/torch_rl/run.py --device cuda:0     # on a GPU, a model of 0.4 billion parameters

Starts a job (mpirun … awex-colocate serve), a trainer and an inference process, and ends with what it has
checked: rewards have risen; logits and tokens of the inference process equal, bit by bit, those of a fresh model
that loads the checkpoint which the trainer saved of that version; with --compare, losses equal those of a job
that gives no memory back. Writes rewards.svg and phases.svg beside its logs.

An engine that a signal ends is started again, and goes on where it was: --kills N does that to them.
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
from collections.abc import Callable, Sequence
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

ENGINES = ("trainer", "inference")
MOST_RESTARTS = 20  # of each

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
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="of engines in turns, spread over the steps")
    parser.add_argument("--compare", type=int, default=0, metavar="STEPS", help="compare with --no-offload")
    parser.add_argument("--program", default=str(ROOT / "build" / "awex-colocate"))
    parser.add_argument("--work", type=Path, help="folder for logs and plots, kept (default: a temporary one)")
    chosen = parser.parse_args()
    on_gpu = chosen.device != "host"
    chosen.steps = chosen.steps or (100 if on_gpu else 60)
    if not 0 <= chosen.kills < min(chosen.steps, MOST_RESTARTS):
        parser.error(f"--kills {chosen.kills}: fewer than the steps, and than {MOST_RESTARTS}")
    chosen.learning_rate = chosen.learning_rate or (1e-4 if on_gpu else 3e-3)
    return chosen


def kills_of(o: argparse.Namespace, count: int, steps: int) -> list[tuple[int, str]]:
    """After how many steps which engine is killed: in turns, spread over the steps."""
    return [(steps * (one + 1) // (count + 1), o.restartable[one % len(o.restartable)]) for one in range(count)]


class Run:
    """A job and its two engines. An engine that a signal ends is started again. All are ended when it is left."""

    def __init__(self, o: argparse.Namespace, work: Path, steps: int, *serve_options: str, kills: int = 0) -> None:
        self.o, self.work, self.steps = o, work, steps
        self.kills = kills_of(o, kills, steps)
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
        self.memory_stays = "--no-offload" in serve_options
        self.restarts = dict.fromkeys(ENGINES, 0)
        self.killed = 0
        for role in ENGINES:
            self.start_engine(role)

    def start_engine(self, role: str) -> None:
        o = self.o
        script = HERE / "trainer.py" if role == "trainer" else o.inference
        stays = ["--memory-stays"] if self.memory_stays else []
        self.start(
            role,
            [sys.executable, str(script), "--job", str(self.job), "--work", str(self.work),
             "--device", o.device, "--steps", str(self.steps), "--batch", str(o.batch),
             "--learning-rate", str(o.learning_rate), "--check-every", str(o.check_every),
             *stays],
        )  # fmt: skip

    def start(self, name: str, command: list[str], **environment: str) -> None:
        with open(self.work / f"{name}.log", "ab") as log:
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
        while any(self.processes[role].poll() != 0 for role in ENGINES):
            self.look_after()
            done = self.log()
            if len(done) >= told + 10:
                told = len(done)
                print(f"step {told} of {self.steps}: reward {done[-1]['reward']:.3f}", flush=True)
            while self.kills and len(done) >= self.kills[0][0]:
                self.kill(self.kills.pop(0)[1])
            time.sleep(0.2)
        subprocess.run([self.o.program, "stop", "--job", str(self.job)], check=True, stdout=subprocess.DEVNULL)
        if self.processes["serve"].wait(60):
            self.fail("serve")
        return self.log()

    def kill(self, role: str) -> None:
        if self.processes[role].poll() is None:
            os.killpg(self.processes[role].pid, signal.SIGKILL)
            self.killed += 1

    def look_after(self) -> None:
        """Starts an engine again that a signal has ended; whatever else has ended before its time is an error."""
        if self.processes["serve"].poll() is not None:
            self.fail("serve")
        for role in ENGINES:
            code = self.processes[role].poll()
            if code is None or code == 0:
                continue
            if code > 0 or role not in self.o.restartable or self.restarts[role] == MOST_RESTARTS:
                self.fail(role)
            self.restarts[role] += 1
            print(f"{signal.Signals(-code).name} has ended the {role} process: it is started again", flush=True)
            self.start_engine(role)

    def log(self) -> list[dict]:
        """The rows of the trainer's log, one for each step: a trainer that was killed may have told one twice."""
        path = self.work / "trainer.jsonl"
        text = path.read_text() if path.exists() else ""
        rows: dict[int, dict] = {}
        for row in (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")):
            rows.setdefault(row["step"], row)
        return [rows[step] for step in sorted(rows)]

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
    restartable: Sequence[str] = ENGINES,
    small: Config = Config(),  # noqa: B008: frozen
    check: Callable[[argparse.Namespace, Path], int] = check_logits,
) -> None:
    """The script of the inference process, its layout in the job, which engines go on when they are started again,
    the model on a CPU, and what compares versions with checkpoints and returns their number: other examples have
    others."""
    o = parse(about)
    o.inference, o.layout, o.restartable = inference, layout, restartable
    o.model = small if o.device == "host" else LARGE
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
    with Run(o, work, o.steps, kills=o.kills) as run:
        log = run.finish()
    restarts = sum(run.restarts.values())
    if restarts < run.killed or run.killed < min(o.kills, 1):
        sys.exit(f"error: {restarts} restarts after {run.killed} kills")
    rewards = [row["reward"] for row in log]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    print(f"reward     {first:.3f} in the first 5 steps, {last:.3f} in the last 5 of {len(log)}")
    print(f"versions   {check(o, work)} equal those of the trainer's checkpoints, bit by bit")
    if restarts:
        print(f"restarts   {restarts}, after which all went on where it was")
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
