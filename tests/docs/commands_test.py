"""Runs the commands that README.md and docs/*.md tell readers to type, as they stand there.

usage: commands_test.py SOURCE_FOLDER BUILD_FOLDER MPIEXEC

A fenced block is a block of commands where its language is sh, bash, shell or console, or where it has no language and
a line in it begins with a program's name, with or without "$ ". Blocks of one document run in one folder, in their order;
each must end with exit code 0. In blocks with "$ ", the other lines are output. What CI has not is marked in the line
before the block:

    <!-- not run: REASON -->

and so, without a mark, are blocks that use a program of ELSEWHERE or something of OTHER_MACHINES.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path()
BUILD = pathlib.Path()
MPIEXEC = ""
SHELLS = ("sh", "bash", "shell", "console")
# Of a cluster, of root, of a container, of the network, of a GPU.
ELSEWHERE = ("srun", "sbatch", "salloc", "scancel", "scontrol", "squeue", "module", "docker", "podman", "apptainer",
             "singularity", "kubectl", "sudo", "apt", "apt-get", "dpkg", "pip", "conda", "git", "ssh", "nvidia-smi", "man",
             "ncu", "nsys")
OWN = ("awex-colocate", "build/awex-colocate", "mpirun", "ninja", "nice", "benchmarks/", "cmake", "ctest", "python3", "bash", "sh", "export", "for", "cd",
       "./", "scripts/", "/opt/")
# Other hosts, the reader's own checkpoints, GPUs.
OTHER_MACHINES = re.compile(r"(?<!\S)(?:--host|-H|--hostfile|--backend cuda|/models/\S*)(?!\S)")
MARK = re.compile(r"<!-- not run: (.+?) -->")
LIMIT_S = 300
# The mark that the command reference has where an example's DIR is to be filled in.
OF_THE_READER = "DIR is the reader's own"


@dataclasses.dataclass
class Block:
    """A fenced block of a document."""
    document: str
    line: int
    language: str
    text: str
    mark: str  # why it is not run; empty: it is

    def script(self):
        """What of it is typed."""
        prompted = [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return "\n".join(prompted) if prompted else self.text

    def is_commands(self):
        if self.language:
            return self.language in SHELLS
        lines = [line.removeprefix("$ ") for line in self.script().splitlines()]
        return any(line.startswith(program) and (program.endswith("/") or line[len(program):][:1] in ("", " "))
                   for line in lines for program in (*OWN, *ELSEWHERE))

    def needs(self):
        """Why it cannot be run here; empty where it can."""
        code = "\n".join(line.split(" #")[0] for line in self.script().splitlines())
        words = re.split(r"[\s;|&()$]+", code)
        found = [word for word in words if word in ELSEWHERE] + OTHER_MACHINES.findall(code)
        return self.mark or (f"uses {found[0]}" if found else "")


def blocks_of(path):
    """The fenced blocks of a document; a fence that is not closed is an error."""
    blocks, fence, indent, before = [], None, 0, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        opened = re.match(r"^( {0,3})(`{3,})\s*([\w+-]*)", line)
        if fence is None and opened:
            marked = MARK.search(before)
            fence, indent = Block(path.name, number, opened[3], "", marked[1] if marked else ""), len(opened[1])
        elif fence is not None and line.strip().startswith("```"):
            blocks.append(fence)
            fence = None
        elif fence is not None:
            fence.text += (line if line[:indent].strip() else line[indent:]) + "\n"
        before = line if line.strip() else before if fence is None and MARK.search(before) else ""
    assert fence is None, f"{path.name}:{fence.line}: the block is not closed"
    return blocks


def documents():
    return [SOURCE / "README.md", *sorted((SOURCE / "docs").glob("*.md"))]


class Reader:
    """A folder as a reader has it after building: the sources, the build in build/, the program in PATH."""

    def __init__(self, folder):
        self.at = pathlib.Path(folder, "clone")
        self.at.mkdir()
        for entry in SOURCE.iterdir():
            if not entry.name.startswith((".git", "build")):
                (self.at / entry.name).symlink_to(entry)
        (self.at / "build").mkdir()  # not the tests' own, which a block may configure anew
        (self.at / "build" / "awex-colocate").symlink_to(BUILD / "awex-colocate")
        programs = pathlib.Path(folder, "bin")
        programs.mkdir()
        (programs / "awex-colocate").symlink_to(BUILD / "awex-colocate")
        (programs / "mpirun").symlink_to(shutil.which(MPIEXEC) or MPIEXEC)
        self.environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
        self.environment.update(PATH=f"{programs}:{self.environment['PATH']}", HOME=folder,
                                OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_ALLOW_RUN_AS_ROOT="1",
                                OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def type(self, script):
        """The exit code and all that was written; what is left running is ended, also what went to the background."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(["bash", "-e", "-o", "pipefail", "-c", script], cwd=self.at, text=True,
                                       env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       start_new_session=True)
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                code = f"nothing after {LIMIT_S} s"
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
            output.seek(0)
            return code, output.read()


