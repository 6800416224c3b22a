import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image as png_reader
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from raybench.report.bars import GREYS
from raybench.report.figures import (
    PanelCell,
    PanelRow,
    SeverityPanel,
    confusion_matrix,
    explainer_bars,
    explanation_panel,
    pareto,
    png,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
    severity_scatter,
    training_curves,
)
from raybench.report.infection_map import BOUNDARY, contour, infection_map, superpixel_map
from raybench.report.style import COLOURS, wrapped

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def gray(shape: tuple[int, int] = (32, 40), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rendered(figure: Figure) -> np.ndarray:
    data = png(figure, dpi=50)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return png_reader.imread(io.BytesIO(data))


def labels_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 1.0]))
def test_without_positive_evidence_the_xray_keeps_its_grey(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    image = gray(seed=seed)
    values = rng.integers(-3, 4, image.shape).astype(np.float32)
    painted = infection_map(image, values, alpha)
    assert painted.dtype == np.uint8
    bare = values <= 0
    assert np.array_equal(painted[bare], np.repeat(image[bare][:, None], 3, axis=1))
    assert np.array_equal(painted, infection_map(image, 4 * values, alpha)), "scale is of no matter"
    strongest = matplotlib.colormaps["jet"](1.0)[:3]
    expected = (1 - alpha) * image[values == 3][:, None] + alpha * 255 * np.array(strongest)
    assert np.abs(painted[values == 3] - expected).max(initial=0) <= 0.51


def test_infection_map_of_nothing() -> None:
    image = gray()
    for values in (np.zeros(image.shape), -np.ones(image.shape), np.full(image.shape, 2.0)):
        plain = np.repeat(image[..., None], 3, axis=2)
        assert np.array_equal(infection_map(image, values.astype(np.float32)), plain)
    with pytest.raises(ValueError, match="image's shape"):
        infection_map(image, np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="alpha"):
        infection_map(image, np.zeros(image.shape, np.float32), alpha=50)


def test_superpixels_for_are_green_and_against_are_red() -> None:
    image = np.full((30, 40), 100, np.uint8)
    superpixels = np.repeat(np.arange(4), 10)[None].repeat(30, axis=0)
    picture = superpixel_map(image, superpixels, np.array([1.0, -1.0, 0.0, 0.25])).astype(int)
    for inside, lead in ((4, 1), (14, 0), (34, 1)):
        pixel = picture[15, inside]
        assert pixel.argmax() == lead
    assert picture[15, 24].tolist() == [100, 100, 100], "weight zero is not shown"
    away = [np.abs(picture[15, x] - 100).sum() for x in (4, 34)]
    assert away[0] == pytest.approx(4 * away[1], rel=0.1), "as strong as its weight"
    yellow = (picture == BOUNDARY).all(axis=2)
    assert sorted(set(np.nonzero(yellow)[1])) == [9, 19, 29]
    with pytest.raises(ValueError, match="one weight each"):
        superpixel_map(image, superpixels, np.ones(3))
    unpainted = superpixel_map(image, np.zeros_like(superpixels), np.zeros(1))
    assert (unpainted == 100).all()


def test_contour_runs_on_the_masks_outermost_pixels() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:12, 4:15] = True
    black = np.zeros((20, 20, 3), np.uint8)
    drawn = contour(black, mask, (255, 0, 10))
    rim = mask.copy()
    rim[6:11, 5:14] = False
    assert np.array_equal((drawn == (255, 0, 10)).all(axis=2), rim)
    assert not black.any(), "the picture itself is left alone"
    dots = contour(black, mask, (255, 0, 10), dotted=True).any(axis=2)
    assert 0 < dots.sum() < rim.sum()
    assert not (dots & ~rim).any()
    assert not contour(black, np.zeros((20, 20), bool), (255, 255, 255)).any()


