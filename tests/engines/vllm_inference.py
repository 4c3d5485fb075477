"""A real vLLM, on a CPU: vllm_inference.py JOB WORK UPDATES [FRESH]. Serves every version by the plugin, then
compares its greedy tokens with those of fresh engines on the checkpoints that the trainer saved (of the
FRESH last versions, or all)."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm._custom_ops  # noqa: E402
from files import put  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402
from vllm.model_executor.layers import utils  # noqa: E402

import awex_colocate.vllm as plugin  # noqa: E402

JOB, WORK, UPDATES = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
FRESH = int(sys.argv[4]) if len(sys.argv) > 4 else UPDATES
# On a CPU vLLM computes with packed copies of weights, unless it is told that it cannot.
vllm._custom_ops._supports_onednn = False
utils.check_cpu_sgl_kernel = lambda *_: False
SAMPLING = SamplingParams(temperature=0, max_tokens=16, detokenize=False, ignore_eos=True)
PROMPTS = [
    {"prompt_token_ids": [5, 17, 300, 42, 7]},
    {"prompt_token_ids": [(i * 37 + 11) % 1000 for i in range(140)]},
]


def start(model, **options):
    return LLM(
        model=str(model), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, max_model_len=256,
        max_num_seqs=4, kv_cache_memory_bytes=32 << 20, seed=0, enable_prefix_caching=True, block_size=32,
        **options,
    )  # fmt: skip


def tokens(llm):
    outputs = llm.generate(PROMPTS, SAMPLING, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def end(llm):
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


llm = start(WORK / "initial", weight_transfer_config={"backend": "awex"})
first = tokens(llm)
plugin.attach(llm, JOB, kv_cache=True)
served = {}
for version in range(1, UPDATES + 1):
    plugin.update(llm, version=version)
    served[version] = tokens(llm)
    assert str(llm.llm_engine.get_weight_version()) == str(version)
    print("served", version, served[version][0][:6], flush=True)
    put(WORK / "served" / str(version))
worker = llm.llm_engine.model_executor.driver_worker.worker
worker.weight_transfer_engine.engine.release()  # The trainer takes its memory back for its last step.
put(WORK / "released")
end(llm)

assert served[1] == first, "version 1 is what was loaded"
assert len({str(found) for found in served.values()}) > 1, "training changes what is said"
for version in range(UPDATES - FRESH + 1, UPDATES + 1):
    fresh = start(WORK / "checkpoints" / str(version))
    want = tokens(fresh)
    end(fresh)
    assert served[version] == want, (version, served[version], want)
    print("equal to a fresh engine:", version, flush=True)
put(WORK / "compared")
print("ok", flush=True)
