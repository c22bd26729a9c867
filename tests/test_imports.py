"""The import rules of docs/architecture.md, read off the syntax of every file, and what `import sparseggm` loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "sparseggm").rglob("*.py"))
REFERENCE = sorted((ROOT / "reference").rglob("*.py"))

FLOORS = {
    "errors": (),
    "promotion": (),
    "forks": (),
    "files": (),
    "cores": (),
    "threads": (),
    "kernels": (
        "compilation",
        "",
        "lanes.vector",
        "lanes.addresses",
        "lanes.logarithm",
        "lanes.tiles",
        "lanes.blocks",
        "lanes.sums",
        "lanes.normal",
        "symbolic",
        "separators",
        "dissection",
        "eigenpairs",
        "chain.recurrences",
        "sparse.products",
        "sparse.sampling",
        "sparse.levels",
        "sparse.cholesky",
        "sparse.inverse",
        "sparse.step",
        "sparse.residual",
        "sparse.conditionals",
        "sparse.numbering",
        "sparse.density",
        "sparse.divergence",
        "chain.chunks",
        "chain.seams",
        "chain.strips",
        "chain.elimination",
        "chain.step",
        "chain.natural",
        "fronts.tree",
        "fronts.dense",
        "fronts.assembly",
    ),
    "graph": (
        "derived",
        "exchange",
        "fronts",
        "pattern",
        "colouring",
        "edges",
        "plotting",
        "topology",
        "families",
        "dissection",
        "orders",
        "graphs",
        "joint",
    ),
    "linalg": (
        "memory",
        "checks",
        "primitives",
        "long_chain",
        "sparse",
        "engines",
        "products",
        "factorisation",
        "inverse",
        "calculus",
        "natural",
        "eigenpairs",
        "step",
        "conditionals",
        "residual",
        "density",
        "sampling",
        "levels",
    ),
    "positivity": ("namespace", "gershgorin", "spectral", "families"),
    "stochastic": ("randomness", "probes", "xtrace", "estimators"),
    "gaussian": (
        "regression",
        "covariance",
        "conditioning",
        "fitting",
        "selection",
        "designs",
        "potentials",
        "grams",
        "linear",
        "factored",
        "model",
        "observed",
        "levels_fitting",
        "storage",
        "scipy_adapter",
    ),
    "geometry": (
        "kinds",
        "chains",
        "projection",
        "mixtures",
        "distances",
        "fisher",
        "conversions",
        "symmetric",
        "centroids",
        "transport",
    ),
    "fields": (
        "parameters",
        "constraints",
        "intrinsic",
        "state_space",
        "autoregression",
        "areal",
        "elements",
        "matern",
        "kronecker",
        "likelihoods",
        "laplace",
    ),
    "precompile": (),
    "": (),  # sparseggm/__init__.py
    "torch": (
        "errors",
        "operators.tracing",
        "operators.portable",
        "operators.registration",
        "operators.blocks",
        "operators.embedding",
        "operators.algebra",
        "operators.second_moments",
        "operators.spectral",
        "operators.addresses",
        "operators.numbering",
        "operators.samples",
        "operators.distances",
        "operators.density",
        "operators.joint",
        "operators.step",
        "operators.conditionals",
        "operators.residual",
        "operators.levels",
        "ops",
        "border",
        "packing",
        "potentials",
        "factored",
        "estimation",
        "distribution",
        "field_models",
        "divergences",
        "observed",
        "grey_levels",
        "heads",
        "residual",
        "geometry",
        "natural_gradients",
        "refinement",
        "optimisers",
        "fields",
    ),
    "pyro": (),
    "vae": (
        "errors",
        "checks",
        "latents",
        "config",
        "randomness",
        "processes",
        "plotting",
        "files.interrupt",
        "files.lock",
        "networks",
        "data",
        "likelihoods",
        "objective",
        "model",
        "rungs",
        "ladder",
        "files.checkpoint",
        "history",
        "train",
        "refinement",
        "diagnostics",
        "bounds",
        "evaluate",
        "interpolation",
        "trees",
        "tables",
        "sweep",
        "experiments",
        "results",
        "runs",
        "pixel_figures",
        "diagnostic_figure",
        "geometry_figures",
        "figures",
        "pixel_fit",
    ),
    "cli": (),
    "__main__": (),
}
"""A module imports from floors above its own line, and of its own floor from what stands before it: nothing else.

A package's `__init__`, which gathers its public names, comes last in it unless it is named, as "".
"""

INSIDE_FUNCTIONS = {"networkx", "matplotlib", "pyro", "pooch", "mlxtend"}
"""Optional packages, imported (but for annotations) where they are used; `cli` may do so with its heavy parts too."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    return [*module.split("."), ""][1]


