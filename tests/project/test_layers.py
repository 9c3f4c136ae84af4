"""The rule of imports: a package imports packages of lower rows only, and each foreign library is known to one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qsplit

PACKAGE = Path(qsplit.__file__).parent
ROWS = (
    ("errors",),
    ("config", "progress", "concurrency", "memory", "files", "user_data", "bundled", "html"),
    ("media", "features"),
    ("models", "store"),
    ("indexing", "search", "duplicates", "qa", "maintenance", "training", "integrations"),
    ("cluster",),
    ("album",),
    ("server", "mcp", "client", "mini"),
    ("cli",),
    ("__init__", "__main__", "encoder_cache"),
)
ROW = {package: row for row, packages in enumerate(ROWS, 1) for package in packages}
LAZY = {"__init__", "album", "cli", "mini/demo"}  # what starts fast, and the demo's separate processes
FOREIGN = {
    "lancedb": {"store", "search/filters"},
    "lance": {"store"},
    "transformers": {"models", "mini"},
    "httpx": {"integrations"},
    "joblib": {"duplicates"},
    "ray": {"cluster"},
    "vllm": {"integrations/vllm/ec_connector"},
    "qwen_vl_utils": {"models"},
    "torchvision": {"models"},
    "tokenizers": {"mini"},
    "huggingface_hub": {"models"},
    "click": {"cli", "mini"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "pydantic": {"server"},
    "uvicorn": {"server"},
    "prometheus_client": {"server"},
    "opentelemetry": {"server"},
}


def module_name(path: Path) -> str:
    """The place of a module below the package: ``store/schema``; ``store`` for the package itself."""
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return name.removesuffix("/__init__")


def package_of(module: str) -> str:
    return module.split("/", maxsplit=1)[0]


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """(dotted name, whether it is imported inside a function)."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [(f"{node.module}.{alias.name}", node in inside) for alias in node.names]
    return found


MODULES = {module_name(path): imports(ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))}


def own(name: str) -> str | None:
    """The module of this package that is imported by a dotted name; None for foreign ones."""
    first, *parts = name.split(".")
    if first != "qsplit":
        return None
    while parts and "/".join(parts) not in MODULES:
        parts.pop()
    return "/".join(parts) or "__init__"


def reached(module: str) -> set[str]:
    """Every module of this package that is loaded with one, itself included."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        parents = [name.rsplit("/", n)[0] for n in range(1, name.count("/") + 1)]
        targets = [target for imported, _ in MODULES[name] if (target := own(imported))]
        waiting += [one for one in (*targets, *parents) if one not in seen and one != "__init__" and one in MODULES]
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    package = package_of(module)
    assert package in ROW, f"{package} is in no row"
    for name, _ in MODULES[module]:
        target = own(name)
        if target is None or target == "__init__":
            continue
        other = package_of(target)
        if other != package:
            assert ROW[other] < ROW[package], f"{module} imports {target}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_our_own_modules_are_imported_at_the_top(module: str) -> None:
    lazy = [name for name, inside in MODULES[module] if inside and own(name)]
    allowed = package_of(module) in LAZY or module in LAZY
    assert not lazy or allowed, f"{module} imports {lazy} inside a function"


@pytest.mark.parametrize("module", MODULES)
def test_foreign_libraries_are_known_to_one_package(module: str) -> None:
    for name, _ in MODULES[module]:
        allowed = FOREIGN.get(name.split(".")[0])
        assert allowed is None or {package_of(module), module} & allowed, f"{module} imports {name}"


def below(package: str) -> list[str]:
    """The modules of a package, itself included."""
    return [name for name in MODULES if f"{name}/".startswith(f"{package}/")]


@pytest.mark.parametrize(
    ("package", "never"), [("qa", "models/vision"), ("integrations", "models/vision"), ("duplicates", "models")]
)
def test_a_package_never_reaches_another(package: str, never: str) -> None:
    assert below(never)
    for module in below(package):
        found = reached(module) & set(below(never))
        assert not found, f"{module} reaches {sorted(found)}"


def test_what_is_reached_is_found_through_others() -> None:
    assert {"models/language/model", "store/feature_store", "store/lookup"} <= reached("qa/ask")
    assert {"models/vision/encoder", "models/vision", "models"} <= reached("indexing/pipeline")
