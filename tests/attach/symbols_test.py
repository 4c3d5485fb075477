"""What libawex_colocate.so shows to the process that loads it, and what it needs.

usage: symbols_test.py LIBRARY HEADER
"""

import re
import subprocess
import sys
import unittest

LIBRARY = ""
HEADER = ""


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


class Symbols(unittest.TestCase):
    def test_only_the_header_s_functions_are_seen(self):
        lines = output_of("nm", "-D", "--defined-only", LIBRARY).splitlines()
        seen = {line.split()[-1].split("@")[0] for line in lines if " A " not in line}
        with open(HEADER, encoding="utf-8") as header:
            text = re.sub(r"(?s)/\*.*?\*/", "", header.read())
        declared = set(re.findall(r"\b(awex_\w+)\(", text)) - {"awex_callback"}
        self.assertGreater(len(declared), 20)
        self.assertEqual(seen, declared)

    def test_it_needs_neither_mpi_nor_a_driver(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", LIBRARY))
        allowed = r"(libfmt|libstdc\+\+|libgcc_s|libc|libm|libpthread|libdl|librt|ld-linux-.*|libasan|libubsan|libtsan)\.so.*"
        for library in needed:
            self.assertRegex(library, f"^{allowed}$")

    def test_its_name_has_the_version_of_its_interface(self):
        self.assertIn("Library soname: [libawex_colocate.so.0]", output_of("readelf", "-d", LIBRARY))


if __name__ == "__main__":
    LIBRARY, HEADER = sys.argv[1:]
    unittest.main(argv=sys.argv[:1])