def epochs() -> pd.DataFrame:
    rows = []
    for trial, backbone, shift in (("a", "vgg16", 0.0), ("b", "vgg16", 0.1), ("c", "dense", 0.0)):
        for epoch in range(10):
            row = {"trial_id": trial, "backbone": backbone, "epoch": epoch, "phase": epoch // 4}
            row |= {"train_loss": 1 / (epoch + 1), "val_loss": 1.2 / (epoch + 1)}
            row |= {"train_accuracy": 0.5 + epoch / 30, "val_accuracy": 0.5 + epoch / 40 + shift}
            rows.append(row)
    return pd.DataFrame(rows)


def test_training_curves() -> None:
    figure = training_curves(epochs())
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title(loc="left") == "vgg16, trial b (grey: 1 more)"
    assert figure.axes[2].get_title(loc="left") == "dense, trial c"
    chosen = training_curves(epochs(), ["a", "c"])
    assert chosen.axes[0].get_title(loc="left") == "vgg16, trial a (grey: 1 more)"
    dotted = [ln.get_xdata()[0] for ln in figure.axes[0].lines if ln.get_linestyle() == ":"]
    assert dotted == [3.5, 7.5]
    named = training_curves(epochs().assign(unfreeze=lambda f: "stage" + f.phase.astype(str)))
    assert [t.get_text() for t in named.axes[1].texts] == ["stage0", "stage1", "stage2"]
    assert rendered(figure).shape == (280, 400, 4)
    assert png(training_curves(epochs()), 50) == png(training_curves(epochs()), 50)
    with pytest.raises(ValueError, match="val_loss are missing"):
        training_curves(epochs().drop(columns="val_loss"))
    with pytest.raises(ValueError, match="no rows"):
        training_curves(epochs()[:0])


def test_roc_curves_and_confusion_matrix() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1
    figure = roc_curves(probabilities, np.array([0, 1, 2, 0]), CLASSES, "Test")
    assert labels_of(figure.axes[0])[1:] == [f"{name} (AUC 1.000)" for name in CLASSES]
    rendered(figure)
    figure = roc_curves(probabilities, np.array([0, 1, 1, 0]), CLASSES, "Test")
    assert labels_of(figure.axes[0])[3] == "Normal (no curve: 0 images)"

    figure = confusion_matrix(np.array([[8, 2], [0, 0]]), CLASSES[:2], "Test")
    assert [t.get_text() for t in figure.axes[0].texts] == ["8\n80%", "2\n20%", "0\n0%", "0\n0%"]
    rendered(figure)
    with pytest.raises(ValueError, match="expected shape"):
        confusion_matrix(np.eye(3, dtype=int), CLASSES[:2], "Test")


def test_precision_recall_curves() -> None:
    labels = np.array([0, 1, 1, 0, 0])
    sure = np.array([0.9, 0.8, 0.3, 0.7, 0.2])
    figure = precision_recall_curves(np.stack([sure, 1 - sure], 1), labels, CLASSES[:2], "Test")
    # By hand: of class 0 in falling order right, wrong, right, wrong, right.
    area = (1 + 2 / 3 + 3 / 5) / 3
    assert labels_of(figure.axes[0])[0] == f"COVID-19 (AP {area:.3f})"
    dotted = [ln for ln in figure.axes[0].lines if ln.get_linestyle() == ":"]
    assert [ln.get_ydata()[0] for ln in dotted[:2]] == [0.6, 0.4], "shares of the classes"
    rendered(figure)
    figure = precision_recall_curves(np.eye(3)[labels], labels, CLASSES, "Test")
    assert labels_of(figure.axes[0])[2] == "Normal (no curve: 0 images)"


def test_reliability_diagram() -> None:
    counts = np.array([0, 3, 1])
    confidence, accuracy = np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 2 / 3, 1.0])
    figure = reliability_diagram(counts, confidence, accuracy, (0.15, 0.1, 0.2), "Test")
    above, below = figure.axes
    assert above.lines[1].get_xydata().tolist() == [[0.5, 2 / 3], [0.9, 1.0]]
    assert above.texts[0].get_text() == "ECE 0.150\n95%: 0.100 to 0.200"
    assert [bar.get_height() for bar in below.patches] == [0, 3, 1]
    rendered(figure)
    bare = reliability_diagram(counts, confidence, accuracy, (0.15, np.nan, np.nan), "Test")
    assert bare.axes[0].texts[0].get_text() == "ECE 0.150"
    with pytest.raises(ValueError, match="expected bins with images"):
        reliability_diagram(0 * counts, confidence, accuracy, (0.1, 0.1, 0.1), "Test")


def board(backbones: list, explainers: list[str], rules: list[str]) -> pd.DataFrame:
    rows = []
    for backbone in backbones:
        for explainer in explainers:
            for rule in rules:
                iou = 0.1 + 0.02 * len(rows) % 0.3
                row = {"backbone": backbone, "explainer": explainer, "threshold_rule": rule}
                rows.append(row | {"n": 583, "iou": iou, "dice": 1.3 * iou, "hausdorff": 90.0})
    return pd.DataFrame(rows)


def test_explainer_bars() -> None:
    models = [f"backbone_{i}" for i in range(4)]
    names = ["lime", "grad_cam", "lime_watershed_n_samples_400_hadamard"]
    references = ["whole_lung", "centre_prior", "random_superpixels"]
    frame = board(models, references + names, ["fixed", "val"])
    figure = explainer_bars(frame)
    assert len(figure.axes) == 8
    for ax in figure.axes:
        assert len(ax.patches) == 12
        longest = max(bar.get_width() for bar in ax.patches)
        assert longest < ax.get_xlim()[1], "no bar is cut off"
        grey = [bar for bar in ax.patches if to_hex(bar.get_facecolor()).upper() in GREYS]
        assert len(grey) == 6
        assert all(bar.get_hatch() for bar in grey)
        best = max(bar.get_width() for bar in grey)
        assert [ln.get_xdata()[0] for ln in ax.lines] == [best]
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown == [wrapped(name, 22) for name in names + references], "references come last"
    assert len(figure.legends[0].get_texts()) == 4
    rendered(figure)


