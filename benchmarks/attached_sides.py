#!/usr/bin/env python3
"""One side of attached_engines.py, which starts it: a trainer and a real vLLM take turns on a GPU.

usage: attached_sides.py OPTIONS.json OUT.json

vLLM runs in this process, the trainer in a child. Both have the same weights whatever the side: they are
made from one seed, and a step multiplies each tensor by 1 or -1. What forward and backward allocate (gradients, and
activations of a size that is asked for) is allocated and written, and given back to PyTorch. Sides:

ipc    vLLM's own IPC weight transfer and sleep(2). The trainer has its memory from PyTorch and keeps its pinned
       copies; its optimizer state is three flat tensors, which is the fastest that it can be.
load   the same trainer and sleep, the weights by vLLM's `load_weights`: bucket by bucket through one buffer that
       vLLM maps by CUDA IPC, as RL frameworks bring an FSDP state dict in Hugging Face names to vLLM.
ours   a job of awex-colocate, which both engines are attached to; the trainer's optimizer state is three tensors
       for each parameter, all declared, so that the job proves them. It takes its weights back for forward and
       backward, and its optimizer state for the step.
"""
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import sys
import time
import types

from peer_awex import module_of
from peer_shapes import MODELS as PUBLISHED
from peer_shapes import Model, elements

HERE = pathlib.Path(__file__).resolve().parent
MODELS = {
    "0.6b": Model(28, 1024, 16, 8, 3072, 151936),
    "1.7b": Model(28, 2048, 16, 8, 6144, 151936),
    "4b": PUBLISHED["preset:qwen3-4b"],
}
STATES = ("master", "exp_avg", "exp_avg_sq")  # AdamW's, in fp32
BUCKET_BYTES = 1 << 30
ALIGNMENT = 512  # of tensors in a job's memory
PROMPT = {"prompt_token_ids": list(range(10, 40))}
CHECKED_TOKENS = 16
PATIENCE_S = 200


def model_of(options):
    model = MODELS[options.model]
    return dataclasses.replace(model, layers=options.layers or model.layers)


def tensors_of(model):
    """(name, shape) in Hugging Face's names; the output layer is the embedding."""
    yield "model.embed_tokens.weight", (model.vocab, model.hidden)
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (model.hidden,)
        yield at + "self_attn.q_proj.weight", (model.heads * model.head_dim, model.hidden)
        yield at + "self_attn.k_proj.weight", (model.kv_heads * model.head_dim, model.hidden)
        yield at + "self_attn.v_proj.weight", (model.kv_heads * model.head_dim, model.hidden)
        yield at + "self_attn.o_proj.weight", (model.hidden, model.heads * model.head_dim)
        yield at + "self_attn.q_norm.weight", (model.head_dim,)
        yield at + "self_attn.k_norm.weight", (model.head_dim,)
        yield at + "post_attention_layernorm.weight", (model.hidden,)
        yield at + "mlp.gate_proj.weight", (model.intermediate, model.hidden)
        yield at + "mlp.up_proj.weight", (model.intermediate, model.hidden)
        yield at + "mlp.down_proj.weight", (model.hidden, model.intermediate)
    yield "model.norm.weight", (model.hidden,)


