"""The direction of imports (see docs/architecture.md), checked on the syntax tree, TYPE_CHECKING blocks included."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "bootwright"

# A module may import from its own tier's package and from every tier to the left.
TIERS: list[set[str]] = [
    {"errors", "digest", "units", "progress", "__init__"},
    {"linux"},
    {"erofs", "oci"},
    {"repo", "storage"},
    {"deploy", "boot", "image"},
    {"ops"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, tier in enumerate(TIERS) for name in tier}
PURE = ["errors.py", "digest.py", "units.py", "progress.py", "boot/entries.py", "boot/kargs.py", "deploy/merge.py"]
IMPURE = {"subprocess", "os", "io", "socket", "time", "datetime", "pathlib", "shutil", "tempfile"}


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
            if node.module == "bootwright":
                found.update(f"bootwright.{alias.name}" for alias in node.names)
    return found


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_left_never_imports_right(path: Path) -> None:
    own = part_of(path)
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "bootwright" or len(parts) == 1 or parts[1] == "__version__":
            continue
        other = parts[1]
        assert other in RANK, f"{path}: '{module}' is in no tier"
        allowed = other == own or RANK[other] < RANK[own] or (RANK[own] == 0 and RANK[other] == 0)
        assert allowed, f"{path}: {own} must not import {other}"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_nothing(name: str) -> None:
    path = SOURCE / name
    assert not {module.split(".")[0] for module in imported_modules(path)} & IMPURE
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "open" not in calls
    assert "print" not in calls


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if part_of(path) in {"cli", "__main__"}:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert text not in {"print", "sys.exit", "exit", "input"}, f"{path}:{node.lineno}: {text}()"
            starts_programs = text.startswith(("subprocess.", "os.system", "os.popen"))
            assert not starts_programs or path == SOURCE / "linux" / "process.py", (
                f"{path}:{node.lineno}: programs are started by linux.process"
            )
