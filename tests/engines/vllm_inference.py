"""A real vLLM: vllm_inference.py JOB WORK UPDATES FRESH TP INSTANCE INSTANCES. Serves every version by the
plugin. The first of INSTANCES then compares its greedy tokens with those of fresh engines of the same TP on the
checkpoints that the trainer saved of the FRESH last versions; those of all instances must be the same. On a GPU it
may have CUDA graphs (ENGINES_GRAPHS=1): its workers attach while it loads then, and its KV cache is allocated in the
job's memory. On a CPU all of that is so but for the graphs. ENGINES_KV_DTYPE=fp8 is its KV cache's; with ENGINES_FP8=1 it
loads fp8, in blocks.

With ENGINES_KILLED=VERSION it says that it generates with that version, and goes on until it is killed. Started again it
loads no weights, and must say the same with those that the job has."""

import gc
import json
import multiprocessing
import os
import sys
from pathlib import Path

JOB, WORK = sys.argv[1], Path(sys.argv[2])
UPDATES, FRESH, TP, INSTANCE, INSTANCES = map(int, sys.argv[3:8])
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
GRAPHS = bool(os.environ.get("ENGINES_GRAPHS"))
KILLED = int(os.environ.get("ENGINES_KILLED") or 0)
SAID = WORK / f"said-{INSTANCE}.json"  # by one that is killed next
if GRAPHS:
    os.environ["AWEX_COLOCATE_JOB"] = JOB
    os.environ["AWEX_COLOCATE_TIMEOUT"] = "3600"
if TP > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before a fork there may be no more.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # A compiler of C++ is started else, in spite of enforce_eager.
if TP * INSTANCES > 1:  # A core for each worker, as far as there are any.
    cores = sorted(os.sched_getaffinity(0))
    workers = range(TP * INSTANCE, TP * (INSTANCE + 1))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[n % len(cores)]) for n in workers)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "vllm_rl"))
import fp8_checkpoint  # noqa: E402
import torch  # noqa: E402
import unpacked  # noqa: E402, F401: in vLLM's workers, too, which begin with this file
from files import ON_GPU, PATIENCE_S, get, put  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.executor import multiproc_executor  # noqa: E402

import awex_colocate.vllm as plugin  # noqa: E402

if GRAPHS and not ON_GPU:
    import on_cpu

    on_cpu.let_vllm_sleep()
SAMPLING = SamplingParams(temperature=0, max_tokens=16, detokenize=False, ignore_eos=True)
PROMPTS = [
    {"prompt_token_ids": [5, 17, 300, 42, 7]},
    {"prompt_token_ids": [(i * 37 + 11) % 1000 for i in range(140)]},
]


#: Without vLLM's compiler, which takes longer than all the rest; whole steps of decoding are captured.
CAPTURED = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4]},
}


def start(model, **options):
    how = dict(CAPTURED) if GRAPHS and ON_GPU else {"enforce_eager": True}
    if ON_GPU:
        how["kv_cache_memory_bytes"] = int(os.environ["ENGINES_KV_BYTES"])
        how["kv_cache_dtype"] = os.environ.get("ENGINES_KV_DTYPE") or "auto"
    else:
        how.update(kv_cache_memory_bytes=32 << 20, block_size=32)
    return LLM(
        model=str(model), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=256, max_num_seqs=4, seed=0,
        enable_prefix_caching=True, tensor_parallel_size=TP, gpu_memory_utilization=0.2, **how, **options,
    )  # fmt: skip


def checkpoint(folder):
    """What vLLM loads of a checkpoint: it, or one in fp8 that is made of it."""
    return fp8_checkpoint.make(folder) if os.environ.get("ENGINES_FP8") else folder


