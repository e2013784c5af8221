"""The pictures: what goes into them, and that the files are whole and self-contained."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from bitfront.layers import Tower
from bitfront.trial import Origin
from service.views.plot.charts import bits_chart, front_chart
from service.views.plot.images import write_bits, write_front
from service.views.plot.page import write_page
from service.views.plot.records import (
    BitsPicture,
    FrontPicture,
    LayerBits,
    Point,
    is_wide,
    short_names,
    staircase,
    staircase_line,
)


def point(trial: int, error: float, nbytes: float, *, front: bool = False) -> Point:
    return Point(trial, error, error + 0.01, nbytes, Origin.SAMPLER, is_front=front)


def baseline(trial: int, error: float, nbytes: float, label: str) -> Point:
    return Point(trial, error, None, nbytes, Origin.BASELINE, is_front=False, label=label)


BASELINES = (baseline(0, 0.6, 100e3, "w2"), baseline(1, 0.2, 150e3, "w3"))
FULL = baseline(2, 0.05, 800e3, "16 bits")
PICTURE = FrontPicture(
    "first <b>",
    (*BASELINES, point(3, 0.3, 110e3, front=True), point(4, 0.1, 160e3, front=True)),
    FULL,
)
BITS = BitsPicture(
    "first, trial 4: bits of each layer",
    "10.0 % error at 160 kB",
    (
        LayerBits("visual.transformer.resblocks.0.mlp.c_fc.weight", Tower.VISION, 2, 8, "a"),
        LayerBits("visual.transformer.resblocks.1.mlp.c_fc.weight", Tower.VISION, 3, 8, "a"),
        LayerBits("visual.transformer.resblocks.2.mlp.c_fc.weight", Tower.VISION, 4, 8, "a"),
        LayerBits("text_projection", Tower.TEXT, 4, 8, "b"),
    ),
)


@given(
    pairs=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30, unique=True
    )
)
def test_the_line_goes_through_exactly_the_points_that_nothing_dominates(
    pairs: list[tuple[int, int]],
) -> None:
    points = [point(n, error, nbytes) for n, (nbytes, error) in enumerate(pairs)]

    steps = {(p.nbytes, p.error) for p in staircase(points)}

    assert steps == {
        (x, y)
        for x, y in pairs
        if not any((a, b) != (x, y) and a <= x and b <= y for a, b in pairs)
    }


def test_the_line_runs_from_the_highest_trial_to_the_widest() -> None:
    assert staircase_line(PICTURE) == [
        (110e3, 0.6),
        (110e3, 0.3),
        (160e3, 0.1),
        (160e3, 0.1),
    ]


@pytest.mark.parametrize(
    ("values", "wide"),
    [([], False), ([1.0, 20.0], False), ([1.0, 20.1], True), ([0.0, 5.0], False)],
)
def test_an_axis_is_logarithmic_beyond_a_factor_of_twenty(values: list[float], wide: bool) -> None:
    assert is_wide(values) is wide


def test_layer_names_lose_what_all_models_repeat_but_never_their_difference() -> None:
    names = ["visual.transformer.resblocks.0.attn.in_proj_weight", "visual.proj"]
    clash = ["model.layers.0.weight", "encoder.layers.0.weight"]

    assert short_names(names) == ["0.attn.in_proj", "proj"]
    assert short_names(clash) == clash


def test_images_are_whole_and_large_enough_for_print(tmp_path: Path) -> None:
    write_front(PICTURE, tmp_path / "front.png", tmp_path / "front.svg")
    write_bits(BITS, tmp_path / "bits.png", tmp_path / "bits.svg")

    for name in ("front", "bits"):
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.shape[1] == 1720
        assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, 4).tolist()}) > 5
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        # The same figure: 8.6 inches of 72 points.
        width, height = (
            float(str(root.get(key)).removesuffix("pt")) for key in ("width", "height")
        )
        assert width / height == pytest.approx(pixels.shape[1] / pixels.shape[0], rel=2e-3)
    first = (tmp_path / "front.svg").read_bytes()
    write_front(PICTURE, tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_bytes() == first


@pytest.mark.parametrize(
    "picture",
    [
        FrontPicture("one", (point(0, 0.0, 100.0, front=True),)),
        FrontPicture("none on the front", BASELINES),
        FrontPicture("wide", (point(0, 0.9, 1e3, front=True), point(1, 0.01, 1e9, front=True))),
    ],
    ids=lambda picture: str(picture.study),
)
def test_small_and_wide_studies_can_be_drawn(tmp_path: Path, picture: FrontPicture) -> None:
    write_front(picture, tmp_path / "front.png")
    write_page(picture, None, tmp_path / "front.html")

    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert "bits of each layer" not in (tmp_path / "front.html").read_text()


def test_a_page_is_small_and_needs_no_file_but_plotlys_script_beside_it(tmp_path: Path) -> None:
    written = write_page(PICTURE, BITS, tmp_path / "front.html")

    page = (tmp_path / "front.html").read_text()
    assert re.findall(r"<(?:script|link|img)[^>]*\s(?:src|href)=\"([^\"]*)", page) == [
        "plotly.min.js"
    ]
    assert [path.name for path in written] == ["front.html", "plotly.min.js"]
    assert len(page.encode()) < 1_000_000
    assert written[1].stat().st_size > 1_000_000
    assert "first &lt;b&gt;: error against size" in page
    assert page.count("Plotly.newPlot(") == 2


def test_hovering_tells_a_trial_in_full() -> None:
    traces = json.loads(front_chart(PICTURE).to_json())["data"]

    front = next(trace for trace in traces if trace.get("name") == "front")
    uniform = next(trace for trace in traces if trace.get("name") == "uniform precision")
    assert front["text"][0] == (
        "<b>trial 3</b> (sampler)<br>error 30.0 %, on the test split 31.0 %<br>110 kB"
        "<br>recovery: none"
    )
    assert uniform["text"] == ["<b>w2</b>", "<b>w3</b>"]
    assert uniform["customdata"][0].startswith("<b>trial 0</b> (w2)<br>error 60.0 %<br>100 kB")


def test_full_precision_is_a_line_on_a_logarithmic_axis_too_and_is_told_in_the_legend() -> None:
    wide = FrontPicture("wide", (point(0, 0.9, 1e3), point(1, 0.02, 2e3)), FULL)

    chart = json.loads(front_chart(wide).to_json())

    layout = chart["layout"]
    assert layout["yaxis"]["type"] == "log"
    assert layout["shapes"][0]["y0"] == 0.05
    assert "annotations" not in layout
    assert "16 bits: 5.0 % at 800 kB" in [trace.get("name") for trace in chart["data"]]
    assert layout["yaxis"]["ticktext"] == ["2%", "5%", "10%", "20%", "50%", "100%"]


def test_each_tower_has_its_own_panel_in_order_of_execution() -> None:
    bars = json.loads(bits_chart(BITS).to_json())["data"]

    assert [bar["text"] for bar in bars] == [["2", "3", "4"], ["4"]]
    assert "resblocks.0.mlp" in bars[0]["customdata"][0]


def test_bars_name_the_inputs_where_those_differ() -> None:
    mixed = BitsPicture("a", "b", (*BITS.layers, LayerBits("x", Tower.TEXT, 4, 16)))

    assert mixed.labels(Tower.TEXT) == ["4, a8", "4, a16"]
    assert mixed.shaded(Tower.TEXT) == [False, True]
