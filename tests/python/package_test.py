"""The Python package without a job and without PyTorch: package_test.py HEADER C_COMPILER [LIBRARY].
Structures are compared with what a C compiler makes of the header."""

import ctypes
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from awex_colocate import (
    AwexError,
    DeadlinePassed,
    EngineLost,
    Failed,
    Mismatch,
    Status,
    WrongRequest,
    _library,
    attach,
    engine,
)
from awex_colocate.errors import error_of

HEADER, COMPILER = sys.argv[1:3]
LIBRARY = sys.argv[3] if len(sys.argv) > 3 else None
PACKAGE = Path(_library.__file__).parent.parent

STRUCTS = {
    "awex_attach_options": _library.AttachOptions,
    "awex_place_in_job": _library.PlaceInJob,
    "awex_memory_info": _library.MemoryInfo,
    "awex_tensor": _library.CTensor,
}


def by_the_compiler(expressions):
    """The values of C expressions, under the header."""
    prints = "\n".join(f'printf("%lld\\n", (long long)({e}));' for e in expressions)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "values.c")
        source.write_text(
            f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n{prints}\nreturn 0; }}\n'
        )
        program = str(Path(folder, "values"))
        subprocess.run(
            [COMPILER, "-x", "c", "-std=c11", "-Wall", "-Werror", str(source), "-o", program],
            check=True,
        )
        return [int(line) for line in subprocess.check_output([program], text=True).split()]


class Interface(unittest.TestCase):
    def test_structures_are_those_of_the_header(self):
        expressions, want = [], []
        for name, structure in STRUCTS.items():
            expressions.append(f"sizeof({name})")
            want.append(ctypes.sizeof(structure))
            for field, _ in structure._fields_:
                expressions += [f"offsetof({name}, {field})", f"sizeof((({name}*)0)->{field})"]
                place = getattr(structure, field)
                want += [place.offset, place.size]
        self.assertEqual(by_the_compiler(expressions), want)

    def test_numbers_are_those_of_the_header(self):
        tags = ["AWEX_WEIGHTS", "AWEX_OPTIMIZER", "AWEX_KV_CACHE", "AWEX_TAGS"]
        statuses = ["OK", "FAILED", "WRONG_REQUEST", "MISMATCH", "DEADLINE", "LOST"]
        others = ["AWEX_TRAINER", "AWEX_INFERENCE", "AWEX_ABI_VERSION", "AWEX_MOST_KEPT_BYTES"]
        values = by_the_compiler([*tags, *(f"AWEX_{name}" for name in statuses), *others])
        self.assertEqual(values[:4], [*range(3), len(_library.TAGS)])
        self.assertEqual(values[4:10], [Status[name] for name in statuses])
        self.assertEqual(values[10:], [0, 1, _library.ABI_VERSION, _library.MOST_KEPT_BYTES])

    def test_every_function_of_the_header_is_bound(self):
        text = Path(HEADER).read_text()
        for name in _library._SIGNATURES:
            self.assertIn(f"{name}(", text)
        declared = {
            word.split("(")[0].lstrip("*")
            for line in text.splitlines()
            if line and line[0] not in " /*#}" and "typedef" not in line
            for word in line.split()
            if word.lstrip("*").startswith("awex_") and "(" in word
        }
        self.assertGreater(len(declared), 20)
        self.assertEqual(declared - set(_library._SIGNATURES), set())


class Errors(unittest.TestCase):
    def test_a_status_is_a_class(self):
        kinds = [Failed, WrongRequest, Mismatch, DeadlinePassed, EngineLost]
        for status, kind in enumerate(kinds, 1):
            error = error_of(status, "no such thing\n  hint: look elsewhere")
            self.assertIs(type(error), kind)
            self.assertEqual((error.status, error.message, error.hint), (status, "no such thing", "look elsewhere"))
            self.assertEqual(str(error), "no such thing\n  hint: look elsewhere")
            self.assertIsInstance(error, AwexError)

    def test_text_without_a_hint(self):
        self.assertEqual(error_of(2, "wrong").hint, "")
        self.assertIn("returned 9", str(error_of(9, "")))


class WrongArguments(unittest.TestCase):
    def refused(self, pattern, *arguments, **options):
        with self.assertRaisesRegex(WrongRequest, pattern):
            attach(*arguments, **options)

    def test_they_are_named(self):
        self.refused("role 'actor' is not one of trainer, inference", "actor", "job")
        self.refused("memory 'gradients' is not one of", "trainer", "job", memory={"gradients": 1})
        self.refused("device 'tpu:0' is none", "trainer", "job", device="tpu:0")
        self.refused("device 'host:x' is none", "trainer", "job", device="host:x")
        self.refused("more than 31 bytes", "trainer", "job", device="host", name="x" * 32)

    def test_a_device_is_understood(self):
        self.assertEqual(engine._device("cpu:3", None), ("host", 3))
        self.assertEqual(engine._device("host:1", None), ("host", 1))
        self.assertEqual(engine._device(2, None), ("host", 2))
        self.assertEqual(engine._device(None, "GPU-1"), ("cuda", 0))
        self.assertEqual(engine._device("cuda:5", None), ("cuda", 5))
        os.environ["LOCAL_RANK"] = "4"
        try:
            self.assertEqual(engine._device(None, None), ("host", 4))
        finally:
            del os.environ["LOCAL_RANK"]


def in_another_process(code, **environment):
    """What the code writes, in a process in which the library is not yet loaded."""
    done = subprocess.run(
        [sys.executable, "-c", "import awex_colocate as a\n" + code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


class Library(unittest.TestCase):
    ATTACH = "a.attach('trainer', '/nonexistent/job', device='host')"

    def test_importing_needs_none(self):
        self.assertEqual(in_another_process("", AWEX_COLOCATE_LIBRARY="/nowhere"), "")

    def test_one_that_is_no_file_is_named(self):
        said = in_another_process(self.ATTACH, AWEX_COLOCATE_LIBRARY="/nowhere/lib.so")
        self.assertIn("AWEX_COLOCATE_LIBRARY=/nowhere/lib.so is no file", said)

    def test_another_library_is_refused(self):
        import _ctypes

        said = in_another_process(self.ATTACH, AWEX_COLOCATE_LIBRARY=_ctypes.__file__)
        self.assertIn("is no libawex_colocate.so", said)

    def test_another_version_of_the_interface_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "old.c"), str(Path(folder, "old.so"))
            source.write_text(
                'unsigned awex_abi_version(void) { return 99; }\n'
                'const char* awex_build(void) { return "9.0"; }\n'
            )
            subprocess.run([COMPILER, "-x", "c", "-shared", "-fPIC", str(source), "-o", library], check=True)
            said = in_another_process(self.ATTACH, AWEX_COLOCATE_LIBRARY=library)
        self.assertIn("(9.0) has version 99 of its interface, this package needs 2", said)

    @unittest.skipUnless(LIBRARY, "no library is built")
    def test_a_job_that_is_not_there_is_named(self):
        said = in_another_process(
            "a.attach('trainer', '/nonexistent/job', device='host', timeout=1)", AWEX_COLOCATE_LIBRARY=LIBRARY
        )
        self.assertIn("awex_colocate.errors.DeadlinePassed", said)
        self.assertIn("/nonexistent/job", said)
        self.assertIn("hint: ", said)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
