"""The table over several evaluations."""

import json
import sys

from benchmarks import trilemma


def test_results_of_several_evaluations_become_a_table_and_a_plot(tmp_path, monkeypatch, capsys):
    for name, distance in (("a", "fid_x"), ("b", "fid_x"), ("c", "fid_y")):
        metrics = {distance: 3.0, "samples_per_second": 10.0, "recall": 0.5}
        row = {"model": name.upper(), distance: "3.00", "recall": "0.500"}
        (tmp_path / name).mkdir()
        results = {"row": row, "protocol": {"FID": f"protocol of {name}"}, "metrics": metrics}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    paths = [str(tmp_path / name / "results.json") for name in "abc"]
    monkeypatch.setattr(sys, "argv", ["trilemma.py", *paths, "--output", str(tmp_path / "out")])
    trilemma.main()
    out = capsys.readouterr().out
    lines = (tmp_path / "out" / "trilemma.md").read_text().splitlines()
    assert lines[0] == "| run | model | fid_x | recall | fid_y |" and lines[0] in out
    assert lines[2].endswith("| A | 3.00 | 0.500 | - |") and lines[4].endswith("| C | - | 0.500 | 3.00 |")
    assert any("protocol of b" in line for line in lines)
    assert (tmp_path / "out" / "trilemma.png").read_bytes().startswith(b"\x89PNG")