def config_of(model):
    """What config.json says of a published Qwen3 of this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
        "num_hidden_layers": model.layers, "hidden_size": model.hidden,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim, "intermediate_size": model.intermediate,
        "vocab_size": model.vocab, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
    }


def weights_bytes(model):
    return 2 * elements(tensors_of(model))


def optimizer_bytes(model):
    """Of a job's memory for the optimizer: each tensor begins at a multiple of ALIGNMENT."""
    return len(STATES) * sum(-(-4 * math.prod(shape) // ALIGNMENT) * ALIGNMENT
                             for _, shape in tensors_of(model))


# What all trainers do


def device_of(options):
    return "cuda:0" if options.backend == "cuda" else "cpu"


def synchronize(device):
    import torch
    if device != "cpu":
        torch.cuda.synchronize()


def fill(weights, device):
    import torch
    generator = torch.Generator(device).manual_seed(1)
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.fill_(1)


def multiply(weights, number):
    """Step `number`: the weights change, and neither grow nor shrink however many steps follow."""
    for index, tensor in enumerate(weights.values()):
        tensor.mul_(-1 if tensor.dim() > 1 and (index + number) % 3 == 0 else 1)


def forward_and_backward(weights, activation_bytes, device):
    """The gradients. Activations live as long as this runs."""
    import torch
    activations = torch.zeros(activation_bytes, dtype=torch.uint8, device=device)
    gradients = [torch.zeros_like(tensor) for tensor in weights.values()]
    synchronize(device)
    del activations
    return gradients


def digest(weights):
    """Of all bits, so that all sides can be held against each other."""
    import torch
    sums = torch.stack([tensor.view(torch.int16).sum(dtype=torch.int64)
                        for tensor in weights.values()])
    return sum((place + 1) * one for place, one in enumerate(sums.tolist())) % (1 << 61)


def check_states(states, steps):
    """That the optimizer's state has come back: every step adds 1 to all of it."""
    import torch
    for state in states:
        found = state.flatten()[:: max(1, state.numel() // 7)]
        if not torch.equal(found, torch.full_like(found, steps)):
            raise RuntimeError(f"the optimizer's state is not that of step {steps}: {found}")


class OwnTrainer:
    """A trainer whose memory is PyTorch's. Its copies in pinned memory are kept from the first offload on."""

    def __init__(self, options, pipe):
        self.device = device_of(options)
        self.model = model_of(options)
        self.activation_bytes = options.activation_bytes
        self.pipe = pipe
        self.moved = dict.fromkeys(("to_host", "to_device", "written_on_device"), 0)
        self.host_weights, self.host_states = {}, [None] * len(STATES)

    def create(self):
        import torch
        self.weights = {name: torch.empty(shape, dtype=torch.bfloat16, device=self.device)
                        for name, shape in tensors_of(self.model)}
        fill(self.weights, self.device)
        count = elements(tensors_of(self.model))
        self.states = [torch.zeros(count, device=self.device) for _ in STATES]
        synchronize(self.device)

    def step(self, number):
        gradients = forward_and_backward(self.weights, self.activation_bytes, self.device)
        check_states(self.states, number)
        multiply(self.weights, number)
        for state in self.states:
            state.add_(1)
        del gradients
        self.moved = dict.fromkeys(self.moved, 0)
        return digest(self.weights)

    def _copy_out(self, tensor, host):
        """Into `host`, made first where there is none."""
        import torch
        if host is None:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device != "cpu")
        host.copy_(tensor, non_blocking=True)
        self.moved["to_host"] += tensor.nbytes
        return host

    def _copy_in(self, host):
        self.moved["to_device"] += host.nbytes
        return host.to(self.device, non_blocking=True, copy=True)

    def _give_back_cached(self):
        import torch
        synchronize(self.device)
        if self.device != "cpu":
            torch.cuda.ipc_collect()
            torch.cuda.empty_cache()

    def offload_optimizer(self):
        self.host_states = [self._copy_out(*pair)
                            for pair in zip(self.states, self.host_states, strict=True)]
        synchronize(self.device)
        self.states = []
        self._give_back_cached()

    def offload_weights(self):
        for name, tensor in self.weights.items():
            self.host_weights[name] = self._copy_out(tensor, self.host_weights.get(name))
        synchronize(self.device)
        self.weights = tensor = None
        self._give_back_cached()

    def take_back(self):
        self.weights = {name: self._copy_in(host) for name, host in self.host_weights.items()}
        self.states = [self._copy_in(host) for host in self.host_states]
        synchronize(self.device)

    def handles(self):
        """What vLLM's IPC engine asks for as update_info."""
        import torch
        from torch.multiprocessing.reductions import reduce_tensor
        gpu = str(torch.cuda.get_device_properties(0).uuid)
        # vLLM loads each layer into new tensors, and copies those into its own.
        self.moved["written_on_device"] += 2 * sum(one.nbytes for one in self.weights.values())
        return {"names": list(self.weights),
                "dtype_names": [str(one.dtype).split(".")[-1] for one in self.weights.values()],
                "shapes": [list(one.shape) for one in self.weights.values()],
                "ipc_handles": [{gpu: reduce_tensor(one)[1]} for one in self.weights.values()]}

    def send_weights(self):
        """Through one buffer, which the other process maps; it answers when it has read a bucket."""
        import torch
        bucket = torch.empty(BUCKET_BYTES, dtype=torch.uint8, device=self.device)
        self.pipe.send(bucket)
        for tensors in self._buckets():
            table, place = [], 0
            for name, tensor in tensors:
                view = bucket[place:place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                view.copy_(tensor)
                self.moved["written_on_device"] += 2 * tensor.nbytes  # Here, and by load_weights.
                table.append((name, tensor.dtype, tuple(tensor.shape), place, tensor.nbytes))
                place += tensor.nbytes
            synchronize(self.device)
            self.pipe.send(table)
            self.pipe.recv()
        self.pipe.send(None)
        self.pipe.recv()  # The other process has let the buffer go.
        del bucket, view
        self._give_back_cached()

    def _buckets(self):
        bucket, size = [], 0
        for name, tensor in self.weights.items():
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append((name, tensor))
            size += tensor.nbytes
        yield bucket

    def finish(self, steps):
        import torch
        check_states(self.states, steps)
        stats = torch.cuda.host_memory_stats() if self.device != "cpu" else {}
        return {"moved": self.moved, "digest": digest(self.weights),
                "host_bytes": stats.get("allocated_bytes.current")}


class AttachedTrainer:
    """A trainer whose memory is a job's. Everything is made there: nothing has to be moved in."""

    def __init__(self, options, _pipe):
        self.device = device_of(options)
        self.model = model_of(options)
        self.activation_bytes = options.activation_bytes
        self.job = options.job
        self.place = "cuda:0" if options.backend == "cuda" else "host:0"

    def attach(self):
        import torch
        import awex_colocate
        engine = self.engine = awex_colocate.attach(
            "trainer", self.job, device=self.place, timeout=PATIENCE_S,
            memory={"optimizer": optimizer_bytes(self.model)})
        self.module = module_of((name, torch.empty(shape, dtype=torch.bfloat16, device="meta"))
                                for name, shape in tensors_of(self.model))
        engine.adopt(self.module, copy=False)
        parameters = dict(self.module.named_parameters())
        self.weights = {name: parameters[name].data for name, _ in tensors_of(self.model)}
        fill(self.weights, self.device)
        self.states = [self._state(f"{name}.{kind}", shape)
                       for name, shape in tensors_of(self.model) for kind in STATES]
        synchronize(self.device)
        engine.seal(PATIENCE_S)

    def _state(self, name, shape):
        import torch
        state = self.engine.empty("optimizer", shape, torch.float32)
        offset = state.data_ptr() - self.engine.memory("optimizer").address
        self.engine.declare(name, "f32", 1, state.numel(), offset, "optimizer")
        return state.zero_()

    def _take_back(self):
        """The gradients, when and what the weights were there, and how long the optimizer's state took then."""
        self.engine.take_back(PATIENCE_S, optimizer=False)
        forward = time.monotonic()
        gradients = forward_and_backward(self.weights, self.activation_bytes, self.device)
        backward = time.monotonic()
        self.engine.take_back(PATIENCE_S)
        return gradients, {"forward": forward, "waited": time.monotonic() - backward}

    def cycle(self, number):
        """Takes its memory back, trains and hands over; returns the times of these."""
        import torch
        gradients, times = self._take_back()
        check_states(self.states, number)
        with self.engine.writing():
            multiply(self.weights, number)
            torch._foreach_add_(self.states, 1)
        del gradients
        found = digest(self.weights)
        stepped = time.monotonic()
        self.engine.hand_over(PATIENCE_S)
        return {**times, "stepped": stepped, "handed_over": time.monotonic(), "digest": found}

    def finish(self, steps):
        _, times = self._take_back()
        check_states(self.states, steps)
        size = sum(self.engine.memory(tag).bytes for tag in ("weights", "optimizer"))
        return {**times, "digest": digest(self.weights), "host_bytes": size,
                "moved": {"to_host": size, "to_device": size,
                          "written_on_device": weights_bytes(self.model)}}


def train(pipe, kind, options):
    """The child: does what it is told, by the name of a method, until it is told None."""
    import torch
    torch.set_grad_enabled(False)
    trainer = kind(options, pipe)
    while order := pipe.recv():
        name, *arguments = order
        pipe.send(getattr(trainer, name)(*arguments))
    end_at_once()


def end_at_once():
    """What engines do at their end is not measured, and may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Child:
    """The trainer's process."""

    def __init__(self, kind, options):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=train, args=(theirs, kind, options), daemon=True)
        self.process.start()
        theirs.close()  # So that its death ends every wait.

    def tell(self, *order):
        self.pipe.send(order)

    def answer(self):
        if not self.pipe.poll(PATIENCE_S):
            sys.exit(f"error: the trainer has not answered within {PATIENCE_S} s")
        try:
            return self.pipe.recv()
        except EOFError:
            sys.exit("error: the trainer has ended: its own error stands above")

    def ask(self, *order):
        self.tell(*order)
        return self.answer()

    def end(self):
        self.pipe.send(None)
        self.process.join(PATIENCE_S)
        if self.process.exitcode != 0:
            sys.exit(f"error: the trainer ended with {self.process.exitcode}")


# vLLM


#: CUDA graphs of whole steps of decoding; without vLLM's compiler, which takes longer than all the rest.
CAPTURED = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY",
                           "cudagraph_capture_sizes": [1, 2, 4, 8, 16]},
}


