"""A real SGLang on a GPU: sglang_inference.py JOB WORK UPDATES FRESH [--generate-limit S]. Serves every version by the
plugin, and compares its greedy tokens, and SGLang's own checksums of all its weights, with those of fresh engines on
the checkpoints that the trainer saved of the FRESH last versions. Where a first engine, without a job, does not say
anything in S seconds, tokens are left out, and it says so: the checksums remain. SGLang here has no FlashAttention 3."""

import argparse
import contextlib
import faulthandler
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from files import DEVICE, PATIENCE_S, get, put

BEGIN = float(os.environ.setdefault("ENGINES_BEGIN", str(time.monotonic())))  # The same in all processes.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["AWEX_COLOCATE_TIMEOUT"] = str(PATIENCE_S)
# SGLang's processes begin with this file, too: asked by this signal, each says on stderr where it stands.
faulthandler.register(signal.SIGUSR1)

PROMPTS = [[5, 17, 300, 42, 7], [(i * 37 + 11) % 1000 for i in range(140)]]
SAMPLING = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
OPTIONS = {
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    # With CUDA graphs whole steps of decoding are captured.
    "disable_cuda_graph": not os.environ.get("ENGINES_GRAPHS"),
    "disable_prefill_cuda_graph": True,
    "cuda_graph_bs_decode": [1, 2, 4],
    "context_length": 512,
    "max_running_requests": 4,
    "max_total_tokens": 4096,
    # Nothing is allocated by it: SGLang subtracts the rest of the free memory, and a trainer takes of that, too.
    "mem_fraction_static": 0.9,
    "watchdog_timeout": PATIENCE_S,
    "random_seed": 0,
    # Its KV cache goes and comes, too.
    "enable_memory_saver": bool(os.environ.get("ENGINES_SGLANG_SAVER")),
}
#: Seconds without an answer, after which everybody says where it stands.
SILENCE_S = 60.0
#: Exit code of a process that has waited for a generation for too long.
TOO_LATE = 3


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("work", type=Path)
    parser.add_argument("updates", type=int)
    parser.add_argument("fresh", type=int)
    parser.add_argument("--generate-limit", type=float, default=float(os.environ.get("ENGINES_GENERATE_LIMIT", 400)))
    return parser.parse_args()


def say(*words):
    print(f"{time.monotonic() - BEGIN:7.1f} s", *words, flush=True)


@contextlib.contextmanager
def step(what, limit=None):
    """Says how long it took; who stands where, whenever it takes SILENCE_S longer; ends SGLang and this process after
    `limit` seconds."""
    over, begin = threading.Event(), time.monotonic()

    def watch():
        while not over.wait(SILENCE_S if limit is None else min(SILENCE_S, limit)):
            taken = time.monotonic() - begin
            say(f"{what}: not over after {taken:.0f} s")
            faulthandler.dump_traceback()
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGUSR1)
            if limit is not None and taken >= limit:
                time.sleep(2)  # Until they have said it.
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(TOO_LATE)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    say(f"{what}: {time.monotonic() - begin:.1f} s")


def kernels(config):
    """By name: what SGLang and flashinfer compile for a Qwen3 in a first generation, by nvcc and one after the other."""
    import torch
    from flashinfer.norm import get_norm_module
    from sglang.jit_kernel import activation, clamp_position, kvcache, norm, rope

    dim, bf16 = config["head_dim"], torch.bfloat16
    row_bytes = config["num_key_value_heads"] * dim * bf16.itemsize
    return {
        "rmsnorm (flashinfer)": get_norm_module,
        "qknorm": lambda: norm._jit_qknorm_module(dim, bf16),
        "rope": lambda: rope._jit_fused_rope_module(True, dim, bf16),
        "silu": lambda: activation._jit_activation_module(bf16),
        "kvcache": lambda: kvcache._jit_kvcache_module(row_bytes),
        "clamp_position": lambda: clamp_position._jit_clamp_position_module(torch.int64),
    }


def compile_kernels(config):
    """All at once, in a process of its own; what was compiled before is found. What fails is left to SGLang."""

    def one(name, work):
        begin = time.monotonic()
        try:
            work()
        except Exception as error:
            say(f"compiling {name} failed: {error}")
        else:
            say(f"compiled {name} in {time.monotonic() - begin:.1f} s")

    from sglang.jit_kernel.utils import get_jit_cuda_arch

    # SGLang sets it around each compilation, and takes it away from those beside it.
    os.environ["TVM_FFI_CUDA_ARCH_LIST"] = get_jit_cuda_arch().target_name
    todo = kernels(config)
    with ThreadPoolExecutor(len(todo)) as pool:
        list(pool.map(one, todo, todo.values()))


