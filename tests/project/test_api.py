"""The names that the package promises, its errors, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import qsplit
from qsplit import errors
from qsplit.config import Settings
from qsplit.errors import QsplitError, UsageError

PACKAGE = Path(qsplit.__file__).parent
BESIDE_VLLM = ("encoder_cache", "ec_connector")  # which `make test-vllm` imports
MODULES = sorted(
    ".".join(("qsplit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__main__", *BESIDE_VLLM)
)


def test_the_public_names_are_pinned() -> None:
    assert qsplit.__all__ == [
        "Album",
        "Encoder",
        "FeatureStore",
        "Features",
        "LanguageModel",
        "VisionEncoder",
        "__version__",
        "load_image",
        "open",
    ]
    assert all(getattr(qsplit, name) for name in qsplit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qsplit.nothing


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public} has no docstring"


def test_the_tree_of_errors_is_as_drawn() -> None:
    drawn = [line for line in str(errors.__doc__).splitlines() if "─" in line or line.strip() == "QsplitError"]
    names = [line.strip("│├└─ ").split()[0] for line in drawn]
    assert sorted(names) == sorted(errors.__all__)
    for line, name in zip(drawn, names, strict=True):
        kind = getattr(errors, name)
        assert len(kind.__mro__) - len(Exception.__mro__) - 1 == line.index(name) // 4 - 1, f"{name} is drawn elsewhere"


@pytest.mark.parametrize(
    ("name", "code"),
    [("QsplitError", 1), ("UsageError", 2), ("IncompatibleFeatures", 3), ("CorruptStore", 4), ("NotIndexed", 5)],
)
def test_exit_codes_are_pinned(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_an_error_says_what_was_found_and_what_to_do() -> None:
    assert str(QsplitError("The store is gone.", fix="Run `qsplit index`.")) == "The store is gone. Run `qsplit index`."


def test_importing_the_package_loads_neither_torch_nor_lancedb() -> None:
    heavy = ("torch", "lancedb", "transformers", "numpy")
    code = f"import sys, qsplit, qsplit.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_come_from_the_environment() -> None:
    found = Settings.from_env({"QSPLIT_STORE": "a", "QSPLIT_MAX_IMAGE_PIXELS": "12", "HOME": "x", "QSPLIT_MODEL": ""})
    assert (found.store, found.max_image_pixels, found.model) == ("a", 12, "")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"QSPLIT_STOER": "a"}, "QSPLIT_STOER is set, but qsplit has no such setting"),
        ({"QSPLIT_MAX_IMAGE_BYTES": "many"}, "'many', not a whole number"),
        ({"QSPLIT_MAX_IMAGE_BYTES": "0"}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings.from_env(environ)
