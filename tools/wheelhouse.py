"""Collects the wheels that `prefcast[transformers]` needs, for a machine without a network: make wheelhouse

Takes the versions that are installed here. torch and what only torch needs (gigabytes of CUDA) is left out, because such
machines have it; --with-torch includes it. --python and --platform choose another machine than this one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needs(name: str, extras: frozenset[str], seen: dict[str, str], leave: frozenset[str]) -> None:
    """Add `name` and all it needs to `seen` (name -> version), but for `leave`."""
    for requirement in requirements(name, extras):
        needed = canonicalize_name(requirement.name)
        if needed in leave:
            continue
        known = needed in seen
        seen[needed] = distribution(requirement.name).version
        if not known or requirement.extras:
            needs(requirement.name, frozenset(requirement.extras), seen, leave)


def requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def pins(with_torch: bool = False) -> list[str]:
    """`name==version` of everything that prefcast[transformers] needs here, itself left out."""
    seen: dict[str, str] = {}
    needs("prefcast", frozenset({"transformers"}), seen, frozenset() if with_torch else frozenset({"torch"}))
    return sorted(f"{name}=={version.partition('+')[0]}" for name, version in seen.items() if name != "prefcast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with-torch", action="store_true")
    parser.add_argument("--python", help="e.g. 3.11; default: this one")
    parser.add_argument("--platform", action="append", default=[], help="e.g. manylinux_2_28_x86_64; default: this one")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--dest",
        str(args.folder),
    ]
    command += ["--disable-pip-version-check"]
    command += ["--python-version", args.python] if args.python else []
    for platform in args.platform:
        command += ["--platform", platform]
    wanted = pins(args.with_torch)
    subprocess.run([*command, *wanted], check=True)
    print(f"{len(wanted)} wheels and prefcast in {args.folder}")
    print(f"on the other machine: pip install --no-index --find-links {args.folder} 'prefcast[transformers]'")


if __name__ == "__main__":
    main()
