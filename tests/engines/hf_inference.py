"""One Transformers process that serves several GPUs of a job: hf_inference.py JOB WORK UPDATES FRESH GPUS. It
attaches once for each, with a model for each, and each waits in a thread of its own. Every version's logits and
greedy tokens are compared with those of a fresh model on the trainer's checkpoint of that version, bit by bit, and
among the GPUs."""

import os
import sys
import threading
import traceback
from pathlib import Path

import torch
from files import PATIENCE_S, put
from transformers import Qwen3ForCausalLM

import awex_colocate

JOB, WORK = sys.argv[1], Path(sys.argv[2])
UPDATES, FRESH, GPUS = map(int, sys.argv[3:6])
PROMPT = torch.randint(0, 1000, (3, 24), generator=torch.Generator().manual_seed(7))
ONE_AT_A_TIME = threading.Lock()  # As many threads compute as for the fresh model.


@torch.no_grad()
def said(model):
    return model(input_ids=PROMPT).logits, model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0)


def load(folder):
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def serve(gpu, model, served):
    torch.set_num_threads(1)
    place = {"device": f"host:{gpu}", "name": f"transformers {gpu}", "timeout": PATIENCE_S}
    with awex_colocate.attach("inference", JOB, **place) as engine:
        engine.adopt(model)
        engine.seal(PATIENCE_S)
        for version in range(1, UPDATES + 1):
            assert engine.wait(timeout=PATIENCE_S) == version
            with ONE_AT_A_TIME:
                served.append(said(model))
            put(WORK / f"served-{gpu}" / str(version))
        engine.release(PATIENCE_S)  # The trainer takes its memory back for its last step.


def serve_or_end(*arguments):
    try:
        serve(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # The other threads wait for what does not come.


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


torch.set_num_threads(1)
first = said(load(WORK / "initial"))
served = [[] for _ in range(GPUS)]
models = [load(WORK / "initial") for _ in served]
threads = [threading.Thread(target=serve_or_end, args=(n, models[n], served[n])) for n in range(GPUS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert equal(served[0][0], first), "version 1 is what was loaded"
assert not equal(served[0][0], served[0][-1]), "training changes what is said"
for version in range(UPDATES - FRESH + 1, UPDATES + 1):
    want = said(load(WORK / "checkpoints" / str(version)))
    for gpu in range(GPUS):
        assert equal(served[gpu][version - 1], want), (version, gpu)
    print("equal to a fresh model:", version, flush=True)
