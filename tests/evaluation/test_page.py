"""The page is one file, escapes what users write, and embeds the very pictures."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ditquant.evaluation import Chart, Column, Gallery, Plot, Section, Table, sliders, write_page
from ditquant.evaluation.page import render
from ditquant.evaluation.pictures import png, shrunk

EVIL = "<script>alert(1)</script> \"quoted\" & 'x' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Collects tags and text, and checks that tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def images(self) -> list[dict]:
        return self.having("img")

    def having(self, tag: str, kind: str = "") -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag and kind in (attrs.get("class") or "")]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def decoded(src: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,")))))


PSNR = Column("psnr", "PSNR dB", ".2f")


def gallery() -> Gallery:
    pictures = {"full": [noise(64, 64), noise(64, 64, seed=1)], EVIL: [noise(64, 64, seed=2), noise(64, 64, seed=3)]}
    return Gallery([EVIL, "b"], pictures, [PSNR], {EVIL: {"psnr": [30.0, 20.0]}})


@pytest.fixture
def page(tmp_path):
    sections = [
        Section("Numbers", [Table([Column("name", "model"), PSNR], [{"name": EVIL, "psnr": 12.346}, {}])]),
        Section("Pictures", [gallery()], note=EVIL),
        Section("Charts", [Chart(EVIL, EVIL, EVIL, {EVIL: [1.0, 2.0]}, [EVIL, EVIL])]),
        Section("Plots", [Plot("drawn", png(noise(8, 8))), Plot("left out", note="Plots need matplotlib.")]),
        Section("Nothing to show", []),
    ]
    write_page(tmp_path / "report.html", EVIL, sections, {"versions": EVIL})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_users_write_is_escaped(page):
    found = Page(page)
    assert "<script>alert" not in page and page.count("<script") == 1
    assert found.text.count(EVIL) == 18
    assert found.images()[2]["alt"] == f"full: {EVIL}"
    values = [json.loads(card["data-values"]) for card in found.having("article", "card")]
    assert values[1]["psnr"] == [{"text": "", "value": ""}, {"text": "30.00", "value": "30.0"}]


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r"https?://|url\(|@import|<link|\ssrcset", page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in Page(page).images())
    (policy,) = (meta["content"] for meta in Page(page).having("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_pictures_are_exact_and_the_worst_stand_first(page):
    images = Page(page).images()
    assert len(images) == 5
    for image, seed in zip(images, (1, 3, 0, 2), strict=False):
        assert np.array_equal(decoded(image["src"]), noise(64, 64, seed=seed))
    assert [card["data-index"] for card in Page(page).having("article", "card")] == ["1", "0"]
    assert all("max-width: 384px" in frame["style"] for frame in Page(page).having("div", "enlarged"))


def test_numbers_missing_values_and_notes_are_shown(page):
    assert 'data-value="12.346">12.35<' in page
    assert re.search(r'<td class="number" data-label="[^"]+" data-value="">–</td>', page)
    assert "left out: Plots need matplotlib." in page
    assert "Nothing to show" not in page


def test_large_pictures_are_shrunk_and_small_ones_are_left():
    assert shrunk(noise(600, 768), 384).shape == (300, 384, 3)
    assert np.array_equal(shrunk(noise(40, 30), 40), noise(40, 30))


def test_the_page_stays_small(monkeypatch):
    prompts = list("abcd")
    values = {"n": {"psnr": [3.0, np.inf, 1.0, 2.0]}}
    shown = Gallery(prompts, {"m": [noise(16, 16)] * 4, "n": [noise(16, 16)] * 4}, [PSNR], values)
    monkeypatch.setattr(sliders, "PAGE_PIXELS", 3 * 2 * 256)
    page = Page(render("t", [Section("s", [shown])], {}))
    assert len(page.images()) == 6
    assert [card["data-index"] for card in page.having("article", "card")] == ["2", "3", "0"]


def test_many_prompts_make_smaller_pictures():
    few, many = (Gallery(["x"] * n, {"m": [noise(600, 600)] * n}).size() for n in (4, 250))
    assert few == (384, 4) and sliders.SIDES[0] < many[0] < 384 and many[1] == 250
    assert many[0] ** 2 * 250 <= sliders.PAGE_PIXELS
    most = Gallery(["x"] * 2000, {"m": [noise(600, 600)] * 2000}).size()
    assert most == (192, sliders.PAGE_PIXELS // 192**2)


@pytest.mark.parametrize(("better", "expected"), [("higher", [2, 0, 1, 3]), ("lower", [1, 2, 0, 3])])
def test_damage_is_that_of_the_worst_model(better, expected):
    nan = float("nan")
    values = {"a": {"q": [5.0, 9.0, 6.0]}, "b": {"q": [5.0, 8.0, 1.0, nan]}}
    assert Gallery(["p"] * 4, {}, [Column("q", "q", better=better)], values).by_damage() == expected


def test_frames_of_a_video():
    video = np.stack([np.full((32, 48, 3), i, np.uint8) for i in range(20)])
    page = Page(render("t", [Section("s", [Gallery(["p"], {"m": [video], "n": [video]})])], {}))
    levels = [int(decoded(image["src"])[0, 0, 0]) for image in page.images()]
    assert levels == [0, 3, 5, 8, 11, 14, 16, 19] * 2
    assert [("hidden" in image) for image in page.images()] == ([False] + [True] * 7) * 2
    assert page.having("input", "frame")[0]["max"] == "7"
