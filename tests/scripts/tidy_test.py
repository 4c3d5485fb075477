#!/usr/bin/env python3
"""scripts/tidy.py with a stand-in for clang-tidy: which files go together, and where findings are.

usage: tidy_test.py TIDY
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

TIDY = ""

# Finds lines with BAD, and cannot read two files with a "clash"; keeps how many files each call was given.
TOOL = """#!/usr/bin/env python3
import json, pathlib, sys
file = pathlib.Path(sys.argv[-1])
folder = pathlib.Path(sys.argv[sys.argv.index("-p") + 1])
entry = json.loads((folder / "compile_commands.json").read_text())[0]
text = file.read_text()
with open(pathlib.Path(__file__).parent / "calls", "a") as calls:
    print(text.count("// file"), "-DTWO" in entry["command"].split(), file=calls)
if text.count("clash") > 1:
    print(f"{file}:1:1: error: redefinition [clang-diagnostic-error]")
    sys.exit(1)
for number, line in enumerate(text.splitlines(), 1):
    if "BAD" in line:
        print(f"{file}:{number}:3: error: bad [some-check]")
sys.exit("BAD" in text)
"""


class Tidy(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.tool = self.folder / "tool"
        self.tool.write_text(TOOL, encoding="utf-8")
        self.tool.chmod(0o755)

    def run_on(self, texts, flags=None):
        """What is found in files of these texts, sorted, the exit code and (files, has -DTWO) of each call."""
        entries = []
        for name, text in texts.items():
            (self.folder / name).write_text(f"// file\n{text}\n", encoding="utf-8")
            entries.append({"directory": str(self.folder), "file": str(self.folder / name),
                            "command": f"c++ {(flags or {}).get(name, '')} -o {name}.o -c {self.folder / name}"})
        (self.folder / "compile_commands.json").write_text(json.dumps(entries), encoding="utf-8")
        done = subprocess.run([sys.executable, TIDY, ".", str(self.tool), *texts], cwd=self.folder, text=True,
                              capture_output=True, check=False)
        calls = [line.split() for line in (self.folder / "calls").read_text(encoding="utf-8").splitlines()]
        return sorted(done.stdout.splitlines()), done.returncode, sorted((int(n), two == "True") for n, two in calls)

    def test_findings_are_told_where_they_are(self):
        found, code, calls = self.run_on({"a.cpp": "int a() {\n  BAD }", "b.cpp": "int b = 1;", "c.cpp": "BAD"})
        self.assertEqual(found, ["a.cpp:3:3: error: bad [some-check]", "c.cpp:2:3: error: bad [some-check]"])
        self.assertEqual((code, calls), (1, [(3, False)]))

    def test_nothing_found(self):
        self.assertEqual(self.run_on({"a.cpp": "int a;", "b.cpp": "int b;"}), ([], 0, [(2, False)]))

    def test_names_of_two_files_or_other_flags_part_them(self):
        for name in ("int same = 3;", "Error same(int x) {", "class same {", "struct same final : X {",
                     "using same = int;", "enum class same : int {", "#define same 1", "template <class T> T same(T t) {",
                     "constexpr const char* same[] = {", "const std::vector<int> same;", "std::string* same(",
                     "std::map<int, std::string> same{{1, \"\"}};"):
            with self.subTest(name=name):
                (self.folder / "calls").unlink(missing_ok=True)
                _, code, calls = self.run_on({"a.cpp": name, "b.cpp": name, "c.cpp": "int other;"})
                self.assertEqual((code, calls), (0, [(1, False), (2, False)]))
        (self.folder / "calls").unlink()
        self.assertEqual(self.run_on({"a.cpp": "int a;", "b.cpp": "int b;"}, {"b.cpp": "-DTWO"})[2],
                         [(1, False), (1, True)])

    def test_those_that_do_not_go_together_are_read_alone(self):
        found, code, calls = self.run_on({"a.cpp": "  clash", "b.cpp": "  clash BAD"})
        self.assertEqual((found, code), (["b.cpp:2:3: error: bad [some-check]"], 1))
        self.assertEqual(calls, [(1, False), (1, False), (2, False)])

    def test_a_tool_that_fails_and_a_file_that_is_not_compiled(self):
        self.tool.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n", encoding="utf-8")
        self.tool.chmod(0o755)
        (self.folder / "calls").touch()
        found, code, _ = self.run_on({"a.cpp": "int a;"})
        self.assertEqual(code, 1)
        self.assertIn("no such option", found[0])
        done = subprocess.run([sys.executable, TIDY, ".", str(self.tool), "z.cpp"], cwd=self.folder, text=True,
                              capture_output=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("z.cpp", done.stderr)


if __name__ == "__main__":
    TIDY = os.path.abspath(sys.argv.pop(1))
    unittest.main()
