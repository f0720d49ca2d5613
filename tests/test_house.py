"""The rules of the house, read from the sources: no circle, arrows only downward, no crowded folder, nothing too long."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("visiondrop", "llava", "eval", "testbed", "figures")
LEAVES = {
    "visiondrop.errors",
    "visiondrop.shipped",
    "visiondrop.compat",
    "visiondrop._versions",
}  # everybody may import these
# Inside visiondrop: what stands in a room may import from the rooms before it, and from its own.
FLOORS = (
    "visiondrop.plans",
    "visiondrop.ops",
    "visiondrop.methods",
    "visiondrop.stack",
    "visiondrop.tower",
    "visiondrop.pruner",
    "visiondrop.families",
    "visiondrop.api",
    "visiondrop.precision",
    "visiondrop.reuse",
    "visiondrop.demo",
    "visiondrop.advice",
    "visiondrop.serving",
    "visiondrop.doctor",
    "visiondrop.cli",
    "visiondrop.__main__",
)
# Likewise inside eval/.
FLOORS_OF_EVAL = (
    "eval.errors",
    "eval.files",
    "eval.machine",
    "eval.tasks",
    "eval.settings",
    "eval.benchmarks",
    "eval.results",
    "eval.scoring",
    "eval.models",
    "eval.record_score",
    "eval.compare",
    "eval.efficiency",
    "eval.serving",
    "eval.driver",
    "eval.advise_check",
    "eval.run",
)
MOST_FILES, MOST_LINES, MOST_OF_A_FUNCTION, README_BYTES = 15, 400, 65, 9216


def modules(root: Path = ROOT) -> dict[str, Path]:
    """{dotted name: file} of all packages."""
    files = [p for top in TOPS for p in sorted((root / top).rglob("*.py"))]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, inside functions too; names of a package count as that package."""
    package, out = name if file.name == "__init__.py" else name.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        out |= {f for f in found if f in known and f != name}
    return out


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves, found by removing all that lead nowhere or come from nowhere."""
    left = {n: set(out) for n, out in edges.items()}
    while True:
        targets = {t for out in left.values() for t in out}
        gone = {n for n, out in left.items() if not out & left.keys() or n not in targets}
        if not gone:
            return [sorted(left)] if left else []
        left = {n: {t for t in out if t not in gone} for n, out in left.items() if n not in gone}


@pytest.fixture(scope="module")
def house() -> tuple[dict[str, Path], dict[str, set[str]]]:
    """The files, and who imports whom."""
    files = modules()
    return files, {name: imports(name, file, files) for name, file in files.items()}


def test_there_is_no_circle(house):
    files, edges = house
    plain = {n for n, file in files.items() if file.name != "__init__.py"}  # a package's own file re-exports
    assert circles({n: edges[n] & plain for n in plain}) == []


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_packages_import_only_those_below_them(house):
    _, edges = house
    up = [
        f"{name} imports {other}"
        for name, out in edges.items()
        for other in out
        if TOPS.index(other.split(".")[0]) > TOPS.index(name.split(".")[0])
    ]
    assert up == []


def test_the_rooms_of_the_core_stand_on_floors(house):
    _, edges = house

    def floor(name: str) -> int | None:
        return next((i for i, room in enumerate(FLOORS) if name == room or name.startswith(room + ".")), None)

    unplaced = {n for n in edges if n.startswith("visiondrop.") and floor(n) is None} - LEAVES
    assert unplaced == set(), "give these a floor"
    up = [
        f"{name} imports {other}"
        for name, out in edges.items()
        for other in out - LEAVES - {"visiondrop"}
        if name.startswith("visiondrop.") and name not in LEAVES and floor(other) > floor(name)
    ]
    assert up == []
    assert [f"{n} imports {o}" for n in LEAVES for o in edges[n] - LEAVES] == []


def test_the_rooms_of_eval_stand_on_floors(house):
    _, edges = house
    floors = {name.split(".")[1]: floor for floor, name in enumerate(FLOORS_OF_EVAL)}
    inside = {n: {o for o in out if o.startswith("eval.")} for n, out in edges.items() if n.startswith("eval.")}
    assert {n.split(".")[1] for n in inside} <= floors.keys(), "give these a floor"
    up = [
        f"{name} imports {other}"
        for name, out in inside.items()
        for other in out
        if floors[other.split(".")[1]] > floors[name.split(".")[1]]
    ]
    assert up == []


def test_methods_need_nothing_of_a_model(house):
    """A method is arithmetic: it imports plans and operations only, and of other packages torch and the standard library."""
    files, edges = house
    allowed = ("visiondrop.plans", "visiondrop.ops", "visiondrop.methods", *LEAVES)
    for name in (n for n in files if n.startswith("visiondrop.methods.")):
        assert all(other.startswith(allowed) for other in edges[name]), name
        assert not re.search(r"^(?:from|import) transformers", files[name].read_text(), re.M), name


def unannotated(tree: ast.Module) -> list[str]:
    """Public functions and methods with an argument or a result that says no type; `self` and `*` arguments aside."""
    found = []
    for node in [*tree.body, *(inner for c in tree.body if isinstance(c, ast.ClassDef) for inner in c.body)]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            missing = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
            if missing or node.returns is None:
                found.append(node.name)
    return found


def test_public_functions_of_the_core_say_their_types(house):
    files, _ = house
    core = {n: p for n, p in files.items() if n.startswith("visiondrop.") and not n.endswith(".fused_kernels")}
    wrong = {n: names for n, p in core.items() if (names := unannotated(ast.parse(p.read_text(encoding="utf-8"))))}
    assert wrong == {}
    said = "class A:\n    def f(self, x: int) -> int: ...\n    def g(self, x) -> int: ...\ndef h(x: int): ...\ndef _i(x): ..."
    assert unannotated(ast.parse(said)) == ["h", "g"]


def test_no_folder_is_crowded_and_nothing_is_too_long(house):
    files, _ = house
    wrong = []
    for folder in {file.parent for file in files.values()}:
        rooms = [p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]
        if len(rooms) > MOST_FILES:
            wrong.append(f"{folder.relative_to(ROOT)} holds {len(rooms)} files")
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            wrong.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if length > MOST_OF_A_FUNCTION:
                    wrong.append(f"{name}.{node.name}: {length} lines")
    assert wrong == []


def test_the_readme_is_short_and_its_links_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert pages[0].stat().st_size <= README_BYTES
    dead = []
    for page in pages:
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []
