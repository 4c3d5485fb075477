"""A resident job that engines attach to, the processes that play them (engine_process.py), and models in numpy as
engines hold them."""

import glob
import json
import os
import re
import select
import subprocess
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]
# pylint: disable=wrong-import-position
from resident_job import text_of, wait_until  # noqa: E402
from sessions import kill_session  # noqa: E402

OK, FAILED, WRONG, MISMATCH, DEADLINE, LOST = range(6)
MIB = 1 << 20

# The shape of preset:tiny-dense, as its family publishes it.
HIDDEN, HEADS, KV_HEADS, HEAD, MLP, LAYERS, VOCABULARY = 96, 24, 12, 32, 192, 12, 1129


class Programs:
    """Where they are; set by the test's arguments."""
    mpiexec = binary = library = ""
    faulty = ""  # faulty_job, where a test wants one


class Answer(Exception):
    """A call of the library that failed. Status -1: its process is gone; -2: it has not returned in time."""

    def __init__(self, status, text):
        super().__init__(f"status {status}: {text}")
        self.status, self.text = status, text


class Player:
    """An engine's process."""

    def __init__(self, job, role, device=0, name=None, optimizer=MIB, kv_cache=MIB, weights=0, environment=None,
                 errors=None, asks=None, **named):
        """`job`: a Job, or a directory; None names none. `errors`: a file that takes what it says on stderr. `asks`:
        bytes by tag in place of what its role has."""
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, "engine_process.py"), Programs.library],
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                        env={**os.environ, **(environment or {})})
        self.role, self.device = role, device
        self.name = name or f"a {role}"
        self.bytes = asks or ((weights, optimizer, 0) if role == "trainer" else (weights, 0, kv_cache))
        directory = job.directory if isinstance(job, Job) else job
        self.begin("attach", directory, role, device, name=self.name, bytes=self.bytes, **named)

    def begin(self, do, *arguments, **named):
        self.process.stdin.write(json.dumps({"do": do, "with": arguments, "and": named}) + "\n")
        self.process.stdin.flush()

    def answers_within(self, limit_s):
        return bool(select.select([self.process.stdout], [], [], max(limit_s, 0))[0])

    def end(self, limit_s=None):
        if limit_s is not None and not self.answers_within(limit_s):
            raise Answer(-2, f"{self.name} has not answered in {limit_s:.1f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Answer(-1, f"{self.name} is gone")
        answer = json.loads(line)
        if "status" in answer:
            raise Answer(answer["status"], answer["error"])
        return answer["result"]

    def do(self, what, *arguments, **named):
        self.begin(what, *arguments, **named)
        return self.end()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def hand_over(trainers, servers, newer_than):
    """All engines of a job take part; the versions that they tell."""
    for player in servers:
        player.begin("wait", newer_than)
    for player in trainers:
        player.begin("hand_over")
    return [player.end() for player in trainers + servers]


def take_back(trainers, servers, call="take_back"):
    for player in servers:
        player.begin("release")
    for player in trainers:
        player.begin(call)
    for player in trainers + servers:
        player.end()


class Job:
    """`serve` with engines to come."""

    def __init__(self, scratch, ranks, *options, trainer="hf", inference="hf", attach="trainer,inference",
                 timeout="30s", name="job", fault=None, environment=None, backend="host",
                 open_files=None):
        """On `cuda` a trainer and an inference rank share each GPU, and players attach with its `backend`.
        `open_files`: the limits as prlimit(1) wants them."""
        self.directory, self.backend = os.path.join(scratch, name), backend
        self.log, self.errors = os.path.join(scratch, f"{name}.log"), os.path.join(scratch, f"{name}.errors")
        serve = [Programs.faulty] if fault else [Programs.binary, "serve"]
        limit = ["prlimit", f"--nofile={open_files}"] if open_files else []
        command = [*limit, Programs.mpiexec, "--oversubscribe", "-n", str(ranks), *serve, "--job", self.directory, 
                   "--model", "preset:tiny-dense", "--trainer", trainer, "--inference", inference, "--backend", backend,
                   "--limits", "off", "--timeout", timeout, "--attach", attach, "--attach-timeout", "60s", *options]
        environment = {**os.environ, **(environment or {}), **({"AWEX_FAULT": fault} if fault else {})}
        with open(self.log, "w", encoding="utf-8") as log, open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=errors, env=environment)

    def serves(self):
        wait_until(lambda: " serving " in text_of(self.log) or self.process.poll() is not None, 60, "the job serves")
        assert self.process.poll() is None, text_of(self.errors)

    def client(self, command, *options):
        return subprocess.run([Programs.binary, command, "--job", self.directory, *options], text=True,
                              capture_output=True, check=False, timeout=90)

    def status(self):
        return json.loads(self.client("status", "--json", "-").stdout)

    def status_at_rest(self):
        """Engines hear of a command's end before it tells of it."""
        told = []
        wait_until(lambda: told.append(self.status()) or told[-1]["activity"] == "idle", 20, "the job rests")
        return told[-1]

    def rank_pids(self):
        return [rank["pid"] for rank in self.status()["ranks"]]

    def private_directories(self):
        """Of its sockets, the doors' and the job's."""
        records = [os.path.join(self.directory, "job.json"), *glob.glob(os.path.join(self.directory, "engines", "*.json"))]
        return sorted(os.path.dirname(json.loads(text_of(path))["socket"]) for path in records)

    def end(self):
        kill_session(self.process.pid)
        self.process.wait()