def test_the_network_that_learned_from_masks_stands_apart_in_every_column() -> None:
    models = pd.concat(
        [
            board(["a", "b"], ["supervised", "lime", "whole_lung"], ["val"]),
            board(["unet"], ["supervised"], ["val"]),
        ]
    )
    frame = models[(models.explainer != "supervised") | (models.backbone == "unet")]
    frame.loc[frame.explainer == "supervised", "iou"] = 0.9
    figure = explainer_bars(frame, ["whole_lung"], "supervised")
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "a", "b"]
    for ax in figure.axes[:2]:
        assert len(ax.patches) == 3
        (line,) = (ln.get_xdata()[0] for ln in ax.lines)
        assert line < 0.9, "it is not the best of the references that look at no model"
        colours = [to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
        assert colours.count("#009E73") == 1
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown == ["lime", "whole_lung", "supervised"]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "U-Net that learned from masks" in said
    rendered(figure)


def test_severity_has_a_panel_an_explainer_with_its_error() -> None:
    drawn = np.array([0.1, 0.4, np.nan, 0.8])
    panels = [
        SeverityPanel("supervised", "", drawn, drawn),
        *(SeverityPanel(f"lime_{i}", "vgg16", drawn, drawn + 0.1) for i in range(6)),
        SeverityPanel("whole_lung", "", np.full(2, np.nan), np.ones(2)),
    ]
    figure = severity_scatter(panels, reference="supervised")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 8
    titles = [ax.get_title() for ax in shown]
    assert titles[0] == "supervised\nMAE 0.000"
    assert titles[1] == "lime_0\nvgg16\nMAE 0.100"
    assert titles[-1] == "whole_lung\nno lung masks"
    assert [len(ax.collections[0].get_offsets()) for ax in shown] == [3] * 7 + [0]
    assert all(list(ax.lines[0].get_xdata()) == list(ax.lines[0].get_ydata()) for ax in shown)
    rendered(figure)
    with pytest.raises(ValueError, match="at least one panel"):
        severity_scatter([])


def test_references_without_a_backbone_stand_in_every_column() -> None:
    frame = pd.concat(
        [board(["a", "b"], ["lime"], ["val"]), board([None], ["whole_lung"], ["val"])]
    )
    figure = explainer_bars(frame)
    assert [len(ax.patches) for ax in figure.axes] == [2, 2, 2, 2]
    assert len(explainer_bars(board([None], ["whole_lung"], ["val"])).axes) == 2
    failed = explainer_bars(frame.assign(iou=np.nan))
    assert [t.get_text() for t in failed.axes[0].texts] == ["no value", "no value"]
    with_interval = explainer_bars(frame.assign(iou_low=0.05, iou_high=0.4))
    assert with_interval.axes[0].lines[0].get_xdata().tolist() == [0.05, 0.4]
    with pytest.raises(ValueError, match="come twice"):
        explainer_bars(pd.concat([frame, frame]))


def test_explanation_panel() -> None:
    mask = np.zeros((32, 40), bool)
    mask[5:20, 0:15] = True
    picture = infection_map(gray(), gray(seed=1).astype(np.float32))
    superpixels = superpixel_map(gray((16, 20)), np.zeros((16, 20), int), np.ones(1))
    cells = (
        PanelCell("lime", picture, 0.25),
        PanelCell("lime regions", superpixels, note="green for, red against"),
        PanelCell("grad_cam", picture, 0.5, "seen"),
    )
    rows = [
        PanelRow("first", gray(), mask, mask, cells),
        PanelRow("second", gray(), None, np.zeros_like(mask), cells),
        PanelRow("third", gray(), None, None, cells[::-1]),
    ]
    figure = explanation_panel(rows, "densenet121")
    titles = ["X-ray", "lime", "lime regions", "grad_cam"]
    assert [ax.get_title() for ax in figure.axes[:8]] == [*titles, "", "", "", ""]
    assert [ax.get_title() for ax in figure.axes[8:]] == ["X-ray", *titles[:0:-1]]
    beneath = [ax.get_xlabel() for ax in figure.axes[:4]]
    assert beneath == ["", "IoU 0.25", "green for, red against", "IoU 0.50, seen"]
    assert np.array_equal(figure.axes[1].images[0].get_array(), picture)
    assert len(figure.axes[0].collections) == 2, "outlines of infection and lungs"
    assert len(figure.axes[1].collections) == 1, "outline of the infection"
    assert len(figure.axes[5].collections) == 0, "nothing to outline"
    assert rendered(figure).std() > 0
    with pytest.raises(ValueError, match="at least one image"):
        explanation_panel([], "none")
    with pytest.raises(ValueError, match=r"numbers of cells are \[2, 3\]"):
        explanation_panel([rows[0], PanelRow("short", gray(), None, None, cells[:2])], "uneven")


def test_long_names_break_where_they_can() -> None:
    name = "lime_watershed_n_samples_400_hadamard"
    assert wrapped(name, 22).replace("\n", "") == name
    assert max(map(len, wrapped(name, 22).split("\n"))) <= 22
    assert wrapped("Non-COVID", 12) == "Non-COVID"
    assert wrapped("a long title", 6) == "a long\ntitle"
    assert len(set(COLOURS)) == len(COLOURS)


def tried() -> pd.DataFrame:
    """Settings of LIME with two models, and of a reference that asks none."""
    rows = [
        ("t0", "vgg16", "lime", 0, 0.30, 400.0, False),
        ("t0", "vgg16", "lime", 1, 0.25, 64.0, False),
        ("t0", "vgg16", "lime", 2, 0.40, 256.0, True),
        ("t0", "vgg16", "lime", 3, np.nan, np.nan, False),
        ("t1", "resnet18", "lime", 0, 0.20, 400.0, True),
        ("shared", None, "whole_lung", 0, 0.28, 0.0, True),
    ]
    columns = ["trial_id", "backbone", "explainer", "number", "val_iou", "n_forward", "winner"]
    return pd.DataFrame(rows, columns=columns)


def test_the_front_steps_from_the_cheapest_setting_to_the_best() -> None:
    figure = pareto(tried())
    rendered(figure)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("vgg16 (t0)", "resnet18 (t1)")
    front, lime, lung = first.get_lines()
    # The lungs at no pass, then LIME with 256; its 64 passes are worth less than none at all.
    np.testing.assert_allclose(front.get_xdata(), [-1.5, 8, np.log2(400)])
    np.testing.assert_allclose(front.get_ydata(), [0.28, 0.40, 0.40])
    np.testing.assert_allclose(lime.get_ydata(), [0.25, 0.40, 0.40])
    np.testing.assert_allclose(np.diff(lime.get_xdata()), [2, np.log2(400 / 256)])
    np.testing.assert_allclose(lung.get_ydata(), [0.28, 0.28])
    np.testing.assert_allclose(second.get_lines()[0].get_ydata(), [0.28, 0.28])
    drawn, own, won = (points.get_offsets().data for points in first.collections[:3])
    assert len(drawn) == 3  # one failed
    np.testing.assert_allclose(own[:, 1], [0.30])
    np.testing.assert_allclose(won[:, 1], [0.40])
    ticks = [text.get_text() for text in second.get_xticklabels()]
    assert ticks == ["0", "1", "4", "16", "64", "256"]
    assert png(pareto(tried())) == png(pareto(tried()))
    assert pareto(tried().iloc[-1:]).axes[0].get_title() == "no model"
    with pytest.raises(ValueError, match="val_iou"):
        pareto(tried().drop(columns="val_iou"))


def many_tried(n: int = 26) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "trial_id": "t0",
            "backbone": "vgg16",
            "explainer": f"explainer_{number}" + "_of_a_long_name" * (number % 3 == 0),
            "number": trial,
            "val_iou": rng.uniform(),
            "n_forward": float(rng.integers(1, 500)),
            "winner": trial == 2,
        }
        for number in range(n)
        for trial in range(3)
    ]
    return pd.DataFrame(rows)


def test_the_legend_of_many_explainers_stays_on_the_figure_and_tells_them_apart() -> None:
    figure = pareto(many_tried())
    pixels = rendered(figure)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 26 + 3
    height, width = figure.bbox.height, figure.bbox.width
    for artist in (*legend.get_texts(), figure.axes[0]):
        box = artist.get_window_extent()
        assert (box.x0 >= 0, box.x1 <= width, box.y0 >= 0, box.y1 <= height) == (True,) * 4, artist
    assert figure.axes[0].get_window_extent().height > 0.4 * height
    edge = pixels[:, [0, -1], :3]
    assert (edge == edge[0, 0]).all(), "nothing is cut off at the sides"
    handles = legend.legend_handles[:26]
    assert len({(h.get_color(), h.get_marker()) for h in handles}) == 26
    # In the ring of a winner stands its marker.
    of_each = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 1]
    assert len(of_each) == 26 * 3
