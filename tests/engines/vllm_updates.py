"""Transformers trains, a real vLLM serves: vllm_updates.py PROGRAM WORK [UPDATES [FRESH]]. Needs the wheel
installed, with vLLM, in this Python."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from small_qwen3 import CONFIG
from transformers import Qwen3Config, Qwen3ForCausalLM

PROGRAM, WORK = sys.argv[1], Path(sys.argv[2]).resolve()
UPDATES, *FRESH = sys.argv[3:] or ["10"]
HERE = Path(__file__).parent

torch.manual_seed(1)
WORK.mkdir(parents=True)
model = Qwen3ForCausalLM(Qwen3Config(**CONFIG)).to(torch.bfloat16)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.15)
model.save_pretrained(WORK / "initial")

JOB = str(WORK / "job")
COMMANDS = {
    "serve": ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "2", PROGRAM, "serve", "--job", JOB,
              "--model", str(WORK / "initial"), "--trainer", "hf", "--inference", "vllm:version=0.32",
              "--backend", "host", "--attach", "trainer,inference", "--timeout", "10m"],
    "inference": [sys.executable, str(HERE / "vllm_inference.py"), JOB, str(WORK), UPDATES, *FRESH],
    "trainer": [sys.executable, str(HERE / "vllm_trainer.py"), JOB, str(WORK), UPDATES],
}  # fmt: skip
root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
processes = {}
try:
    for name, command in COMMANDS.items():
        with open(WORK / f"{name}.log", "wb") as log:
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **root}, start_new_session=True,
            )  # fmt: skip
    while any(processes[name].poll() is None for name in ("trainer", "inference")):
        bad = [name for name, p in processes.items() if p.poll() not in (None, 0)]
        if bad or processes["serve"].poll() is not None:
            break
        time.sleep(0.2)
    codes = {name: processes[name].poll() for name in ("trainer", "inference")}
    if any(codes.values()) or None in codes.values():
        for name in processes:
            print(f"--- {name}.log", (WORK / f"{name}.log").read_text(errors="replace")[-4000:], sep="\n")
        sys.exit(f"failed: {codes}")
    subprocess.run([PROGRAM, "stop", "--job", JOB], check=True)
    print((WORK / "inference.log").read_text().splitlines()[-1])
finally:
    for process in processes.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
