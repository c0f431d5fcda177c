"""The classes of a package are found in its files."""

import pytest

from lit_generative.utils.discovery import classes_of


@pytest.fixture
def package(tmp_path, monkeypatch):
    files = {
        "__init__": "",
        "base": "from abc import ABC, abstractmethod\nclass Base(ABC):\n    @abstractmethod\n    def run(self): ...",
        "first": "from kinds.base import Base\nclass First(Base):\n    def run(self): ...\nclass Other: ...",
        "second": "from kinds.first import First\nclass Second(First): ...",
        "_shared": "from kinds.first import First\nclass Shared(First): ...",
    }
    (tmp_path / "kinds").mkdir()
    for name, text in files.items():
        (tmp_path / "kinds" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "kinds"


def test_every_concrete_class_is_found_in_the_file_that_defines_it(package):
    from kinds.base import Base

    found = classes_of(package, Base)
    assert {name: cls.__module__ for name, cls in found.items()} == {"First": "kinds.first", "Second": "kinds.second"}
