"""The page that compares runs: what it reads, what it calls comparable, and what a browser makes of it."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from PIL import Image

import train
from lit_generative.errors import UserError
from lit_generative.report import charts
from lit_generative.report.page import alike, number, table, write_report
from lit_generative.report.runs import run_of, runs_of

browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FID = "fid_lenet: 2,000 samples; features: lenet"


def write_run(
    folder, row=None, protocol=None, metrics=None, curves="epoch,step,train/loss,val/loss\n0,1,2.5,\n0,2,1.5,1.75\n"
):
    """A run as training and test leave it."""
    (folder / "test" / "version_0" / "images").mkdir(parents=True)
    (folder / "metrics.csv").write_text(curves)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "model": {"class_path": "a.b.VAE"}}))
    row = {"model": "VAE", "data": "MNIST"} | (row or {})
    results = {
        "row": row,
        "protocol": {"MNIST": "test images", "FID": FID} | (protocol or {}),
        "metrics": metrics or {},
    }
    (folder / "test" / "version_0" / "results.json").write_text(json.dumps(results))
    Image.new("L", (8, 8), 100).save(folder / "test" / "version_0" / "images" / "samples_test.png")
    return folder


@pytest.fixture
def three(tmp_path):
    """Two runs that can be compared, and one with fewer samples."""
    write_run(tmp_path / "one" / "version_0", {"fid_lenet": "2.50", "recall": "0.30", "samples/s": "1,200"})
    write_run(tmp_path / "two" / "version_0", {"fid_lenet": "10.25", "recall": "0.65", "samples/s": "90"})
    few = {"FID": "fid_lenet: 500 samples; features: lenet"}
    write_run(tmp_path / "three" / "version_0", {"fid_lenet": "1.00", "NLL, nats": "90.5 ± 0.3"}, few)
    return [str(tmp_path / name) for name in ("one", "two", "three")]


def cells(found, run):
    row = next(row for row in found["rows"] if row["name"] == run)
    return dict(zip(found["columns"], row["cells"], strict=True))


# -- numbers ---------------------------------------------------------------------------------------


def test_the_best_is_of_those_that_can_be_compared(three):
    found = table(runs_of(three))
    one, two, last = (cells(found, run) for run in ("one", "two", "three"))
    assert one["fid_lenet"]["best"] and not two["fid_lenet"]["best"] and not last["fid_lenet"]["best"]
    assert two["recall"]["best"] and one["samples/s"]["best"]  # more is better; thousands have commas
    assert last["recall"] == {"text": "", "number": "", "best": False, "note": ""}
    (note,) = found["notes"]
    assert (
        "fid_lenet of three is of another protocol: fid_lenet: 500 samples" in note and last["fid_lenet"]["note"] == 1
    )
    assert not last["NLL, nats"]["best"]  # alone


def test_each_distance_has_the_protocol_of_its_own_features(tmp_path):
    """Of two extractors, of which the second saw fewer samples in one run."""
    sources = []
    for name, samples in (("one", 2000), ("two", 2000), ("few", 500)):
        protocol = {"FID": "fid_a: 2,000 samples", "FID 3": f"fid_b: {samples} samples"}
        row = {"fid_a": "2.0" if name == "one" else "3.0", "fid_b": "1.0" if name == "few" else "5.0"}
        sources.append(str(write_run(tmp_path / name / "version_0", row, protocol)))
    found = table(runs_of(sources))
    assert cells(found, "one")["fid_a"]["best"] and not cells(found, "few")["fid_b"]["best"]
    (note,) = found["notes"]
    assert note == "fid_b of few is of another protocol: fid_b: 500 samples"


@pytest.mark.parametrize(
    ("cell", "value"),
    [("2.50", 2.5), ("1,234.5", 1234.5), ("≤ 2025.4 ± 4.4 (bound)", 2025.4), ("-90.5 ± 0.3", -90.5), ("1e-05", 1e-5)],
)
def test_numbers_of_cells(cell, value):
    assert number(cell) == value


def test_text_has_no_number():
    assert all(value != value for value in map(number, ("none", "", "-", "FlowMatching")))


def test_curves_of_one_size_share_a_chart():
    curves = {name: [(0, value)] for name, value in {"a": 100.0, "b": 250.0, "c": 0.01, "d": -120.0}.items()}
    assert alike(curves) == [["a", "b", "d"], ["c"]]


# -- what is read ----------------------------------------------------------------------------------


def test_a_run_is_found_by_its_folder_a_version_a_checkpoint_and_its_results(three, tmp_path):
    folder = tmp_path / "one" / "version_0"
    write_run(tmp_path / "one" / "version_10")
    assert run_of(tmp_path / "one").folder.name == "version_10"  # the newest
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    results = folder / "test" / "version_0" / "results.json"
    for source in (folder, folder / "checkpoints" / "best.ckpt"):
        assert run_of(source).folder == folder
    assert run_of(results).results == run_of(folder).results
    assert run_of(folder).curves == {"train/loss": [(1, 2.5), (2, 1.5)], "val/loss": [(2, 1.75)]}
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"is no run: give a run's folder, a checkpoint in one, or a results\.json"):
            run_of(nothing)


def test_names_tell_runs_apart(tmp_path):
    sources = [write_run(tmp_path / place / "vae" / "version_0") for place in ("a", "b")]
    assert [run.name for run in runs_of([str(source) for source in sources])] == ["a/vae", "b/vae"]
    assert len(runs_of([str(sources[0])] * 2)) == 1


# -- the page --------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_shows_everything(three, tmp_path):
    page = tmp_path / "report.html"
    write_report(runs_of(three), page)
    text = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:|//|file:)""", text.replace('href="http://www.w3.org', ""))
    assert text.count("data:image/png;base64") == 3 and text.count("<svg") >= 3
    for shown in (
        "2.50",
        "1,200",
        "90.5 ± 0.3",
        "fid_lenet: 500 samples",
        "train.py fit --config",
        "recall against fid",
    ):
        assert shown in text
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))  # no chart refers to another's parts


