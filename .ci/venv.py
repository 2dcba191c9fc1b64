"""Makes .venv with everything fs3 needs, pinned; run by make with whatever `python3` the machine has.

Old Pythons must be able to read this file, so that they can be told what is missing.
"""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(HERE, ".venv")
STAMP = os.path.join(VENV, ".fs3-installed")
INPUTS = [os.path.join(HERE, name) for name in ("pyproject.toml", "constraints.txt")]


def fail(line):
    sys.stderr.write("fs3: " + line + "\n")
    sys.exit(1)


def fresh():
    if not os.path.exists(STAMP):
        return False
    made = os.path.getmtime(STAMP)
    return all(os.path.getmtime(path) <= made for path in INPUTS)


def main():
    if sys.version_info < (3, 11):
        fail(
            "needs Python 3.11 or newer, %s is %d.%d; say which one to use: make PYTHON=/path/to/python3.11 ..."
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        fail(
            "this Python has no '%s' module; install it (Debian and Ubuntu: apt install python3-venv) and try again"
            % error.name
        )
    if fresh():
        return
    if not os.path.exists(os.path.join(VENV, "bin", "python")):
        print("fs3: making .venv", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", VENV]) != 0:
            fail("could not make .venv; see the lines above")
    print(
        "fs3: installing pinned packages into .venv (torch is the large one; some minutes the first time)", flush=True
    )
    command = [os.path.join(VENV, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", os.path.join(HERE, "constraints.txt"), "--editable", HERE + "[dev]"]
    if subprocess.call(command) != 0:
        fail("pip could not install the packages; see the lines above, then run make again")
    with open(STAMP, "w", encoding="utf-8"):
        pass


main()
