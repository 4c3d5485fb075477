#!/usr/bin/env python3
"""clang-tidy on several source files at once, for it spends most of its time in the headers that all include.

usage: tidy.py BUILD_DIR TOOL FILE...

Files with the same flags are written one behind the other into one, as far as no two give the same name to
something of their own; what is said of it is told of the file that it comes from. Files that do not go
together all the same are read again, one by one. Returns 1 if anything is found.
"""
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

MOST_FILES = 12  # of one reading: several readings run at once, and each holds all in memory
# A file's own names may hide another's, which g++ does not take for shadowed where each is built alone.
OPTIONS = ["--quiet", "--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-Wno-shadow"]
# Code in namespaces is not indented: what begins a line there is a declaration.
DECLARED = [re.compile(pattern) for pattern in (
    r"^(?:template <.*> ?)?(?:class|struct|union|enum(?: class)?|concept) (\w+)",
    r"^using (\w+) =",
    r"^namespace (\w+) =",
    r"^#define (\w+)",
    r"^[^\s#/}(][^=;({]*?[\s*&>](\w+)\(",  # a function
    r"^[^\s#/}(][^=;({]*?[\s*&>](\w+)(?:\[.*\])?(?: =|;|\{)")]  # a variable


@dataclasses.dataclass
class Source:
    """One of BUILD_DIR/compile_commands.json."""
    path: str
    directory: str
    flags: tuple  # without the file and what is made of it
    text: str
    names: set  # that it declares


def source_of(entry):
    words = shlex.split(entry["command"])
    flags, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "-c"):
            skip = True
        else:
            flags.append(word)
    text = pathlib.Path(entry["file"]).read_text(encoding="utf-8")
    names = {match[1] for line in text.splitlines() for pattern in DECLARED if (match := pattern.match(line))}
    return Source(os.path.relpath(entry["file"]), entry["directory"], tuple(flags), text, names)


def group(sources):
    """Lists of sources that go together."""
    groups: list[list[Source]] = []
    for source in sources:
        for members in groups:
            fits = len(members) < MOST_FILES and members[0].flags == source.flags
            if fits and not any(source.names & member.names for member in members):
                members.append(source)
                break
        else:
            groups.append([source])
    return sorted(groups, key=len, reverse=True)


class Reading:
    """One call of clang-tidy for a group."""

    def __init__(self, tool, folder, number, members):
        self.tool, self.members = tool, members
        self.folder = folder / str(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "together.cpp"

    def run(self):
        """What it finds, as text."""
        self.file.write_text("".join(member.text for member in self.members), encoding="utf-8")
        command = shlex.join([*self.members[0].flags, "-c", str(self.file)])
        entry = {"directory": self.members[0].directory, "command": command, "file": str(self.file)}
        (self.folder / "compile_commands.json").write_text(json.dumps([entry]), encoding="utf-8")
        done = subprocess.run([self.tool, "-p", self.folder, *OPTIONS, self.file], text=True, check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0 and not done.stdout:
            return f"{self.tool} has failed with exit code {done.returncode}: {done.stderr.strip()}\n"
        return re.sub(rf"{re.escape(str(self.file))}:(\d+)", lambda match: self.place(int(match[1])), done.stdout)

    def place(self, line):
        """FILE:LINE of a line of all."""
        for member in self.members:
            lines = member.text.count("\n")
            if line <= lines:
                return f"{member.path}:{line}"
            line -= lines
        return f"{self.members[-1].path}:{line}"


def main():
    build, tool, files = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], {os.path.relpath(f) for f in sys.argv[3:]}
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    sources = [source_of(entry) for entry in entries if os.path.relpath(entry["file"]) in files]
    missing = files - {source.path for source in sources}
    if missing:
        sys.exit(f"error: {build} does not compile {', '.join(sorted(missing))}")

    def read(numbered):
        number, members = numbered
        found = Reading(tool, build / "together", number, members).run()
        if len(members) == 1 or "[clang-diagnostic-error]" not in found:
            return found
        print(f"read one by one, for they do not go together: {' '.join(member.path for member in members)}\n{found}",
              file=sys.stderr, flush=True)
        return "".join(Reading(tool, build / "together", f"{number}-{index}", [member]).run()
                       for index, member in enumerate(members))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(read, enumerate(group(sources))))
    print("".join(found), end="")
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
