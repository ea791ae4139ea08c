"""In a real browser: the slider moves, sorting works, the console is silent, narrow and wide windows are readable."""

import io

import numpy as np
import pytest
from PIL import Image

from ditquant.evaluation import ModelFacts, ModelResult, Plot, Results, write_comparison
from ditquant.evaluation.inventory import Kept
from ditquant.evaluation.layers import LayerResult
from tests.evaluation.browser import launched, opened

WIDTHS = (400, 1600)
LONG = "out/models/lrq-w3a8-with-a-name-that-is-much-too-long-for-a-narrow-window"
COLOURS = {"full": (255, 0, 0), "w4": (0, 255, 0), LONG: (0, 0, 255)}


def result(name: str, psnr: list[float], video: bool) -> ModelResult:
    picture = np.full((64, 64, 3), COLOURS[name], np.uint8)
    images = [np.stack([picture // (i + 1) for i in range(4)]) if video else picture for _ in range(4)]
    if name == "full":
        return ModelResult(name, ModelFacts(bits_per_weight=16.0, file_bytes=4_000_000), 12.0, images=images)
    layers = [
        LayerResult(f"transformer_blocks.{i}.attn1.to_out.0", "4-bit twin_log weights, 8-bit activations", 9, float(db))
        for i, db in enumerate((20, 5, 100, 11))
    ]
    kept = [Kept("Linear", "outside the transformer blocks: embedding or final projection", 6, 123456, ("proj_out",))]
    values = {"psnr_db": psnr, "ssim": [0.4, 0.3, 0.2, 0.1], "step_sqnr_db": psnr[:2]}
    facts = ModelFacts("lrq", "0123456789abcdef", 4.1, 1_000_000)
    return ModelResult(name, facts, 9.0, values, [30.0, 20.0, 10.0], layers, kept, images=images)


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module", params=["pictures", "videos"])
def report(request, tmp_path_factory):
    video = request.param == "videos"
    models = [
        result("full", [], video),
        result("w4", [30.0, 10.0, float("inf"), 20.0], video),
        result(LONG, [9.0, 50.0, 80.0, 70.0], video),
    ]
    prompts = ["prompt 0", "prompt 1", "prompt 2 " + "of many words " * 20, "prompt 3"]
    folder = tmp_path_factory.mktemp("reports") / request.param
    plots = [Plot("left out", note="Plots need matplotlib.")]
    write_comparison(Results(prompts, [0, 1, 2, 3], {"steps": 3}, models), folder, plots=plots)
    return folder / "report.html"


def colour(page, index: int, at: float, height: float = 0.25) -> tuple[int, ...]:
    """Return what is seen of a card's picture at a share of its width."""
    shot = page.locator(".compare").nth(index).screenshot()
    picture = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
    return tuple(int(v) for v in picture[int(height * len(picture)), int(at * picture.shape[1])])


def order(page) -> list[int]:
    return [int(i) for i in page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.index)")]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_moves_by_mouse_and_keyboard(browser, report, width):
    with opened(browser, report, width) as (page, errors):
        assert colour(page, 0, 0.25) == COLOURS["full"] and colour(page, 0, 0.75) == COLOURS["w4"]
        box = page.locator(".compare").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        assert colour(page, 0, 0.8) == COLOURS["full"] and colour(page, 0, 0.95) == COLOURS["w4"]
        assert colour(page, 1, 0.75) == COLOURS["w4"]
        page.locator(".slide").first.press("Home")
        assert colour(page, 0, 0.1) == COLOURS["w4"]
        assert errors == []


def test_any_two_models_are_compared(browser, report):
    with opened(browser, report, 1600) as (page, errors):
        page.locator("select.right").select_option(label=LONG)
        page.locator("select.left").select_option(label="w4")
        assert colour(page, 0, 0.25) == COLOURS["w4"] and colour(page, 0, 0.75) == COLOURS[LONG]
        assert page.locator(".of-left").first.inner_text() == "w4"
        page.locator("select.right").select_option(label="w4")
        assert colour(page, 0, 0.25) == colour(page, 0, 0.75) == COLOURS["w4"]
        assert errors == []


def test_prompts_are_sorted_by_damage(browser, report):
    with opened(browser, report, 1600) as (page, errors):
        assert order(page) == [1, 3, 0, 2]
        assert "PSNR dB 10.00 · SSIM 0.3000 · step SQNR dB 10.00" in page.locator(".values").first.inner_text()
        page.locator("select.order").select_option("ssim")
        assert order(page) == [3, 2, 1, 0]
        page.locator("select.order").select_option("psnr_db")
        page.locator("select.right").select_option(label=LONG)
        assert order(page) == [0, 1, 3, 2]
        page.locator("select.order").select_option("")
        assert order(page) == [0, 1, 2, 3]
        page.locator("select.right").select_option(label="w4")
        page.locator("select.order").select_option("step_sqnr_db")
        assert order(page) == [1, 0, 2, 3], "prompts without the figure stand last"
        assert errors == []


def test_tables_are_sorted_by_number_and_by_name(browser, report):
    with opened(browser, report, 1600) as (page, errors):
        table = page.locator("section", has_text="Error by layer").locator("table")
        assert page.locator("caption", has_text="w4, plan 0123456789abcdef").count() == 1

        def column() -> list[str]:
            return table.locator("tbody td:nth-child(2)").all_inner_texts()

        assert column() == ["5.0", "11.0", "20.0", "100.0"]
        page.get_by_role("button", name="w4").click()
        assert column() == ["5.0", "11.0", "20.0", "100.0"]
        page.get_by_role("button", name="w4").click()
        assert column() == ["100.0", "20.0", "11.0", "5.0"]
        assert table.locator("th[aria-sort=descending]").count() == 1
        page.get_by_role("button", name="layer").click()
        assert column() == ["20.0", "5.0", "100.0", "11.0"]
        assert errors == []


def test_frames_of_videos_are_chosen_together(browser, report):
    with opened(browser, report, 1600) as (page, errors):
        if report.parent.name == "pictures":
            assert page.locator(".frame").count() == 0
            return
        page.locator(".frame").first.press("ArrowRight")
        assert colour(page, 0, 0.25) == (127, 0, 0) and colour(page, 0, 0.75) == (0, 127, 0)
        assert colour(page, 1, 0.25) == (255, 0, 0)
        assert errors == []


TEXTS = """() => [...document.querySelectorAll("body *")].filter(node =>
    [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())
    && !["SCRIPT", "STYLE", "OPTION", "TITLE", "title"].includes(node.tagName)).map(node => {
  const box = node.getBoundingClientRect(), svg = node.closest("svg");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  return {text: node.textContent.trim().slice(0, 40), size: parseFloat(getComputedStyle(node).fontSize) * scale,
          left: box.left, right: box.right, narrow: !svg && box.width < (node.textContent.trim().length > 30 ? 90 : 20),
          rolled: !!node.closest(".scroll, .name, select")};
})"""


@pytest.mark.parametrize("width", WIDTHS)
def test_narrow_and_wide_windows_are_readable(browser, report, width):
    with opened(browser, report, width) as (page, errors):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = page.evaluate(TEXTS)
        assert len(texts) > 50
        assert [t for t in texts if t["size"] < 10.9] == []
        assert [t for t in texts if not t["rolled"] and (t["left"] < 0 or t["right"] > width + 0.5)] == []
        assert [t for t in texts if t["narrow"] and len(t["text"]) > 4] == [], "a column of letters"
        cards = page.locator(".card").evaluate_all("cards => cards.map(card => card.getBoundingClientRect().left)")
        assert len(set(cards)) == (1 if width == 400 else 4)
        sides = page.locator(".compare").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert min(sides) >= 256
        for control in page.locator("select, thead button").all():
            assert control.bounding_box()["height"] >= 24
        assert errors == []


def test_no_table_is_cut_in_a_narrow_window(browser, report):
    with opened(browser, report, 400) as (page, errors):
        boxes = page.locator(".scroll:has(table)")
        assert boxes.count() == 6
        assert boxes.evaluate_all("all => all.filter(box => box.scrollWidth > box.clientWidth).length") == 0
        rights = page.locator("td").evaluate_all("all => all.map(cell => cell.getBoundingClientRect().right)")
        assert max(rights) <= 400
        cell = page.locator("section", has_text="Size and speed").locator("td[data-label='file size MB']").nth(1)
        assert cell.inner_text() == "1.00"
        assert cell.evaluate("cell => getComputedStyle(cell, '::before').content") == '"file size MB"'
        page.locator("section", has_text="Error by layer").get_by_role("button", name="w4").click()
        assert errors == []


@pytest.mark.parametrize("broken", ["throw new Error('broken')", "console.error('broken')", "fetch('https://a.b/')"])
def test_a_complaint_of_the_console_is_seen(browser, report, tmp_path, broken):
    page = report.read_text(encoding="utf-8").replace('"use strict";', f'"use strict"; {broken};')
    (tmp_path / "broken.html").write_text(page, encoding="utf-8")
    with opened(browser, tmp_path / "broken.html", 400) as (_, errors):
        assert errors
