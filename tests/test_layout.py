"""The house's rules that a machine can check."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import processes
import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

ROOT = Path(__file__).parents[1]
PACKAGES = ("lit_generative", "datamodules", "callbacks")


def imports(path):
    return imports_of(ast.walk(ast.parse(path.read_text())))


def imports_of(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_train_names_no_model():
    names = [name for name in imports(ROOT / "train.py") if name.startswith("lit_generative.models.")]
    assert not names
    models = {path.stem for path in (ROOT / "lit_generative" / "models").glob("*.py")} - {"__init__"}
    words = {node.id.lower() for node in ast.walk(ast.parse((ROOT / "train.py").read_text())) if hasattr(node, "id")}
    assert not models & words


def test_files_stay_readable():
    long = {
        str(p.relative_to(ROOT)): n for p in ROOT.glob("[lcd]*/**/*.py") if (n := len(p.read_text().splitlines())) > 260
    }
    assert not long


def test_hooks_are_real():
    """A method named like a hook that Lightning does not call would never run."""
    known = {name for cls in (Callback, LightningModule, LightningDataModule) for name in dir(cls)}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("on_"):
                    assert node.name in known, f"{path.relative_to(ROOT)}: {node.name}"


def test_mistakes_of_users_have_a_class_of_their_own():
    """Whatever else is raised counts as a bug, whose traceback is shown."""
    builtin = {"ValueError", "TypeError", "KeyError", "RuntimeError", "AttributeError", "Exception"}
    for path in [ROOT / "train.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                assert name not in builtin or path.match("checkpoints/load.py"), (
                    f"{path.relative_to(ROOT)} raises {name}"
                )


def print_slow_imports():
    # (Lightning's torchmetrics imports matplotlib, scipy and torch_fidelity where they are installed)
    print([name for name in ("wandb", "tensorboard", "sklearn") if name in sys.modules], "train" in sys.modules)


def test_slow_imports_wait_until_they_are_needed(tmp_path):
    # in a process that has imported `train`, and nothing else
    assert processes.run(print_slow_imports, folder=tmp_path).stdout == "[] True\n"
    slow = {"wandb", "matplotlib", "torch_fidelity", "scipy", "tensorboard"}
    for path in [ROOT / "train.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]:
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not slow & {name.split(".")[0] for name in imports_of(top)}, path


@pytest.mark.parametrize("package", PACKAGES)
def test_docstring_examples_run(package):
    import doctest

    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, f"{package}."):
        assert doctest.testmod(importlib.import_module(info.name)).failed == 0
