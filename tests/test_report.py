"""The HTML report: well-formed, self-contained, escaped, and with the numbers of the result."""

import base64
import dataclasses
import math
import os
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Status
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.network import (
    Activate,
    Dense,
    LayerPath,
    LayerReport,
    Network,
    PruningResult,
    plot_result,
    write_report,
)
from nettrim_solver.network.charts import MAX_CELLS, LogAxis, cell_counts, histogram, png
from nettrim_solver.network.report import FIELDS, html_report
from nettrim_solver.pipeline import Pipeline, Refit, Solve

from .helpers import prune
from .test_modes import convnet, images, mlp, samples

VOID = {"meta", "img", "br"}
X = samples()
NASTY = """<script>alert("1")</script> & 'x' </style>"""


class Page(HTMLParser):
    """A page taken apart; tags that do not nest are errors."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.data, self.words, self.numbers = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self.numbers.append(float(dict(attrs)["value"]))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def path_of(name, size):
    nnz = np.array([0, size // 10, size // 2, size])
    errors = np.array([1.0, 0.5, 0.1, 0.0])
    return LayerPath(name, size, nnz, errors, errors**2, errors, errors**2)


@pytest.fixture(scope="module")
def result():
    return prune(
        mlp(), X, tolerance=0.3, X_heldout=samples(40, seed=3), skip="W1", max_rows=np.inf
    )  # fmt: skip


@pytest.fixture(scope="module")
def convolutions():
    return prune(convnet(), images(), sparsity=0.8, steps="magnitude")


def named(result, name):
    """A result whose first layer has another name."""
    one = Network([Dense(np.eye(3), name=name), Activate("relu")])
    report = dataclasses.replace(
        result.layers[0], name=name, kind=name, reason=name, warnings=(name,), solver=name,
        budget=name, outcome="failed",
    )  # fmt: skip
    return dataclasses.replace(
        result, network=one, original=one, layers=(report,), sample_shape=(3,)
    )


# The page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["result", "convolutions"])
def test_the_page_is_well_formed_and_loads_nothing(which, request):
    result = request.getfixturevalue(which)
    paths = [path_of(one.name, one.size) for one in result.layers]
    text = html_report(result, paths=paths, title="A title")
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/png;base64,") for source in page.values("img", "src"))
    ids = page.values("article", "id")
    assert all(target.removeprefix("#") in ids for target in page.values("a", "href"))
    assert len(set(ids)) == len(result.layers) == len(page.values("img", "src"))
    assert "A title" in page.text and page.tags.count("polyline") == 4 * len(paths)


def test_every_number_of_the_result_is_on_the_page(result):
    page = Page(html_report(result))
    for name in ("output_error", "output_error_heldout", "output_bound", "sparsity", "nnz"):
        assert getattr(result, name) in page.numbers
    for one in result.layers:
        for name in FIELDS:
            value = getattr(one, name)
            if isinstance(value, (int, float)):
                assert value in page.numbers, name
            elif isinstance(value, str):
                assert value in page.text
    assert f"{100 * result.sparsity:.2f} %" in page.text and "2 of 2" in page.text
    assert "W1 skipped" in page.text


def tiles(page):
    """The names of the numbers at the top, with what stands below each."""
    name, note = '<span class="soft">(.*?)</span>', '<span class="soft">(.*?)<'
    return dict(re.findall(f'tile">{name}.*?{note}', page))


def test_facts_of_the_caller_are_at_the_top_and_numbers_that_do_not_apply_are_not(result):
    magnitude = prune(mlp(), X, sparsity=0.5, steps="magnitude")
    names = list(tiles(html_report(magnitude, facts={"Accuracy": ("97 %", "98 % <before>")})))
    assert names == ["Zeros", "Accuracy", "Output error, calibration"]
    page = Page(html_report(magnitude, facts={"R2": "0.93", NASTY: ("1", NASTY)}))
    assert "97 %" not in page.text and "0.93" in page.text and page.text.count(NASTY) == 2
    assert list(tiles(html_report(result)))[-2:] == ["Output error, held out", "Proved optimal"]


def test_the_accuracy_that_a_search_kept_is_at_the_top():
    network, held = mlp(), samples(40, seed=3)
    labels = network(held).argmax(axis=1)
    result = prune(
        network, X, accuracy=lambda one: np.mean(one(held).argmax(axis=1) == labels),
        min_accuracy=0.7, steps="magnitude",
    )  # fmt: skip
    page = html_report(result)
    assert {result.value, 0.7} <= set(Page(page).numbers) and "Accuracy" in tiles(page)
    assert "by the function" not in html_report(result, facts={"Accuracy": "1"})


def test_the_run_says_everything_once(result):
    table = html_report(result).partition("The run")[2].partition("</table>")[0]
    keys = re.findall("<th>(.*?)</th>", table)
    assert len(keys) == len(set(keys)) and {"budget", "recipe", "input", "numpy"} <= set(keys)


def test_errors_at_their_bound_and_without_one_say_so():
    network = mlp(widths=(12, 3))
    whole = prune(network, X, tolerance=0.3, max_rows=np.inf)
    assert abs(whole.output_bound - whole.output_error) < 1e-9
    assert "at its bound" in html_report(whole) and "No bound" not in html_report(whole)
    partly = html_report(prune(network, X, tolerance=0.3, max_rows=30))
    assert "no bound" in partly and "No bound for W0: pruned on a part of the rows" in partly


def test_every_status_of_a_network_is_told_without_the_words_of_a_layer(result):
    for status in Status:
        page = Page(html_report(dataclasses.replace(result, status=status))).text
        assert status.label in page and "solution." not in page and "warm_start" not in page


def test_every_field_has_a_heading_and_a_meaning():
    names = {f.name for f in dataclasses.fields(LayerReport)} | {"zeros", "sparsity"}
    assert names - {"stages"} == set(FIELDS)  # Steps have a table of their own.
    assert all(heading and text.endswith(".") for heading, _, text in FIELDS.values())


@pytest.mark.parametrize("name", [NASTY, "a]]>b", "\ud800", "x" * 300, "$\\frac$"])
def test_names_are_text_whatever_they_hold(result, name, tmp_path):
    nasty = named(result, name)
    text = html_report(nasty, title=name, paths=[path_of(name, 9)])
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("style") == 1
    assert page.text.count(name) >= 5
    write_report(nasty, tmp_path / "report.html", title=name)
    Page((tmp_path / "report.html").read_text("utf-8"))


@pytest.mark.parametrize("layers", [(), "unfinished", "infinite"])
def test_results_without_layers_or_without_numbers_have_a_page(result, layers):
    if layers == ():
        empty = Network([Activate("relu")], input_shape=(3,))
        bare = PruningResult(
            empty, empty, (), "cascade", Status.FAILED, None, None, None, 0.0, (3,)
        )
        page = Page(html_report(bare))
        assert "no layers with weights" in page.text and "FAILED".lower() in page.text
        return
    changes = {"network_error": None, "network_bound": None, "network_error_heldout": None}
    if layers == "infinite":
        changes |= {"network_error": math.inf, "epsilon": math.nan, "gap": None}
    reports = tuple(dataclasses.replace(one, **changes) for one in result.layers)
    bare = dataclasses.replace(
        result, layers=reports, output_error=None, output_bound=None, output_error_heldout=None
    )
    page = Page(html_report(bare))
    assert "Errors and bounds" not in page.text and "without a proved bound" in page.text


def test_dead_neurons_and_warnings_are_listed():
    network = mlp()
    W = network.layer("W0").W.copy()
    W[:, 2] = 0.0
    network = network.replace({"W0": (W, network.layer("W0").b)})
    result = prune(network, X, sparsity=0.5, steps="magnitude")
    page = Page(html_report(result))
    assert "Neurons without effect" in page.text
    assert all(warning.split(": ", 1)[1] in page.text for warning in result.warnings)


# Pictures ---------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_cells_keep_every_weight(n_rows, n_columns, seed):
    mask = np.random.default_rng(seed).random((n_rows, n_columns)) < 0.3
    counts, sizes = cell_counts(mask)
    assert counts.shape == sizes.shape == (min(n_rows, MAX_CELLS), min(n_columns, MAX_CELLS))
    assert counts.sum() == mask.sum() and sizes.sum() == mask.size
    assert np.all(counts <= sizes) and sizes.min() >= 1
    if max(mask.shape) <= MAX_CELLS:
        np.testing.assert_array_equal(counts, mask)


def decoded(content):
    """A PNG of the kind that is written here, read by the specification."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        (check,) = struct.unpack_from(">I", content, at + 8 + length)
        assert check == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_the_picture_is_the_mask(result):
    levels = np.random.default_rng(0).integers(0, 256, (7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(png(levels)), levels)
    sources = Page(html_report(result)).values("img", "src")
    for source, layer in zip(sources, result.network.layers, strict=True):
        picture = decoded(base64.b64decode(source.partition(",")[2]))
        np.testing.assert_array_equal(picture, np.where(layer.W != 0, 255, 0))


def test_histograms_count_nonzeros_and_leave_nothing_out():
    values = np.array([0.0, 0.0, -1.0, 1.0, 1.0])
    heights = [
        float(h) for h in re.findall(r'class="kept".*?height="([\d.]+)"', histogram(values, values))
    ]
    assert heights == [50.0, 100.0]
    assert histogram(np.zeros(3), np.zeros(3)) == ""


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5))
def test_the_axis_holds_all_values(values):
    axis = LogAxis.of([*values, None, 0.0, math.inf])
    assert all(-1e-9 <= axis.place(value) <= 100 + 1e-9 for value in values)
    assert 2 <= len(axis.ticks()) <= 7
    assert LogAxis.of([None, 0.0, math.nan]) is None


