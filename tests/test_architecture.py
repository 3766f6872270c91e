"""Who may import whom, what may not be written anywhere, and how long a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.imports import PACKAGES, ROOT, Import, imports_of, module_name, nodes_with_laziness, python_files

MAX_LINES = 350

# What of ours each package may import, by prefix; a package may always import itself.
MAY_IMPORT = {
    "processing": (),
    "compressors": (),
    "engine": ("compressors", "processing"),
    "server": (
        *("processing", "engine.config", "engine.messages", "engine.client", "engine.errors"),
        "engine.host.garbage",
        "engine.host.logs",
        "engine.host.programs",
    ),
    "training": ("processing", "engine", "compressors"),
    "demo": (),
    "benchmarks": ("server", "processing", "engine", "compressors", "training", "demo"),
    "selftest": ("processing", "engine", "demo"),
    "tests": ("server", "processing", "engine", "compressors", "training", "demo", "benchmarks", "selftest"),
}

# Where the program is put together, and only inside functions: serving must not pay for training.
LAZY_IN = (Path("server/cli.py"),)
MAY_IMPORT_LAZILY = ("engine.ipc.process", "demo", "training", "benchmarks", "selftest")

# All of the server's own modules, and the bookkeeping half of the engine: property-tested in milliseconds.
TORCH_FREE = ("processing", "server")


def strict_modules() -> list[str]:
    """Those of the engine that mypy checks strictly, which are the ones without torch."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (strict,) = (one for one in config["tool"]["mypy"]["overrides"] if one.get("disallow_any_generics"))
    modules: list[str] = strict["module"]
    return modules


# Run code from data, or load it.
FORBIDDEN_MODULES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
# Noise that another request would feel; we key noise by (seed, choice, position).
GLOBAL_SEEDS = ("torch.manual_seed", "torch.seed", "random.seed", "np.random.seed", "numpy.random.seed")
GLOBAL_SETTINGS = (
    *("torch.set_num_threads", "torch.set_num_interop_threads", "torch.set_default_dtype"),
    *("torch.set_default_device", "torch.set_grad_enabled", "torch.use_deterministic_algorithms"),
)

SOURCES = [path for package in PACKAGES for path in python_files(package)]
OURS = [path for path in SOURCES if path.parts[0] != "tests"]


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def breaks_rules(item: Import) -> bool:
    package = item.path.parts[0]
    if item.top not in PACKAGES:
        foreign = item.top not in sys.stdlib_module_names and item.top != "torch"
        return package == "compressors" and foreign
    if item.top == package or within(item.module, MAY_IMPORT[package]):
        return False
    return not (item.lazy and item.path in LAZY_IN and within(item.module, MAY_IMPORT_LAZILY))


def is_unsafe_load(call: ast.Call) -> bool:
    """``torch.load`` without ``weights_only=True``, which would unpickle anything."""
    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    return ast.unparse(call.func) == "torch.load" and not safe


def forbidden_in(tree: ast.AST, *, may_seed: bool = False) -> list[str]:
    """What no file of ours may say, with its line.

    ``may_seed``: a training run owns its process, so seeding inside functions is its own business.
    """
    found = []
    for node, lazy in nodes_with_laziness(tree):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                found.append(f"{node.value.lineno}: {node.arg}=True")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            seeds = name in GLOBAL_SEEDS and not (may_seed and lazy)
            if is_unsafe_load(node) or seeds or (name in GLOBAL_SETTINGS and not lazy):
                found.append(f"{node.lineno}: {name}()")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"{node.lineno}: from torch import load" for a in node.names if a.name == "load"]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    wrong = [str(item) for path in python_files(package) for item in imports_of(path) if breaks_rules(item)]
    assert not wrong, "\n".join(wrong)


def test_every_top_level_package_has_a_rule() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= set(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_stay_small(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_LINES, f"{path}: {lines} lines. A file past about 300 lines is asking to be two."


@pytest.mark.parametrize("path", OURS, ids=str)
def test_nothing_unsafe_is_written(path: Path) -> None:
    may_seed = path.parts[0] in ("demo", "training")
    found = forbidden_in(ast.parse((ROOT / path).read_text()), may_seed=may_seed)
    found += [str(item) for item in imports_of(path) if item.top in FORBIDDEN_MODULES]
    assert not found, f"{path}: {found}"


def test_torch_free_modules_do_not_reach_torch() -> None:
    names = [module_name(path) for path in OURS]
    free = [name for name in names if within(name, TORCH_FREE) and not name.endswith("__main__")]
    free += strict_modules()
    assert set(free) <= set(names), "a module was renamed: keep the list true"
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'importing {name} imports torch'\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *free], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def seen(source: str, path: str, tmp_path: Path) -> list[Import]:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return imports_of(Path(path), tmp_path)


@pytest.mark.parametrize(
    ("path", "source", "allowed"),
    [
        ("processing/a.py", "from engine.messages import GenerateRequest", False),
        ("processing/a.py", "def f():\n    import engine", False),
        ("processing/deep/a.py", "from ...server import app", False),
        ("processing/deep/a.py", "from ..prompt import Prompt", True),
        ("engine/a.py", "import server.app", False),
        ("engine/a.py", "import importlib\nimportlib.import_module('server.app')", False),
        ("engine/a.py", "import compressors, processing", True),
        ("server/a.py", "from engine import core", False),
        ("server/a.py", "from engine.messages import StepReport", True),
        ("server/a.py", "def f():\n    import engine.ipc.process", False),
        ("server/cli.py", "import engine.ipc.process", False),
        ("server/cli.py", "def f():\n    import engine.ipc.process", True),
        ("server/cli.py", "def f():\n    import engine.core", False),
        ("compressors/a.py", "import torch.nn, math", True),
        ("compressors/a.py", "import transformers", False),
        ("demo/a.py", "import transformers", True),
        ("demo/a.py", "import engine", False),
        ("benchmarks/a.py", "import tests.models", False),
    ],
)
def test_the_rules_catch_what_they_should(path: str, source: str, allowed: bool, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "core.py").write_text("")
    assert any(map(breaks_rules, seen(source, path, tmp_path))) is not allowed


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import torch\ntorch.load('x')", True),
        ("import torch\ntorch.load('x', weights_only=True)", False),
        ("from torch import load", True),
        ("f(trust_remote_code=True)", True),
        ("f(trust_remote_code=config.trust_remote_code)", False),
        ("torch.set_num_threads(2)", True),
        ("def f():\n    torch.set_num_threads(2)", False),
        ("def f():\n    torch.manual_seed(0)", True),
        ("torch.Generator().manual_seed(0)", False),
        ("np.load(path, allow_pickle=True)", True),
    ],
)
def test_the_unsafe_is_recognised(source: str, caught: bool) -> None:
    assert bool(forbidden_in(ast.parse(source))) is caught


def test_only_training_may_seed_and_only_when_run() -> None:
    assert not forbidden_in(ast.parse("def f():\n    torch.manual_seed(0)"), may_seed=True)
    assert forbidden_in(ast.parse("torch.manual_seed(0)"), may_seed=True)