class Commands(unittest.TestCase):
    def test_what_readers_type_works(self):
        ran = 0
        typed = set()  # the reference repeats examples
        for path in documents():
            with tempfile.TemporaryDirectory() as folder:
                reader = Reader(folder)
                for block in filter(Block.is_commands, blocks_of(path)):
                    if block.mark == OF_THE_READER:
                        continue  # the next test
                    if block.needs():
                        print(f"not run: {block.document}:{block.line}: {block.needs()}", flush=True)
                        continue
                    if path.name == "commands.md" and block.script() in typed:
                        continue
                    typed.add(block.script())
                    with self.subTest(f"{block.document}:{block.line}"):
                        code, output = reader.type(block.script())
                        self.assertEqual(code, 0, f"{block.script()}\n{output[-2000:]}")
                        ran += 1
        self.assertGreater(ran, 8)

    def test_the_references_examples_work_with_a_folder_in_place_of_dir(self):
        scripts = {}  # in their order, each once
        for block in blocks_of(SOURCE / "docs" / "commands.md"):
            if block.mark == OF_THE_READER:
                scripts[block.script()] = block.line
        with tempfile.TemporaryDirectory() as folder:
            reader = Reader(folder)
            model, job = os.path.join(folder, "model"), os.path.join(folder, "job")
            self.assertEqual(reader.type(f"awex-colocate checkpoint --preset tiny-dense --out {model}")[0], 0)
            serve = next(script for script in scripts if " serve " in script).replace("DIR", job)
            stop = next(script for script in scripts if " stop " in script)
            with subprocess.Popen(["bash", "-c", f"{serve}\nwait"], cwd=reader.at, env=reader.environment,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                                  start_new_session=True) as served:
                try:
                    self.assertEqual(reader.type(f"awex-colocate status --job {job} --wait 60s")[0], 0)
                    for script in [one for one in scripts if one != stop and " serve " not in one] + [stop]:
                        made = os.path.join(folder, f"made{scripts[script]}")
                        other = made if "--out" in script else model
                        line = script.replace("--job DIR", f"--job {job}").replace("DIR", other).strip()
                        if "--watch" in line:  # which goes on for ever
                            line = f"timeout -s INT 2 {line} || [[ $? == 124 ]]"
                        with self.subTest(line):
                            code, output = reader.type(line)
                            self.assertEqual(code, 0, output[-2000:])
                    self.assertEqual(served.wait(60), 0)
                finally:
                    if served.poll() is None:
                        os.killpg(served.pid, signal.SIGKILL)
        self.assertGreater(len(scripts), 10)

    def test_blocks_are_found_and_told_apart(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "page.md")
            path.write_text("```\n$ build/awex-colocate x\noutput of it\n```\n\n<!-- not run: needs a GPU -->\n\n```sh\n"
                            "mpirun x\n```\n```json\n{}\n```\n```\nonly output\n```\n```sh\nsrun hostname\n```\n"
                            "1. a list\n\n   ```\n   awex-colocate y\n   ```\n",
                            encoding="utf-8")
            blocks = blocks_of(path)
        self.assertEqual([block.is_commands() for block in blocks], [True, True, False, False, True, True])
        self.assertEqual(blocks[0].script(), "build/awex-colocate x")
        self.assertEqual([block.needs() for block in blocks], ["", "needs a GPU", "", "", "uses srun", ""])

    def test_a_command_that_fails_is_noticed(self):
        with tempfile.TemporaryDirectory() as folder:
            reader = Reader(folder)
            self.assertEqual(reader.type("awex-colocate plan --model preset:none")[0], 2)
            self.assertEqual(reader.type("awex-colocate plan --model preset:none | cat\ntrue")[0], 2)
            self.assertEqual(reader.type("build/awex-colocate -V")[0], 0)


if __name__ == "__main__":
    SOURCE, BUILD = map(pathlib.Path, sys.argv[1:3])
    MPIEXEC = sys.argv[3]
    unittest.main(argv=sys.argv[:1], verbosity=2)
