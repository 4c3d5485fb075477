"""The wheel: wheel_test.py ROOT LIBRARY. Packs it, installs it in a fresh virtual environment, and asks
there for what a user would see first."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT, LIBRARY = sys.argv[1:3]


def run(*command, check=True, **environment):
    done = subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    if check and done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done


def check(condition, what, *values):
    if not condition:
        sys.exit(f"{what}: {values}")


with tempfile.TemporaryDirectory() as folder:
    run(Path(ROOT, "scripts/package-wheel.sh"), "--library", LIBRARY, "--out", folder, "--python", sys.executable)
    (wheel,) = Path(folder).glob("*.whl")
    check("-py3-none-linux_" in wheel.name, "the wheel is for every Python of a platform", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in ("py.typed", "libawex_colocate.so", "torch.py", "vllm.py", "areal/__init__.py", "areal/trainer.py"):
        check(f"awex_colocate/{file}" in names, "the wheel lacks a file", file, names)

    linked = run("ldd", Path(LIBRARY)).stdout
    if "libfmt.so" in linked:
        check(any(name.startswith("awex_colocate/libfmt.so") for name in names), "libfmt is carried", names)

    zipfile.ZipFile(wheel).extractall(Path(folder, "unpacked"))
    carried = Path(folder, "unpacked/awex_colocate/libawex_colocate.so")
    paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", run("readelf", "-d", carried).stdout)
    check(paths == ["$ORIGIN"], "the library looks beside itself alone", paths)
    for file in Path(folder, "unpacked").rglob("*"):
        check(not file.is_file() or f"{ROOT}/".encode() not in file.read_bytes(), "a path of this machine", file)

    fresh = Path(folder, "fresh")
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    python = fresh / "bin/python"
    (site,) = fresh.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel)

    clean = {"PYTHONPATH": "", "AWEX_COLOCATE_LIBRARY": ""}
    code = "import awex_colocate as a; from awex_colocate._library import library; " \
           "print(a.__version__, a.library_path(), library().awex_build().decode())"
    said = run(python, "-c", code, **clean).stdout.split()
    check(said[1] == str(site / "awex_colocate/libawex_colocate.so"), "its own library is found", said)
    check(said[0] == said[2] and f"-{said[0]}-" in wheel.name, "it has the library's version", said, wheel.name)

    job = Path(folder, "no-job")
    done = run(python, "-c", f"import awex_colocate as a; a.attach('trainer', {str(job)!r}, device='host', timeout=1)",
               check=False, **clean)  # fmt: skip
    for word in ("DeadlinePassed", str(job), "hint: "):
        check(done.returncode == 1 and word in done.stderr, "a job that is not there is named", word, done.stderr)

    code = (
        "from importlib.metadata import entry_points\n"
        "for group in ('vllm.general_plugins', 'sglang.srt.plugins'):\n"
        "    (found,) = entry_points(group=group)\n"
        "    print(callable(found.load()))"
    )
    check(run(python, "-c", code, **clean).stdout.split() == ["True", "True"], "plugins are found")
print("ok")
