"""Libraries for LD_PRELOAD that change what calls of the system do."""

import os
import shutil
import subprocess
import sys


def build_preloaded(directory, name, source, purpose):
    """The path of the library that C source makes; ends the test as skipped where there is no C compiler, and
    says what it is for."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        print(f"skipped: no C compiler for {purpose}")
        sys.exit(77)
    path, library = os.path.join(directory, f"{name}.c"), os.path.join(directory, f"{name}.so")
    with open(path, "w", encoding="utf-8") as out:
        out.write(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, path, "-ldl"], check=True)
    return library


def preloading(library):
    """The environment variables under which a program loads it."""
    # AddressSanitizer minds that another library comes before its own.
    options = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": options}
