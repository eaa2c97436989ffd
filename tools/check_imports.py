"""Checks the plan of the house: python tools/check_imports.py [src/prefcast].

The rooms of `src/prefcast` are the list in the README, in its order. A room may import itself and rooms that stand above it
in that list; nothing else. Files and folders that are not in the list, and circles between files, are faults too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The package's face (`from prefcast import predict`) hands names on; it is no room.
_FACE = "__init__"


def rooms_of(readme: Path) -> list[str]:
    """The names in the README's tree of `src/prefcast`, top to bottom."""
    tree = readme.read_text(encoding="utf-8").split("src/prefcast/\n", 1)[1].split("```", 1)[0]
    return [found[1].removesuffix(".py") for found in re.finditer(r"^  (\w+(?:\.py)?)/?  ", tree, re.MULTILINE)]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of prefcast) for every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names if each.name.split(".")[0] == "prefcast")
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "prefcast":
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{each.name}") for each in node.names)


def faults(package: Path, rooms: list[str]) -> Iterator[str]:
    """What breaks the plan, a line each."""
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    for name in sorted(there - {*rooms, _FACE}):
        yield f"{name}: is not in the README's tree"
    for name in [room for room in rooms if room not in there]:
        yield f"{name}: is in the README's tree, but not in {package.name}"
    files = {_module(path, package): path for path in sorted(package.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        own = module.split(".")[1] if "." in module else _FACE
        graph[module] = set()
        for line, target in imports_of(path):
            room = target.split(".")[1] if "." in target else _FACE
            if (
                target in files
                and target != module
                and not target.startswith(f"{module}.")
                and not module.startswith(f"{target}.")
            ):
                graph[module].add(target)
            if own in rooms and room in rooms and rooms.index(room) > rooms.index(own):
                yield f"{path}:{line}: {own} imports {target}, which stands below it in the README's tree"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle of imports: {' -> '.join(error.args[1])}"


def _module(path: Path, package: Path) -> str:
    return ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")


def main() -> None:
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src" / "prefcast"
    found = list(dict.fromkeys(faults(package, rooms_of(ROOT / "README.md"))))
    print("\n".join(found) or f"{len(list(package.rglob('*.py')))} files: every import points up the README's tree")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