class Sglang:
    """An engine, and what it says of itself."""

    def __init__(self, model, job=None):
        import sglang

        if job is None:
            os.environ.pop("AWEX_COLOCATE_JOB", None)
        else:
            os.environ["AWEX_COLOCATE_JOB"] = job
        with step(f"start on {model.name}{' with the job' if job else ''}"):
            index = int(DEVICE.partition(":")[2] or 0)
            self.engine = sglang.Engine(model_path=str(model), base_gpu_id=index, log_level="info", **OPTIONS)

    def call(self, coroutine):
        return self.engine.loop.run_until_complete(coroutine)

    def tokens(self):
        """One prompt after the other, as it depends on chance which come in one batch."""
        outputs = [self.engine.generate(input_ids=[prompt], sampling_params=SAMPLING) for prompt in PROMPTS]
        found = [[int(token) for token in output[0]["output_ids"]] for output in outputs]
        assert all(len(row) == SAMPLING["max_new_tokens"] for row in found), found
        return found

    def checksums(self):
        from sglang.srt.managers.io_struct import CheckWeightsReqInput

        check = self.engine.tokenizer_manager.check_weights(CheckWeightsReqInput(action="checksum"))
        is_done, message, ranks, _ = self.call(check)
        assert is_done and len(ranks) == 1, (message, ranks)
        return ranks[0]["checksums"]

    def version(self):
        return self.call(self.engine.tokenizer_manager.get_internal_state())[0]["awex_colocate_version"]

    def settle(self):
        """Returns when no request runs any more: a last batch may still, when its answer is here. Gives PyTorch's
        cached memory back."""
        answer = self.call(self.engine.tokenizer_manager.flush_cache(timeout_s=60.0))
        assert answer.success, answer

    def end(self):
        self.engine.shutdown()


def try_generation(o):
    """What an engine without a job says on what the trainer began with; no tokens where it takes too long."""
    sglang = Sglang(o.work / "initial")
    sums = sglang.checksums()
    try:
        with step("first generation", o.generate_limit):
            said = sglang.tokens()
        sglang.settle()
        with step("second generation"):
            assert sglang.tokens() == said, "the same is said twice"
    finally:
        sglang.end()
    return said, sums


def try_in_a_process(o, results):
    results.put(try_generation(o))


def first_of(o):
    """In a process of its own, which SGLang's failure ends, too."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=try_in_a_process, args=(o, results))
    process.start()
    importlib.import_module("sglang")  # It takes half a minute; meanwhile there is nothing else to do.
    while results.empty() and process.is_alive():
        time.sleep(0.2)
    found = (None, None) if results.empty() else results.get()
    process.join()
    if process.exitcode not in (0, TOO_LATE):
        sys.exit(f"SGLang without a job has failed ({process.exitcode})")
    if process.exitcode == TOO_LATE:
        say(f"WITHOUT TOKENS: SGLang has generated nothing in {o.generate_limit:.0f} s; see above where it stood")
    return found


def serve(o, first):
    served = {}
    sglang = Sglang(o.work / "initial", o.job)
    for version in range(1, o.updates + 1):
        with step(f"version {version}"):
            resume(sglang, version)
        said = sglang.tokens() if first else None
        sums = sglang.checksums() if version in (1, *compared(o)) else None
        served[version] = (said, sums)
        say("served", version, said[0][:6] if said else "", *sorted(sums.values())[:1] if sums else ())
        sglang.settle()
        put(o.work / "served-0" / str(version))
        if version > 1:  # What its memory saver gives away is gone at once.
            get(o.work / "measured" / str(version))
        sglang.engine.release_memory_occupation()  # Returns at once: the trainer takes it when it wants to.
    get(o.work / "trained-0")
    sglang.end()
    return served


def resume(sglang, version):
    """Until it is this version: who resumes before the trainer has taken the memory goes on with the last one."""
    for tries in itertools.count(1):
        sglang.engine.resume_memory_occupation()
        found = sglang.version()
        if found == version:
            say(f"resumed {tries} times")
            return
        assert found == version - 1, (found, version)
        sglang.engine.release_memory_occupation()
        time.sleep(0.05)


def compared(o):
    return range(o.updates - o.fresh + 1, o.updates + 1)


def compare(o, served, first):
    for version in compared(o):
        fresh = Sglang(o.work / "checkpoints" / str(version))
        want = (fresh.tokens() if first else None, fresh.checksums())
        fresh.end()
        equal(version, served[version], want)
        what = "tokens and checksums" if first else "checksums alone, without tokens,"
        say(f"{what} of {len(want[1])} tensors equal those of a fresh engine: {version}")


def equal(version, found, want):
    names = sorted(found[1].keys() | want[1].keys())
    others = [name for name in names if found[1].get(name) != want[1].get(name)]
    assert names and not others, f"version {version}: other weights of {others[:8]} ({len(others)} of {len(names)})"
    assert found[0] == want[0], f"version {version}: {found[0]}, a fresh engine says {want[0]}"


def main():
    o = parse()
    config = json.loads((o.work / "initial" / "config.json").read_text())
    compiling = multiprocessing.get_context("spawn").Process(target=compile_kernels, args=(config,))
    compiling.start()  # Meanwhile SGLang starts; who wants the same waits for it.
    first, sums = first_of(o)
    compiling.join()
    served = serve(o, first)
    if first:
        equal(1, served[1], (first, sums))  # It is what was loaded.
    last = served[o.updates]
    assert last[1] != served[1][1], "training changes the weights"
    if first:
        assert last[0] != first, "training changes what is said"
    compare(o, served, first)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