def test_names_and_texts_are_escaped(tmp_path):
    write_run(tmp_path / "<b>$run$" / "version_0", {"model": "<script>alert(1)</script>"})
    write_report(runs_of([str(tmp_path / "<b>$run$")]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text and "<b>$run" not in text and "&lt;b&gt;$run$" in text


def test_scores_have_histograms_and_curves(tmp_path):
    folder = write_run(tmp_path / "one" / "version_0")
    (folder / "test" / "version_0" / "ood").mkdir()
    lines = [
        "images,number,likelihood",
        *(f"test,{i},{i}" for i in range(20)),
        *(f"KMNIST,{i},{i + 15}" for i in range(20)),
    ]
    (folder / "test" / "version_0" / "ood" / "scores.csv").write_text("\n".join([*lines, "train,0,3"]))
    write_report(runs_of([str(tmp_path / "one")]), tmp_path / "report.html")
    assert "KMNIST 0.969" in (tmp_path / "report.html").read_text()  # 387.5 of 400 pairs are in order


def test_the_area_under_the_curve_is_that_of_its_pairs():
    text = charts.roc([0.0, 1.0, 2.0], {"x": [1.0, 3.0]}, "t")  # pairs in order: 1 > 0, half of 1 = 1, and 3 > all
    assert "x 0.750" in text


def test_the_command_writes_and_does_not_overwrite(three, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(["report", *three])
    assert "3 runs: report.html" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"report\.html"):
        train.main(["report", *three])
    train.main(["report", three[0], "--overwrite"])
    with pytest.raises(SystemExit, match="nowhere is no run"):
        train.main(["report", "nowhere", "--output", "b.html"])


@pytest.mark.skipif(browser is None, reason="needs Chromium")
def test_a_browser_sorts_and_has_no_errors(three, tmp_path):
    write_report(runs_of(three), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    watch = "<script>window.errors = []; window.onerror = message => errors.push(message)</script>"
    act = """<script>
      const heads = [...document.querySelectorAll("#results th")];
      const order = () => [...document.querySelectorAll("#results tbody tr")].map(row => row.cells[0].innerText).join();
      const found = [order()];
      for (const name of ["fid_lenet", "fid_lenet", "recall"]) {
        heads.find(head => head.innerText.trim() === name).querySelector("button").click();
        found.push(order());
      }
      const wide = document.documentElement.scrollWidth > window.innerWidth;
      const asked = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
      document.title = JSON.stringify({found, errors, wide, asked});
    </script>"""
    acted = tmp_path / "acted.html"
    acted.write_text(text.replace("<meta", f"{watch}<meta", 1).replace("</body>", f"{act}</body>"))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=500,900",
        "--dump-dom",
        acted.as_uri(),
    ]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(\{.*?\})</title>", out)[1]
    found = json.loads(title.replace("&quot;", '"'))
    # a missing recall comes last
    assert found["found"] == ["one,two,three", "three,one,two", "two,one,three", "one,two,three"]
    assert found["errors"] == [] and found["asked"] == 0 and not found["wide"]
