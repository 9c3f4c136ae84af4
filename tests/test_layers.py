"""Imports point down the layers of the package, and only the named modules know the foreign libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qsplit

PACKAGE = Path(qsplit.__file__).parent
LAYERS = (
    ("errors", "config", "mini", "policies", "sample", "ahead", "behind", "heap", "progress", "user_data"),
    (
        "exif",
        "perceptual",
        "pillow",
        "codecs",
        "blobs",
        "ids",
        "thumbnails",
        "objects",
        "disk",
        "policy",
        "clips",
        "grids",
        "planes",
        "geometry",
        "neighbours",
        "trash",
        "terms",
        "appended",
        "raw",
        "indexes",
        "retrieval",
        "ranking",
        "cursors",
        "cutting",
        "stops",
        "tails",
        "finite",
    ),
    (
        "images",
        "features",
        "schema",
        "digests",
        "family",
        "manifest",
        "resize",
        "choices",
        "landmarks",
        "windows",
        "shown",
        "layout",
    ),
    (
        "half",
        "hub",
        "rows",
        "migrations",
        "keys",
        "content",
        "motion",
        "parts",
        "places",
        "tiles",
        "placeholders",
        "tokens",
        "vectors",
        "query",
        "filters",
    ),
    ("checkpoint", "store", "move_rules", "notes", "prefixes", "agreement"),
    ("preparing", "batch", "kept", "timeline", "comparing", "chat"),
    ("packing",),
    ("vision", "language", "locate", "upkeep", "portraits", "filling", "scope", "shelf"),
    ("semantics", "rerank", "pages", "answering", "answerer", "probe", "finder"),
    ("targets", "together", "captions", "splitting", "remote", "exporting"),
    ("indexing", "search", "asking", "status", "drift", "keepers", "candidates"),
    ("checking", "transcript", "verifying", "dedupe", "sources", "relay"),
    ("reports", "cleanup", "side_by_side", "known_groups", "checked", "sharding"),
    ("album",),
    ("mini tools",),
    ("demo", "doctor", "cluster", "encoder_cache"),
    ("server",),
    ("cli",),
    ("__init__", "__main__"),
)
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}
WITHIN_A_ROW = {
    ("digests", "errors"),
    ("config", "errors"),
    ("user_data", "errors"),
    ("locate", "store"),
    ("clips", "pillow"),
    ("disk", "blobs"),
    ("planes", "thumbnails"),
}
LAZY = {"__init__", "cli", "demo"}  # import inside functions: what starts fast, and the demo's separate processes
FOREIGN = {
    # The store alone opens and commits; the others build what is asked of a table: expressions, queries, settings.
    "lancedb": {"store", "vectors", "indexes", "filters", "scope"},
    "lance": {"store", "upkeep", "indexes"},
    "transformers": {
        "family",
        "half",
        "checkpoint",
        "packing",
        "language",
        "chat",
        "tails",
        "tiles",
        "placeholders",
        "batch",
        "demo",
        "mini tools",
    },
    "httpx": {"remote"},
    "ray": {"cluster"},
    "vllm": {"encoder_cache"},
    "qwen_vl_utils": {"preparing"},
    "huggingface_hub": {"hub"},
    "click": {"cli", "mini tools"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "pydantic": {"server"},
    "uvicorn": {"server"},
    "prometheus_client": {"server"},
}


def sources() -> list[tuple[str, ast.Module]]:
    """(module of the first level, its syntax tree); what lies in a folder counts as the folder.

    Only the place of the bundled checkpoint is for all to import; what makes and measures it stands on everything.
    """
    paths = sorted(PACKAGE.rglob("*.py"))
    named = [(path.relative_to(PACKAGE).with_suffix("").parts, path) for path in paths]
    return [
        ("mini tools" if parts[0] == "mini" and parts[1] != "__init__" else parts[0], ast.parse(path.read_text()))
        for parts, path in named
    ]


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """(dotted name, whether it is imported inside a function)."""
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            whole = node.module != "qsplit"
            names = [str(node.module) if whole else f"qsplit.{alias.name}" for alias in node.names]
            found += [(name, node in inside) for name in names]
    return found


def own(name: str) -> str | None:
    parts = name.split(".")
    if parts[:2] == ["qsplit", "mini"] and len(parts) > 2 and parts[2] != "path":
        return "mini tools"
    return parts[1] if parts[0] == "qsplit" and len(parts) > 1 and parts[1] in ROW else None


@pytest.mark.parametrize(("module", "tree"), sources(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(module: str, tree: ast.Module) -> None:
    assert module in ROW, f"{module}.py is in no layer"
    for name, _ in imports(tree):
        target = own(name)
        if target and target != module and (module, target) not in WITHIN_A_ROW:
            assert ROW[target] < ROW[module], f"{module} imports {target}, which is not below it"


@pytest.mark.parametrize(("module", "tree"), sources(), ids=lambda value: value if isinstance(value, str) else "")
def test_our_own_modules_are_imported_at_the_top(module: str, tree: ast.Module) -> None:
    lazy = [name for name, inside in imports(tree) if inside and own(name)]
    assert not lazy or module in LAZY, f"{module} imports {lazy} inside a function"


@pytest.mark.parametrize(("module", "tree"), sources(), ids=lambda value: value if isinstance(value, str) else "")
def test_foreign_libraries_stay_where_they_are_known(module: str, tree: ast.Module) -> None:
    for name, _ in imports(tree):
        allowed = FOREIGN.get(name.split(".")[0])
        assert allowed is None or module in allowed, f"{module} imports {name}"


def test_asking_cannot_reach_the_vision_half() -> None:
    reached, waiting = set(), ["asking"]
    trees = dict(sources())
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += [target for name, _ in imports(trees[module]) if (target := own(name)) and target not in reached]
    assert "vision" not in reached
    assert {"language", "store", "locate"} <= reached
