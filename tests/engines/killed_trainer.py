"""A trainer that is killed at any moment, started again, trains on as if nothing had been:

    killed_trainer.py PROGRAM [--device host|cuda:0] [--kills 30] [--large] [--seed 1]

A job with a built-in inference engine serves it. The same steps are taken once without a kill and once with kills (SIGKILL)
in a step, within `writing()`, between steps, while its memory is handed over, away, or taken back; every loss must
be the same, bit by bit, and every version committed. Prints where kills fell, and how long attaching again took."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "torch_rl"))
from model import Config, Qwen3, load, save  # noqa: E402

import awex_colocate  # noqa: E402
import awex_colocate.torch as awex_torch  # noqa: E402

LARGE = Config(
    hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    intermediate_size=9728, vocab_size=32000,
)  # fmt: skip
PLACES = ("step", "writing", "between", "hand over", "away", "take back")


def say(place: str, **values: object) -> None:
    print(json.dumps({"place": place, **values}), flush=True)


def trainer(o: argparse.Namespace) -> None:
    """Trains until `o.steps`; says where it is, and each step's loss once the step is whole."""
    begin = time.monotonic()
    torch.set_num_threads(1)
    device = "cpu" if o.device == "host" else o.device
    config = Config.load(o.work / "initial")
    with torch.device(device):
        model = Qwen3(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    memory = {"optimizer": awex_torch.optimizer_bytes(optimizer, model)}
    made = time.monotonic()
    with awex_colocate.attach("trainer", str(o.work / "job"), device=o.device, memory=memory) as engine:
        if not engine.place.reattached:
            load(model, o.work / "initial")
        engine.adopt(model)
        engine.adopt_optimizer(optimizer)
        engine.seal()
        say("attached", reattached=engine.place.reattached, seconds=time.monotonic() - made, made=made - begin)
        if not all(engine.memory(tag).is_mapped for tag in ("weights", "optimizer")):
            engine.take_back()
        kept = engine.kept()
        train(engine, model, optimizer, int(kept) if kept else 0, o)


def train(engine, model, optimizer, done: int, o: argparse.Namespace) -> None:
    device = model.lm_head.weight.device
    for step in range(done + 1, o.steps + 1):
        say("step")
        tokens = torch.randint(0, 32, (8, 16), generator=torch.Generator().manual_seed(step)).to(device)
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        time.sleep(o.slowness)
        say("writing")
        with engine.writing():
            optimizer.step()
            engine.keep(str(step).encode())
            torch.cuda.is_available() and torch.cuda.synchronize()
            time.sleep(o.slowness)
        say("between", step=step, loss=loss.item())
        optimizer.zero_grad(set_to_none=True)
        time.sleep(o.slowness)
        say("hand over")
        version = engine.hand_over()
        say("away", version=version)
        time.sleep(o.slowness)
        say("take back")
        engine.take_back()
    say("done")


class Job:
    """A resident job, and the trainers that come one after the other."""

    def __init__(self, o: argparse.Namespace, work: Path) -> None:
        self.o, self.work = o, work
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        self.log = open(work / "serve.log", "wb")
        self.serve = subprocess.Popen(
            ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "2", o.program, "serve", "--job", str(work / "job"),
             "--model", str(work / "initial"), "--trainer", "hf", "--inference", "hf:dtype=bf16",
             "--backend", "host" if o.device == "host" else "cuda", "--attach", "trainer", "--limits", "off", "--timeout", "60s"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, env={**os.environ, **root},
            start_new_session=True,
        )  # fmt: skip

    def start_trainer(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, self.o.program, "--trainer", str(self.work), "--device", self.o.device,
             "--steps", str(self.o.steps), "--slowness", str(self.o.slowness)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    def end(self) -> None:
        if self.serve.poll() is None:
            os.killpg(self.serve.pid, signal.SIGTERM)
        self.serve.wait(60)


def run(o: argparse.Namespace, work: Path, kills: list[tuple[str, float]]) -> tuple[dict[int, float], Counter, list[float]]:
    """Losses by step, where trainers were killed, and the seconds that attaching again took. A kill falls so long
    after its place was said."""
    job, losses, fell, attached = Job(o, work), {}, Counter(), []
    try:
        pending = list(kills)
        while True:
            process = job.start_trainer()
            done, countdown = follow(process, pending, losses, fell, attached)
            process.wait(60)
            if done:
                return losses, fell, attached
            if not countdown:
                sys.exit(f"the trainer ended by itself with {process.returncode}:\n{(work / 'serve.log').read_text()[-3000:]}")
    finally:
        job.end()


def follow(process, pending, losses, fell, attached) -> tuple[bool, bool]:
    """Reads what a trainer says, and kills it when the next kill's place comes. Returns whether it was done, or killed."""
    seen, is_killed = 0, False
    for line in process.stdout:
        if not line.endswith("\n"):
            break  # of a word that it had no time to end
        news = json.loads(line)
        place = news["place"]
        if place == "attached" and news["reattached"]:
            attached.append(news["seconds"])
        if "loss" in news:
            step = news["step"]
            if losses.setdefault(step, news["loss"]) != news["loss"]:
                sys.exit(f"step {step}: loss {news['loss']!r} after a kill, {losses[step]!r} before")
        if place == "done":
            return True, is_killed
        seen += place == "step"
        if pending and not is_killed and seen >= 2 and place == pending[0][0]:  # each trainer takes a step in peace
            time.sleep(pending.pop(0)[1])
            process.kill()
            fell[place] += 1
            is_killed = True  # what it has said before follows
    return False, is_killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--device", default="host")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--large", action="store_true", help="4 billion parameters: 48 GB of state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slowness", type=float, default=0.03, help="seconds that each place lasts at least")
    parser.add_argument("--steps", type=int, help="default: what the kills need")
    parser.add_argument("--trainer", dest="work", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.work is not None:
        trainer(o)
        return
    o.steps = o.steps or 2 * o.kills + 4
    random.seed(o.seed)
    kills = [(PLACES[n % len(PLACES)], random.uniform(0, 1.5 * o.slowness)) for n in range(o.kills)]
    random.shuffle(kills)
    with tempfile.TemporaryDirectory(prefix="killed_trainer.") as folder:
        torch.manual_seed(0)
        save(Qwen3(LARGE if o.large else Config()), Path(folder) / "initial")
        results = []
        for name, plan in (("whole", []), ("killed", kills)):
            work = Path(folder) / name
            work.mkdir()
            os.symlink(Path(folder) / "initial", work / "initial")
            results.append(run(o, work, plan))
    (whole, _, _), (killed, fell, attached) = results
    if len(whole) != o.steps or whole != killed:
        different = [step for step in whole if killed.get(step) != whole[step]]
        sys.exit(f"of {o.steps} steps, {len(different)} have other losses after kills, the first is {different[:1]}")
    where = ", ".join(f"{count} in {place!r}" for place, count in sorted(fell.items()))
    print(f"{sum(fell.values())} kills (seed {o.seed}): {where}; {o.steps} losses equal those of a run without kills, bit by bit")
    attached.sort()
    print(f"attached again in {attached[len(attached) // 2]:.3f} s (median), {attached[-1]:.3f} s at most")


if __name__ == "__main__":
    main()
