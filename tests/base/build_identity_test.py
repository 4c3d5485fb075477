#!/usr/bin/env python3
"""Builds of other commits, of altered sources and of archives without git have other identities."""

import os
import re
import subprocess
import sys
import tempfile


def main():
    cmake, script = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        source = os.path.realpath(directory)
        os.mkdir(os.path.join(source, "src"))
        git = ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@example.org"]

        def write(text):
            for name in ("src/a.cpp", "CMakeLists.txt"):
                with open(os.path.join(source, name), "w", encoding="utf-8") as file:
                    file.write(text)

        def commit():
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "a"], check=True)

        def identity():
            output = os.path.join(source, ".git-free.cpp")
            subprocess.run([cmake, f"-DSOURCE={source}", "-DVERSION=1.2.3", f"-DOUTPUT={output}",
                            "-P", script], check=True)
            with open(output, encoding="utf-8") as file:
                text = file.read()
            os.remove(output)
            return re.search('return "(.*)"', text)[1]

        write("one")
        found = [identity()]
        subprocess.run([*git, "init", "--quiet"], check=True)
        commit()
        found.append(identity())
        commit()
        found.append(identity())
        write("two")
        found.append(identity())
        write("three")
        found.append(identity())
    patterns = ["s[0-9a-f]{12}"] + ["g[0-9a-f]{12}"] * 2 + [r"g[0-9a-f]{12}\.d[0-9a-f]{12}"] * 2
    print(*found, sep="\n")
    fit = all(re.fullmatch(r"1\.2\.3\+" + p, f) for p, f in zip(patterns, found))
    return 0 if fit and len(set(found)) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