class Rollout:
    """A real vLLM with weights that mean nothing yet; on a GPU with CUDA graphs."""

    def __init__(self, options, **more):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.on_gpu = options.backend == "cuda"
        if self.on_gpu:
            os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        else:
            sys.path.append(str(HERE.parent / "examples/vllm_rl"))
            import unpacked  # noqa: F401  pylint: disable=unused-import,import-error
        import vllm
        self.version = vllm.__version__
        self.sampling = vllm.SamplingParams
        self.llm = vllm.LLM(
            model=options.vllm_model, skip_tokenizer_init=True, load_format="dummy",
            dtype="bfloat16", max_model_len=2048, max_num_seqs=16,
            max_num_batched_tokens=2048, gpu_memory_utilization=0.25, seed=0,
            kv_cache_memory_bytes=options.kv_cache_bytes, disable_log_stats=True,
            **(CAPTURED if self.on_gpu else {"enforce_eager": True}), **more)
        self.tokens(CHECKED_TOKENS)  # Whatever is compiled on first use is compiled here.

    def tokens(self, count):
        sampling = self.sampling(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        output, = self.llm.generate([PROMPT], sampling, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    def sleep(self):
        if self.on_gpu:
            self.llm.sleep(level=2)

    def wake_up(self, tag):
        if self.on_gpu:
            self.llm.wake_up(tags=[tag])


def rest(options):
    """Rollouts: long enough that GPU memory of this time is seen."""
    time.sleep(options.rollout_s)


class Laps:
    """Seconds of one step after the other."""

    def __init__(self):
        self.seconds = {}
        self.begin = self.last = time.monotonic()

    def end(self, name):
        now = time.monotonic()
        self.seconds[name] = now - self.last
        self.last = now

    @property
    def whole(self):
        return self.last - self.begin


def transfer_by_ipc(rollout, child, laps):
    import torch
    info = child.ask("handles")
    laps.end("handles")
    rollout.llm.start_weight_update()
    rollout.llm.update_weights({"update_info": info})
    rollout.llm.finish_weight_update()
    torch.cuda.synchronize()
    laps.end("update")


def transfer_by_load_weights(rollout, child, laps):
    child.tell("send_weights")
    bucket = child.answer()
    while (table := child.answer()) is not None:
        weights = [(name, bucket[place:place + size].view(dtype).view(shape))
                   for name, dtype, shape, place, size in table]
        rollout.llm.apply_model(lambda model, weights=weights: bool(model.load_weights(weights)))
        synchronize("cuda" if rollout.on_gpu else "cpu")
        child.pipe.send(True)
    del bucket, weights
    child.pipe.send(True)
    child.answer()
    laps.end("update")


def run_asleep(options, transfer, **more):
    """A vLLM that sleeps while the trainer has the GPU; one after the other does its part, as a controller of
    both would have it."""
    child = Child(OwnTrainer, options)
    rollout = Rollout(options, enable_sleep_mode=options.backend == "cuda", **more)
    rollout.sleep()
    child.ask("create")
    if transfer is transfer_by_ipc:
        rollout.llm.init_weight_transfer_engine({"init_info": {}})
    cycles = []
    for number in range(options.cycles):
        trains = time.monotonic()
        found = child.ask("step", number)
        laps = Laps()
        child.ask("offload_optimizer")
        laps.end("offload optimizer")
        rollout.wake_up("weights")
        laps.end("wake weights")
        transfer(rollout, child, laps)
        child.ask("offload_weights")
        laps.end("offload weights")
        rollout.wake_up("kv_cache")
        laps.end("wake KV cache")
        rollout.llm.reset_prefix_cache()
        first = rollout.tokens(1)
        laps.end("first token")
        more = time.monotonic()
        tokens = rollout.tokens(CHECKED_TOKENS)
        more = time.monotonic() - more
        rest(options)
        back = Laps()
        rollout.sleep()
        back.end("sleep")
        child.ask("take_back")
        back.end("trainer back")
        cycles.append({
            "digest": found, "first": first, "tokens": tokens, "to_first_token": laps.whole,
            "more": more, "back": back.whole, "forward": back.whole, "steps": {**laps.seconds, **back.seconds},
            "begin": trains, "rollout": back.begin, "end": back.last})
        print("cycle", number, json.dumps(cycles[-1]), flush=True)
    last = child.ask("finish", options.cycles)
    child.end()
    return {"cycles": cycles, **last, "vllm": rollout.version}


def stand_in_for_ray():
    """vLLM's IPC engine imports Ray, and uses it only to reach a vLLM in a Ray actor."""
    try:
        import ray  # noqa: F401  pylint: disable=unused-import
    except ImportError:
        ray = types.ModuleType("ray")
        ray.get, ray.ObjectRef, ray.__spec__ = (lambda one: one), object, None
        sys.modules["ray"] = ray


def run_ipc(options):
    stand_in_for_ray()
    return run_asleep(options, transfer_by_ipc, weight_transfer_config={"backend": "ipc"})


def run_load(options):
    return run_asleep(options, transfer_by_load_weights)


def run_ours(options):
    """Both attached: each says when it is done with its memory, and the job moves it."""
    import awex_colocate.vllm as plugin
    child = Child(AttachedTrainer, options)
    how = {"weight_transfer_config": {"backend": "awex"}}
    if options.backend == "cuda":  # It attaches while it loads: CUDA graphs have the job's addresses.
        os.environ.update(AWEX_COLOCATE_JOB=options.job, AWEX_COLOCATE_TIMEOUT=str(PATIENCE_S))
        how["enable_sleep_mode"] = not options.kv_cache_stays
    plugin.register()  # vLLM does so itself where the wheel is installed.
    child.tell("attach")
    rollout = Rollout(options, **how)
    plugin.attach(rollout.llm, options.job, kv_cache=not options.kv_cache_stays, timeout=PATIENCE_S)
    child.answer()
    time.sleep(options.first_step_s)
    cycles, asked = [], []
    for number in range(options.cycles):
        asked.append(time.monotonic())
        child.tell("cycle", number)
        plugin.update(rollout.llm, timeout=PATIENCE_S)
        served = time.monotonic()
        first = rollout.tokens(1)
        token = time.monotonic()
        tokens = rollout.tokens(CHECKED_TOKENS)
        more = time.monotonic() - token
        trainer = child.answer()
        rest(options)
        if cycles:
            end_cycle(cycles[-1], asked[-1], trainer)
        cycles.append({
            "digest": trainer["digest"], "first": first, "tokens": tokens, "more": more,
            "to_first_token": token - trainer["stepped"], "begin": trainer["forward"],
            "steps": {"until vLLM serves": served - trainer["stepped"],
                      "until hand_over has returned": trainer["handed_over"] - trainer["stepped"],
                      "first token": token - served}})
        print("cycle", number, json.dumps(cycles[-1]), flush=True)
    asked.append(time.monotonic())
    child.tell("finish", options.cycles)
    plugin.release(rollout.llm, timeout=PATIENCE_S)
    last = child.answer()
    end_cycle(cycles[-1], asked[-1], last)
    child.end()
    return {"cycles": cycles, **last, "vllm": rollout.version}


def end_cycle(cycle, asked, trainer):
    """`asked`: when vLLM was done; `trainer`: the times of its take-back."""
    forward, waited = trainer["forward"] - asked, trainer["waited"]
    cycle.update(forward=forward, back=forward + waited, rollout=asked, end=trainer["forward"])
    cycle["steps"].update({"weights back": forward, "optimizer back": waited})


def main():
    options = types.SimpleNamespace(**json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8")))
    run = {"ipc": run_ipc, "load": run_load, "ours": run_ours, "tight": run_ours}[options.side]
    result = run(options)
    pathlib.Path(sys.argv[2]).write_text(json.dumps(result) + "\n", encoding="utf-8")
    end_at_once()


if __name__ == "__main__":
    main()