def usage_of(pid):
    """What a process holds: memory of its own, its share of what is shared but for files, which depends on who else
    has loaded them, and the job's memory that it maps, in kB; descriptors, threads."""
    rollup = text_of(f"/proc/{pid}/smaps_rollup")
    kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
    mapped = re.findall(r"^(\w+)-(\w+) .*/memfd:awex", text_of(f"/proc/{pid}/maps"), re.MULTILINE)
    return {"anonymous_kb": kilobytes["Anonymous"], "pss_kb": kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"],
            "memfd_kb": sum(int(end, 16) - int(begin, 16) for begin, end in mapped) >> 10,
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task"))}


def canonical(seed):
    """A model as it is published, of random bits."""
    draw = np.random.default_rng(seed)
    rows = lambda *shape: draw.integers(0, 0x3f80, size=shape, dtype=np.uint16)  # noqa: E731
    layers = [dict(q=rows(HEADS * HEAD, HIDDEN), k=rows(KV_HEADS * HEAD, HIDDEN), v=rows(KV_HEADS * HEAD, HIDDEN),
                   o=rows(HIDDEN, HEADS * HEAD), gate=rows(MLP, HIDDEN), up=rows(MLP, HIDDEN), down=rows(HIDDEN, MLP),
                   norm1=rows(HIDDEN), norm2=rows(HIDDEN), q_norm=rows(HEAD), k_norm=rows(HEAD))
              for _ in range(LAYERS)]
    return dict(embed=rows(VOCABULARY, HIDDEN), head=rows(VOCABULARY, HIDDEN), norm=rows(HIDDEN), layers=layers)


def part(array, rank, ranks, axis=0):
    return np.split(array, ranks, axis)[rank]


def padded(array, multiple, value):
    rows = -(-array.shape[0] // multiple) * multiple
    return np.concatenate([array, np.full((rows - array.shape[0], array.shape[1]), value, np.uint16)])


def as_megatron(model, rank, ranks):
    """What a rank of Megatron holds: groups of a key head's queries, key and value lie together."""
    held = {"embedding.word_embeddings.weight": part(padded(model["embed"], 128 * ranks, 77), rank, ranks),
            "output_layer.weight": part(padded(model["head"], 128 * ranks, 78), rank, ranks),
            "decoder.final_layernorm.weight": model["norm"]}
    for number, layer in enumerate(model["layers"]):
        name = f"decoder.layers.{number}."
        groups = np.concatenate([layer["q"].reshape(KV_HEADS, -1, HIDDEN), layer["k"].reshape(KV_HEADS, -1, HIDDEN),
                                 layer["v"].reshape(KV_HEADS, -1, HIDDEN)], axis=1)
        held.update({name + "self_attention.linear_qkv.layer_norm_weight": layer["norm1"],
                     name + "self_attention.linear_qkv.weight": part(groups, rank, ranks).reshape(-1, HIDDEN),
                     name + "self_attention.q_layernorm.weight": layer["q_norm"],
                     name + "self_attention.k_layernorm.weight": layer["k_norm"],
                     name + "self_attention.linear_proj.weight": part(layer["o"], rank, ranks, 1),
                     name + "mlp.linear_fc1.layer_norm_weight": layer["norm2"],
                     name + "mlp.linear_fc1.weight": np.concatenate([part(layer["gate"], rank, ranks),
                                                                     part(layer["up"], rank, ranks)]),
                     name + "mlp.linear_fc2.weight": part(layer["down"], rank, ranks, 1)})
    return held


def as_vllm(model, rank, ranks):
    held = {"model.embed_tokens.weight": part(padded(model["embed"], 64 * ranks, 0), rank, ranks),
            "lm_head.weight": part(padded(model["head"], 64 * ranks, 0), rank, ranks),
            "model.norm.weight": model["norm"]}
    for number, layer in enumerate(model["layers"]):
        name = f"model.layers.{number}."
        held.update({name + "input_layernorm.weight": layer["norm1"],
                     name + "self_attn.qkv_proj.weight": np.concatenate([part(layer[one], rank, ranks)
                                                                         for one in ("q", "k", "v")]),
                     name + "self_attn.q_norm.weight": layer["q_norm"],
                     name + "self_attn.k_norm.weight": layer["k_norm"],
                     name + "self_attn.o_proj.weight": part(layer["o"], rank, ranks, 1),
                     name + "post_attention_layernorm.weight": layer["norm2"],
                     name + "mlp.gate_up_proj.weight": np.concatenate([part(layer["gate"], rank, ranks),
                                                                       part(layer["up"], rank, ranks)]),
                     name + "mlp.down_proj.weight": part(layer["down"], rank, ranks, 1)})
    return held


E4M3 = np.array([(1 + code % 8 / 8) * 2.0 ** (code // 8 - 7) if code >= 8 else code / 8 * 2.0 ** -6
                 for code in range(0x7f)])  # the positive ones; NaN follows


def quantised(bits, block):
    """A matrix of bf16 in fp8 (e4m3) as DeepSeek-V3 and Qwen3-FP8 are published: bits, and those of each block's scale."""
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    blocks = values.reshape(values.shape[0] // block, block, -1, block)
    scales = np.maximum(np.abs(blocks).max(axis=(1, 3)), np.float32(1e-4)) / np.float32(448)
    wanted = (blocks / scales[:, None, :, None]).reshape(values.shape).astype(np.float64)
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    below = np.searchsorted(middles, np.abs(wanted))  # a tie goes to the even one
    is_tie = np.abs(wanted) == np.append(middles, np.inf)[below]
    codes = (below + (is_tie & (below % 2 == 1))).astype(np.uint8)
    return codes | (np.signbit(wanted).astype(np.uint8) << 7), scales.view(np.uint32)


def as_fp8_vllm(model, rank, ranks, block=32):
    """As vLLM, its projections in fp8."""
    layers = [{name: quantised(bits, block) if bits.ndim == 2 else (bits, bits) for name, bits in layer.items()}
              for layer in model["layers"]]
    codes, scales = (as_vllm({**model, "layers": [{name: pair[which] for name, pair in layer.items()} for layer in layers]},
                             rank, ranks) for which in range(2))
    held = as_vllm(model, rank, ranks)
    for name in [name for name in held if name.endswith("_proj.weight")]:
        held[name], held[name + "_scale_inv"] = codes[name], scales[name]
    return held