def place_of(module: str) -> tuple[int, int]:
    """The floor and the place on it, counted from above, of a module or of the module that a dotted name is in."""
    floor, *inner = module.split(".")[1:] or [""]
    if floor not in FLOORS:  # sparseggm.Chain: a name of the package itself
        return [*FLOORS].index(""), 0
    modules = FLOORS[floor]
    for end in range(len(inner), 0, -1):
        if ".".join(inner[:end]) in modules:
            return [*FLOORS].index(floor), modules.index(".".join(inner[:end]))
    return [*FLOORS].index(floor), modules.index("") if "" in modules else len(modules)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, inside a function) of everything a file imports at run time; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(child) for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            yield from ((f"{node.module}.{alias.name}", id(node) in inside) for alias in node.names)


each_file = pytest.mark.parametrize("path", [*PACKAGE, *REFERENCE], ids=lambda path: str(path.relative_to(ROOT)))
each_package_file = pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))


@each_package_file
def test_a_module_is_on_the_map_and_imports_only_what_is_above_it(path: Path) -> None:
    module = module_of(path)
    floor, _, inner = module.removeprefix("sparseggm").removeprefix(".").partition(".")
    assert floor in FLOORS
    assert path.name == "__init__.py" or inner in {"", *FLOORS[floor]}
    for name, _ in imports_of(path):
        if name.split(".")[0] == "sparseggm":
            assert place_of(name) < place_of(module), f"{module} imports {name}"


def test_every_module_of_the_map_exists() -> None:
    there = {module_of(path) for path in PACKAGE}
    for floor, modules in FLOORS.items():
        assert {f"sparseggm.{floor}.{inner}" for inner in modules if inner} <= there


@each_file
def test_numba_is_for_kernels_and_torch_for_its_two_packages(path: Path) -> None:
    module = module_of(path)
    roots = {name.split(".")[0] for name, _ in imports_of(path)}
    if floor_of(module) != "kernels":
        assert "numba" not in roots
    if floor_of(module) not in ("torch", "vae", "cli"):
        assert not roots & {"torch", "matplotlib", "networkx", "mlxtend"} - (
            INSIDE_FUNCTIONS if floor_of(module) == "graph" else set()
        )


@pytest.mark.parametrize("path", [path for path in PACKAGE if "kernels" in path.parts], ids=lambda path: path.name)
def test_kernels_need_nothing_but_numpy_and_numba(path: Path) -> None:
    roots = {name.split(".")[0] for name, _ in imports_of(path)}
    assert roots <= {"llvmlite", "numba", "numpy", "sparseggm", *sys.stdlib_module_names}


@each_file
def test_nothing_is_imported_inside_a_function_but_what_is_optional(path: Path) -> None:
    if floor_of(module_of(path)) == "cli":
        pytest.skip("cli imports its heavy parts where it needs them")
    late = {name.split(".")[0] for name, inside in imports_of(path) if inside}
    assert late <= INSIDE_FUNCTIONS


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.name)
def test_the_reference_stands_on_numpy_and_scipy_alone(path: Path) -> None:
    allowed = {"numpy", "scipy", "reference", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name, _ in imports_of(path)} <= allowed


@each_package_file
def test_the_library_never_imports_its_oracle_or_its_tests(path: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imports_of(path)} & {"reference", "tests", "hypothesis", "pytest"}


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = "import sys, sparseggm; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sparseggm" in loaded
    assert not loaded & {"torch", "matplotlib", "networkx", "mlxtend", "jsonargparse", "reference"}


@pytest.mark.parametrize(
    "name", ["adjoints", "fields", "geometry", "gershgorin", "linalg", "parametrize", "spectral", "stochastic"]
)
def test_a_public_module_is_imported_by_its_name(name: str) -> None:
    import sparseggm

    assert importlib.import_module(f"sparseggm.{name}") is getattr(sparseggm, name)


def test_every_public_name_exists_and_is_listed_once_in_order() -> None:
    import sparseggm

    assert sparseggm.__all__ == sorted(set(sparseggm.__all__))
    assert all(hasattr(sparseggm, name) for name in sparseggm.__all__)


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    """Of the reader of imports: the forms in use are found, and whether they stand inside a function."""
    path = tmp_path / "example.py"
    path.write_text("import a.b\nfrom c import d as e\ndef f():\n    def g():\n        from h.i import j\n")
    assert sorted(imports_of(path)) == [("a.b", False), ("c.d", False), ("h.i.j", True)]
