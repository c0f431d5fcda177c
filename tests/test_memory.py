"""Memory that was freed serves the next tensor, without new pages."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from lit_generative.utils.memory import keep_freed_memory
keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
before = faults()
for _ in range(5): torch.ones(2**24)  # 64 MiB, 16,384 pages
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(("variable", "reuses"), [(None, True), ("MALLOC_TRIM_THRESHOLD_", False)])
def test_large_tensors_take_the_pages_of_those_before(variable, reuses, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    if variable:  # the user's choice stays
        monkeypatch.setenv(variable, "131072")
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert (int(run.stdout) < 2 * 16_384) == reuses  # of five times as many
