"""An engine of plain Python for the batch file of examples/slurm, which starts it for each GPU, and again when it
fails.

usage: plain_engine.py trainer|inference [--steps N] [--ends-on-sigterm] [--exits-at N --code N]

The trainer writes bytes that anyone can tell from a version; one that is started again goes on from what the job's memory
holds. An inference engine of the same layout proves
that they are what it serves; one of another layout leaves that to the job. Lines of JSON say where the engine
is, and each version.
"""

import argparse
import json
import multiprocessing.connection
import os
import random
import signal
import socket
import sys
import time

import awex_colocate


def content(tensor, version):
    """The same for all who hold the whole tensor, or as many rows of it."""
    return random.Random(f"{tensor.name} {version}").randbytes(tensor.bytes) if version else bytes(tensor.bytes)


def tell(**facts):
    print(json.dumps(facts), flush=True)


class Agreement:
    """Ranks that train together wait for each other, and the first one's word holds for all: a signal reaches each in a
    step of its own. What an all-reduce does in a real trainer, at the address that it would use."""

    LIMIT_S = 60

    def __init__(self):
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        ranks = int(os.environ["WORLD_SIZE"])
        if os.environ["RANK"] == "0":
            with multiprocessing.connection.Listener(address, backlog=ranks) as listener:
                self.others = [listener.accept() for _ in range(1, ranks)]
            self.first = None
        else:
            self.others, self.first = [], self.connect(address)

    def connect(self, address):
        end = time.monotonic() + self.LIMIT_S
        while True:
            try:
                return multiprocessing.connection.Client(address)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def meet(self, word=None):
        """Returns what the first rank has said, once all have come."""
        if self.first:
            self.first.send(word)
            return self.first.recv()
        for other in self.others:
            other.recv()
        for other in self.others:
            other.send(word)
        return word


class Player:
    def __init__(self, options):
        self.options = options
        self.told_to_end = False
        if options.ends_on_sigterm:
            signal.signal(signal.SIGTERM, self.note_end)
        self.engine = awex_colocate.attach(options.role, os.environ["AWEX_COLOCATE_JOB"],
                                           memory={"optimizer": 1000} if options.role == "trainer" else {"kv_cache": 1000},
                                           restart_timeout=60)
        place = self.engine.place
        tell(role=options.role, rank=int(os.environ["RANK"]), ranks=int(os.environ["WORLD_SIZE"]),
             role_rank=place.role_rank, host=socket.gethostname(), place=place.host,
             master=os.environ["MASTER_ADDR"], port=os.environ["MASTER_PORT"], gpus=os.environ["CUDA_VISIBLE_DEVICES"],
             pid=os.getpid(), reattached=place.reattached)
        self.view = self.engine.memory("weights").view()
        for tensor in self.engine.layout():
            self.engine.declare(tensor.name, tensor.dtype, tensor.rows, tensor.cols, tensor.offset)
        if not place.reattached and self.engine.memory("weights").is_mapped:
            self.put(0)
        self.engine.seal()

    def note_end(self, *_):
        self.told_to_end = True

    def put(self, version):
        for tensor in self.engine.layout():
            self.view[tensor.offset:tensor.offset + tensor.bytes] = content(tensor, version)

    def must_hold(self, version):
        for tensor in self.engine.layout():
            if self.view[tensor.offset:tensor.offset + tensor.bytes] != content(tensor, version):
                sys.exit(f"{tensor.name} is not that of version {version}")

    def train(self):
        agreement = Agreement()
        self.engine.take_back()
        agreement.meet()  # At once for those alone whose memory was there.
        done = int(self.engine.kept() or 0)
        self.must_hold(done)
        for step in range(self.engine.place.version + 1, self.options.steps + 1):
            if step > done:
                with self.engine.writing():
                    self.put(step)
                    self.engine.keep(b"%d" % step)
            version = self.engine.hand_over()
            if version != step:
                sys.exit(f"version {version} is not {step}")
            self.engine.take_back()
            self.must_hold(step)
            self.done(step)
            if agreement.meet(self.told_to_end):
                return

    def serve(self):
        while True:
            version = self.engine.wait()
            if self.engine.place.layout == "hf":
                self.must_hold(version)
            self.done(version)

    def done(self, version):
        tell(version=version)
        if self.options.exits_at and version % self.options.exits_at == 0:
            sys.exit(self.options.code)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("trainer", "inference"))
    parser.add_argument("--steps", type=int, default=100000)
    parser.add_argument("--ends-on-sigterm", action="store_true")
    parser.add_argument("--exits-at", type=int, default=0, help="each version that it divides")
    parser.add_argument("--code", type=int, default=0)
    player = Player(parser.parse_args())
    (player.train if player.options.role == "trainer" else player.serve)()
    if player.options.ends_on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else Python's own end lets another kill it
    player.engine.close()


if __name__ == "__main__":
    main()