# Files ------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_asked_tried_and_measured_and_every_step():
    network = mlp(widths=(8, 6, 3))
    inputs = samples(80, 8)
    result = prune(
        network, inputs, max_error=0.4, steps=Pipeline(Solve("magnitude"), Refit()),
        skip="W1", allocation="tolerance",
    )  # fmt: skip
    page = Page(html_report(result))
    assert "Networks tried" in page.text and "What zeros cost each layer" in page.text
    assert {float(trial.value) for trial in result.trials} <= set(page.numbers)
    first, last = result.layer("W0").stages
    assert {first.distance, last.distance, first.error, last.error} <= set(page.numbers)
    assert "steps=['magnitude', 'refit']" in page.text and "skip=['W1']" in page.text
    assert page.tags.count("polyline") == 4


def test_files_are_written_whole_or_not_at_all(result, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    result.write_report(path, title="One")
    assert path.read_text("utf-8") == html_report(result, title="One")

    def broken(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        result.write_report(path, title="Two")
    assert "<title>One</title>" in path.read_text("utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_an_error(result, tmp_path):
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        with pytest.raises(OSError, match=folder):
            result.write_report(tmp_path / folder / "report.html")
    for write in (result.write_report, result.to_json):
        with pytest.raises(OSError) as caught:
            write(tmp_path / "missing" / "page.html")
        # The temporary file beside it is nobody's business.
        assert caught.value.filename == str(tmp_path / "missing" / "page.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": 3}, "paths must be a list of LayerPath, but was 3"),
        ({"paths": [3]}, "paths must be LayerPath, but one was a int"),
        ({"title": 3}, "title must be a str, but was 3"),
        ({"facts": 3}, "facts must be a mapping of str, but was 3"),
        ({"facts": {"Accuracy": 0.9}}, "facts must .* pairs of str, but has 'Accuracy': 0.9"),
        ({"facts": {"Accuracy": ("1", "2", "3")}}, "facts must be a mapping .* has 'Accuracy'"),
    ],
)
def test_wrong_arguments_are_named(result, arguments, message):
    with pytest.raises(SettingsError, match=message):
        html_report(result, **arguments)
    with pytest.raises(SettingsError, match="result must be a PruningResult, but was a int"):
        html_report(3)


def test_the_figure_has_the_zeros_and_the_errors(result, tmp_path):
    pytest.importorskip("matplotlib")
    figure = result.plot(tmp_path / "plot.svg")
    left, right = figure.axes
    widths = [bar.get_width() for bar in left.patches]
    assert widths == [100 * one.sparsity for one in result.layers]
    labels = [line.get_label() for line in right.get_lines()]
    assert labels == ["bound", "held-out samples", "calibration samples"]
    assert (tmp_path / "plot.svg").read_text("utf-8").startswith("<?xml")
    plot_result(named(result, NASTY + " $x")).savefig(tmp_path / "plot.png")
