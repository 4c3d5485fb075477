"""Two engines of plain Python and a real job: engines_test.py MPIRUN PROGRAM. AWEX_COLOCATE_LIBRARY is the
library. A trainer writes weights that only it can know; what inference serves must be those."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import awex_colocate
from awex_colocate import EngineLost, WrongRequest

UPDATES = 3
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


def trainer(job, work):
    engine = awex_colocate.attach("trainer", job, device="host:0", memory={"optimizer": OPTIMIZER_BYTES})
    calls = []
    engine.before_release(lambda tag, version: calls.append(f"-{tag}"))

    @engine.after_resume
    def resumed(tag, version):
        calls.append(f"+{tag}")

    expect(engine.place.backend, "host", "backend")
    expect(engine.place.reattached, False, "reattached")
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
    for version in range(1, UPDATES + 1):
        if version > 1:  # The first is what both have at first: zeros.
            with engine.writing():
                for place in engine.layout():
                    block = os.urandom(min(place.bytes, 1 << 16))
                    weights[place.offset : place.offset + len(block)] = block
        want = digests(engine)
        expect(engine.hand_over(keep=b"step %d" % version), version, "version")
        expect([engine.memory(tag).is_mapped for tag in ("weights", "optimizer")], [False, False], "mapped")
        (work / f"{version}.part").write_text(repr(want))
        (work / f"{version}.part").rename(work / f"{version}.want")
        engine.take_back()
        expect(digests(engine), want, "weights after they have come back")
        expect(bytes(optimizer[:OPTIMIZER_BYTES]), state, "optimizer after it has come back")
    expect([engine.memory(tag).address for tag in ("weights", "optimizer")], addresses, "addresses")
    expect(sorted(calls[:4]), ["+optimizer", "+weights", "-optimizer", "-weights"], "hooks")
    (work / "end").touch()
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
    changes = []
    with awex_colocate.attach(
        "inference", job, device="host:0", memory={"kv_cache": KV_BYTES}, weights_changed=changes.append
    ) as engine:
        memory = engine.memory("weights")
        expect(memory.is_mapped, True, "weights are mapped, to be admitted")
        view = memory.view()
        view[:] = bytes(len(view))  # As the trainer has them.
        declare_all(engine)
        engine.seal()
        for version in range(1, UPDATES + 1):
            expect(engine.wait(), version, "version")
            want = work / f"{version}.want"
            while not want.exists():
                time.sleep(0.01)
            expect(digests(engine), eval(want.read_text()), f"weights of version {version}")
            cache = engine.memory("kv_cache").view()
            cache[:KV_BYTES] = bytes(KV_BYTES)
        engine.release()
        expect(memory.is_mapped, False, "released")
    expect(changes, list(range(1, UPDATES + 1)), "weights_changed")


def main(mpirun, program):
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = work / "job"
        me = [sys.executable, __file__]
        commands = [
            [mpirun, "--oversubscribe", "--bind-to", "none", "-np", "2", program, "serve", "--job", str(job),
             "--model", "preset:tiny-dense", "--trainer", "hf", "--inference", "hf", "--backend", "host",
             "--attach", "trainer,inference"],
            [*me, "trainer", str(job), str(work)],
            [*me, "inference", str(job), str(work)],
        ]  # fmt: skip
        processes = [subprocess.Popen(command, start_new_session=True) for command in commands]
        try:
            while not (work / "end").exists() or processes[2].poll() is None:
                for process in processes:
                    if process.poll() not in (None, 0):
                        sys.exit(f"{process.args[:3]} ended with {process.returncode}")
                time.sleep(0.05)
            subprocess.run([program, "stop", "--job", str(job)], check=True)
            expect([process.wait(60) for process in processes], [0, 0, 0], "exit codes")
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    print("ok")


if sys.argv[1] in ("trainer", "inference"):
    {"trainer": trainer, "inference": inference}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
else:
    main(*sys.argv[1:])
