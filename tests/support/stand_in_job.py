"""A resident job as its clients see it: a job directory, a socket, and answers that a test gives."""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading


def phase(name, role="all", tag=None, seconds=None, size=0):
    return {"event": "phase", "phase": name, "role": role, "tag": tag, "seconds": seconds, "bytes": size}


def done(exit_code=0, **what):
    nothing = {"error": None, "table": None, "json": None, "trace": None, "status": None}
    return {"event": "done", "exit_code": exit_code, **nothing, **what}


def error(code, message, hint=None, **context):
    nothing = {key: None for key in ("rank", "host", "gpu", "role", "phase", "tag", "tensor")}
    return {"code": code, **nothing, **context, "message": message, "hint": hint}


class Visit:
    """A client's connection, with what it has asked."""

    def __init__(self, connection):
        self.connection = connection
        self.gone = threading.Event()
        line = b""
        while not line.endswith(b"\n"):
            piece = connection.recv(65536)
            if not piece:
                raise EOFError("the client has left")
            line += piece
        self.request = json.loads(line)

    def say(self, *events):
        for event in events:
            self.connection.sendall(json.dumps(event).encode() + b"\n")

    def await_leaving(self):
        if not self.connection.recv(1):
            self.gone.set()


class StandInJob:
    """Serves at `directory` until its end; `answer` is called with each Visit in a thread of its own."""

    def __init__(self, directory, answer):
        os.makedirs(directory, exist_ok=True)
        self.directory, self.answer, self.visits = directory, answer, []
        self.private = tempfile.mkdtemp(prefix="awex-colocate-", dir="/tmp")
        self.lock = os.open(self.private, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        path = os.path.join(self.private, "socket")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen()
        self.record = {"schema_version": 1, "host": socket.gethostname(), "boot_id": None, "pid": os.getpid(),
                       "socket": path, "build": "0.0.0+test", "started_at": "2026-01-02T03:04:05Z",
                       "ended_at": None, "end": None, "exit_code": None}
        self.write_record()
        threading.Thread(target=self.serve, daemon=True).start()

    def remove(self):
        self.close()
        shutil.rmtree(self.private, ignore_errors=True)

    def write_record(self):
        path = os.path.join(self.directory, "job.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.record, file)
        os.replace(path + ".new", path)

    def serve(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.receive, args=(connection,), daemon=True).start()

    def receive(self, connection):
        with connection:
            try:
                visit = Visit(connection)
                self.visits.append(visit)
                self.answer(visit)
            except OSError:
                pass  # the client has left, which is for the test to judge

    @property
    def requests(self):
        return [visit.request for visit in self.visits]

    def close(self):
        """Ends without a word, as if it were killed."""
        if self.lock is None:
            return
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        os.close(self.lock)
        self.lock = None
        for visit in self.visits:
            try:
                visit.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def end(self, how, exit_code):
        """Ends as a job does that can say how."""
        self.record.update(ended_at="2026-01-02T04:00:00Z", end=how, exit_code=exit_code)
        self.write_record()
        self.close()
