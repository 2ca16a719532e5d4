"""Run the unit tests with each supported Python of this machine that is not the one of `.venv`.

    make test-pythons
    make test-pythons ARGS="-k lifecycle"     options for pytest

A Python is found as `python3.12` on PATH, or among the versions of pyenv. Each gets its own environment in
`.venv/pythons/`, with exactly what `requirements.lock` names, and is set up again when that file has changed.

Exits with 0 when all that were found pass the tests, with 1 when one does not.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# Slow tests of DuckDB, which is the same with each Python.
_SQL_ALONE = (
    "tests/unit/warehouse/test_rebuild.py::test_an_error_in_the_second_implementation_is_detected",
    "tests/unit/warehouse/test_rollups.py",
    "tests/unit/warehouse/test_partition_keys.py",
)
_INSTALLED_BY = ("requirements.lock", "pyproject.toml")


def candidates(version: str) -> Iterator[Path]:
    """Yield possible paths of an interpreter of a version."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}*/bin/python{version}"), reverse=True)


def is_interpreter(path: Path, version: str) -> bool:
    """Return whether a program runs and has that version. A shim of pyenv may have another one."""
    code = "import sys, venv, ssl; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.strip() == version


def environment(version: str, interpreter: Path) -> Path:
    """Return the `python` of an environment with the locked packages, which is created or updated if necessary."""
    folder = ROOT / ".venv" / "pythons" / version
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    state = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in _INSTALLED_BY)).hexdigest()
    if stamp.is_file() and stamp.read_text() == state:
        return python
    print(f"Python {version}: installing the packages of requirements.lock ...", flush=True)
    subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--require-hashes", "-r", "requirements.lock"], cwd=ROOT, check=True)
    subprocess.run([*install, "--no-build-isolation", "--editable", "."], cwd=ROOT, check=True)
    stamp.write_text(state)
    return python


def test(version: str, options: list[str]) -> str:
    """Run the unit tests with one version; return the result."""
    interpreter = next((each for each in candidates(version) if is_interpreter(each, version)), None)
    if interpreter is None:
        return "not found"
    python = environment(version, interpreter)
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "--numprocesses", "2", "--quiet", "tests/unit"]
    command += [f"--deselect={test}" for test in _SQL_ALONE]
    print(f"Python {version}: {interpreter}", flush=True)
    done = subprocess.run([*command, *options], cwd=ROOT, check=False)
    return "FAILED" if done.returncode else "passed"


def main() -> int:
    """Run the tests with each version and print one line for each."""
    own = "{}.{}".format(*sys.version_info[:2])
    results = {version: test(version, sys.argv[1:]) for version in SUPPORTED if version != own}
    for version, result in results.items():
        print(f"Python {version}: {result}")
    return int("FAILED" in results.values())


if __name__ == "__main__":
    sys.exit(main())