def tokens(llm):
    outputs = llm.generate(PROMPTS, SAMPLING, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def end(llm):
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    # The memory pool of CUDA graphs went with the engine that first had it, and the next one would take it.
    type(current_platform)._global_graph_pool = None


def attach(llm):
    plugin.attach(llm, JOB, kv_cache=True, first_position=TP * INSTANCE, timeout=PATIENCE_S)
    if ON_GPU and not GRAPHS:  # PyTorch has neither what weights nor what the KV cache lay in before.
        assert torch.cuda.memory_allocated() < int(os.environ["ENGINES_KV_BYTES"]), torch.cuda.memory_allocated()


def begin():
    """An LLM that is attached, what it said with the weights that it loaded (nothing where its KV cache was not there
    yet), and what was served before."""
    again = SAID.exists()
    how = {"load_format": "dummy"} if again or os.environ.get("ENGINES_UNLOADED") else {}
    if GRAPHS:
        how["enable_sleep_mode"] = True
    llm = start(checkpoint(WORK / "initial"), weight_transfer_config={"backend": "awex"}, **how)
    first = None if GRAPHS else tokens(llm)
    attach(llm)
    if not again:
        return llm, first, []
    before = json.loads(SAID.read_text())
    assert GRAPHS or first != before["first"], "a vLLM that was started again has read weights"
    plugin.update(llm, version=len(before["served"]), timeout=PATIENCE_S)  # which is there
    assert tokens(llm) == before["served"][-1], "a vLLM that was started again says the same"
    print("serves again", len(before["served"]), flush=True)
    return llm, before["first"], before["served"]


def generate_until_killed(llm, first, served):
    SAID.write_text(json.dumps({"first": first, "served": served}))
    put(WORK / f"generates-{INSTANCE}")
    while True:
        tokens(llm)


def serve():
    llm, first, served = begin()
    if served:
        put(WORK / f"served-{INSTANCE}" / str(len(served)))
    for version in range(len(served) + 1, UPDATES + 1):
        plugin.update(llm, version=version, timeout=PATIENCE_S)
        served.append(tokens(llm))
        if hasattr(llm.llm_engine, "get_weight_version"):
            assert str(llm.llm_engine.get_weight_version()) == str(version)
        print("served", version, served[-1][0][:6], flush=True)
        if version == KILLED:
            generate_until_killed(llm, first, served)
        put(WORK / f"served-{INSTANCE}" / str(version))
    plugin.release(llm, timeout=PATIENCE_S)  # The trainer takes its memory back for its last step.
    end(llm)
    assert GRAPHS or served[0] == first, "version 1 is what was loaded"
    assert len({str(found) for found in served}) > 1, "training changes what is said"
    return served


def say_fresh(version):
    """What a fresh engine says on that version's checkpoint."""
    fresh = start(checkpoint(WORK / "checkpoints" / str(version)))
    said = tokens(fresh)
    end(fresh)
    return said


def put_fresh(version, answers):
    answers.put(say_fresh(version))


def fresh_tokens(version):
    """On several GPUs of a process of its own: a process's second engine there had said nothing after 70 s."""
    if not (ON_GPU and TP > 1):
        return say_fresh(version)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    process = spawn.Process(target=put_fresh, args=(version, answers))
    process.start()
    process.join()
    assert process.exitcode == 0, f"a fresh engine of version {version} ended with {process.exitcode}"
    return answers.get()


def compare(served):
    # Workers that import vLLM anew take most of the time; a process that uses a GPU cannot be forked.
    if not ON_GPU:
        multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    for version in range(UPDATES - FRESH + 1, UPDATES + 1):
        want = fresh_tokens(version)
        assert served[version - 1] == want, (version, served[version - 1], want)
        print("equal to a fresh engine:", version, flush=True)
    for other in range(1, INSTANCES):
        get(WORK / f"tokens-{other}")
        assert json.loads((WORK / f"tokens-{other}").read_text()) == served, other


if __name__ == "__main__":
    found = serve()
    if INSTANCE == 0:
        compare(found)
    else:
        (WORK / "part").write_text(json.dumps(found))
        (WORK / "part").rename(WORK / f"tokens-{INSTANCE}")
