"""Engines of plain Python and a real job of two GPUs: engines_test.py MPIRUN PROGRAM. AWEX_COLOCATE_LIBRARY is the
library. Two trainers, copies of each other, write weights that only they can know; what inference serves must be
those. Inference is one process that attaches for each GPU, and waits for each in a thread of its own."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import awex_colocate
from awex_colocate import EngineLost, WrongRequest

UPDATES, GPUS = 3, 2
KV_BYTES, OPTIMIZER_BYTES = 100_000, 300_000


def declare_all(engine):
    for place in engine.layout():
        engine.declare(place.name, place.dtype, place.rows, place.cols, place.offset)


def expect(found, want, what):
    if found != want:
        sys.exit(f"{what}: {found!r}, expected {want!r}")


def digests(engine):
    view = engine.memory("weights").view()
    return {t.name: hashlib.sha1(view[t.offset : t.offset + t.bytes]).hexdigest() for t in engine.layout()}


def trainer(job, work, gpu):
    engine = awex_colocate.attach("trainer", job, device=f"host:{gpu}", memory={"optimizer": OPTIMIZER_BYTES})
    calls = []
    engine.before_release(lambda tag, version: calls.append(f"-{tag}"))

    @engine.after_resume
    def resumed(tag, version):
        calls.append(f"+{tag}")

    expect(engine.place.backend, "host", "backend")
    expect(engine.place.reattached, False, "reattached")
    expect(engine.place.role_rank, gpu, "place")
    expect(engine.memory("optimizer").bytes >= OPTIMIZER_BYTES, True, "optimizer's bytes")
    weights, optimizer = engine.memory("weights").view(), engine.memory("optimizer").view()
    addresses = [engine.memory(tag).address for tag in ("weights", "optimizer")]

    try:  # A tensor is missing.
        for place in engine.layout()[1:]:
            engine.declare(place.name, place.dtype, place.rows, place.cols, place.offset)
        engine.seal()
        sys.exit("sealed although a tensor is missing")
    except WrongRequest as error:
        expect(engine.layout()[0].name in str(error), True, str(error))
    state = os.urandom(OPTIMIZER_BYTES)
    optimizer[:OPTIMIZER_BYTES] = state
    weights[:] = bytes(len(weights))
    declare_all(engine)
    engine.declare("moments", "f32", 1, 1000, 0, "optimizer")
    engine.seal()
    unknown = random.Random((work / "seed").read_text())
    for version in range(1, UPDATES + 1):
        if version > 1:  # The first is what both have at first: zeros.
            with engine.writing():
                for place in engine.layout():
                    block = unknown.randbytes(min(place.bytes, 1 << 16))
                    weights[place.offset : place.offset + len(block)] = block
        want = digests(engine)
        expect(engine.hand_over(keep=b"step %d" % version), version, "version")
        expect([engine.memory(tag).is_mapped for tag in ("weights", "optimizer")], [False, False], "mapped")
        (work / f"{gpu}-{version}.part").write_text(repr(want))
        (work / f"{gpu}-{version}.part").rename(work / f"{gpu}-{version}.want")
        engine.take_back()
        expect(digests(engine), want, "weights after they have come back")
        expect(bytes(optimizer[:OPTIMIZER_BYTES]), state, "optimizer after it has come back")
    expect([engine.memory(tag).address for tag in ("weights", "optimizer")], addresses, "addresses")
    expect(sorted(calls[:4]), ["+optimizer", "+weights", "-optimizer", "-weights"], "hooks")
    (work / f"{gpu}-end").touch()
    try:
        engine.ready(timeout=60)
        sys.exit("the job has ended, and nobody said so")
    except (EngineLost, awex_colocate.Failed):
        pass
    engine.close()
    try:
        engine.layout(), engine.memory("weights").address
        sys.exit("a closed engine answers")
    except WrongRequest:
        pass


def inference(job, work):
    threads = [threading.Thread(target=serve_or_end, args=(job, work, gpu)) for gpu in range(GPUS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def serve_or_end(*arguments):
    try:
        serve(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # The other thread would wait for what does not come.


def serve(job, work, gpu):
    changes = []
    with awex_colocate.attach(
        "inference", job, device=f"host:{gpu}", memory={"kv_cache": KV_BYTES}, weights_changed=changes.append
    ) as engine:
        expect(engine.place.role_rank, gpu, "place")
        memory = engine.memory("weights")
        expect(memory.is_mapped, True, "weights are mapped, to be admitted")
        view = memory.view()
        view[:] = bytes(len(view))  # As the trainer has them.
        declare_all(engine)
        cache = engine.memory("kv_cache")
        expect(cache.is_mapped, False, "a KV cache before the first version")
        cache.map_placeholder()
        cache.view()[:KV_BYTES] = os.urandom(KV_BYTES)
        address = cache.alloc(1000)
        engine.seal()
        expect(cache.is_mapped, False, "the placeholder is gone")
        for version in range(1, UPDATES + 1):
            expect(engine.wait(), version, "version")
            want = work / f"{gpu}-{version}.want"
            while not want.exists():
                time.sleep(0.01)
            expect(digests(engine), eval(want.read_text()), f"weights of version {version}")
            expect(cache.address, address, "where the KV cache is")
            cache.view()[:KV_BYTES] = bytes(KV_BYTES)
        engine.release()
        expect(memory.is_mapped, False, "released")
    expect(changes, list(range(1, UPDATES + 1)), "weights_changed")


def main(mpirun, program):
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = work / "job"
        me = [sys.executable, __file__]
        commands = [
            [mpirun, "--oversubscribe", "--bind-to", "none", "-np", str(2 * GPUS), program, "serve", "--job", str(job),
             "--model", "preset:tiny-dense", "--trainer", "hf", "--inference", "hf", "--backend", "host",
             "--attach", "trainer,inference"],
            [*me, "inference", str(job), str(work)],
            *([*me, "trainer", str(job), str(work), str(gpu)] for gpu in range(GPUS)),
        ]  # fmt: skip
        (work / "seed").write_text(os.urandom(8).hex())
        processes = [subprocess.Popen(command, start_new_session=True) for command in commands]
        try:
            ends = [work / f"{gpu}-end" for gpu in range(GPUS)]
            while not all(end.exists() for end in ends) or processes[1].poll() is None:
                for process in processes:
                    if process.poll() not in (None, 0):
                        sys.exit(f"{process.args[:3]} ended with {process.returncode}")
                time.sleep(0.05)
            subprocess.run([program, "stop", "--job", str(job)], check=True)
            expect([process.wait(60) for process in processes], [0] * len(processes), "exit codes")
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    print("ok")


if sys.argv[1] == "trainer":
    trainer(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
elif sys.argv[1] == "inference":
    inference(sys.argv[2], Path(sys.argv[3]))
else:
    main(*sys.argv[1:])
