"""The page is one file, escapes what users write, and embeds the very pictures."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ditquant.evaluation import Column, Gallery, Plot, Table, report, write_report
from ditquant.evaluation.pictures import page_picture, png

EVIL = "<script>alert(1)</script> \"quoted\" & 'x'"
VOID = {"meta", "img", "br"}


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
        return [attrs for tag, attrs in self.tags if tag == "img"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def decoded(src: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,")))))


@pytest.fixture
def page(tmp_path):
    table = Table([Column("name", "model"), Column("psnr", "PSNR dB", ".2f")], [{"name": EVIL, "psnr": 12.345}, {}])
    gallery = Gallery([EVIL, "b"], {"full": [noise(64, 64), noise(64, 64, seed=1)], EVIL: [noise(64, 64)] * 2})
    plots = [Plot("drawn", png(noise(8, 8))), Plot("left out", note="Plots need matplotlib.")]
    write_report(tmp_path / "report.html", EVIL, table, gallery, plots, {"versions": EVIL})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_users_write_is_escaped(page):
    found = Page(page)
    assert "<script" not in page and not any(tag == "script" for tag, _ in found.tags)
    assert found.text.count(EVIL) == 8  # title twice, fact, table, column, prompt, a name under each of two pictures
    assert found.images()[0]["alt"] == f"full: {EVIL}"


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r"https?://|url\(|@import|<link", page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in Page(page).images())


def test_pictures_are_exact_and_small_ones_are_enlarged(page):
    images = Page(page).images()
    assert len(images) == 5
    assert np.array_equal(decoded(images[0]["src"]), noise(64, 64))
    assert np.array_equal(decoded(images[2]["src"]), noise(64, 64, seed=1))
    assert (images[0]["width"], images[0]["height"], images[0]["class"]) == ("128", "128", "small")
    assert "image-rendering: pixelated" in page


def test_numbers_missing_values_and_notes_are_shown(page):
    assert ">12.35<" in page or ">12.34<" in page
    assert '<td class="number">–</td>' in page
    assert "left out: Plots need matplotlib." in page


def test_without_pictures_and_plots(tmp_path):
    write_report(tmp_path / "r.html", "t", Table([Column("name", "model")], [{"name": "x"}]))
    text = Page((tmp_path / "r.html").read_text()).text
    assert "Pictures" not in text and "Plots" not in text


def test_large_pictures_are_shrunk_and_the_page_stays_small(monkeypatch):
    assert page_picture(noise(600, 768)).shape == (300, 384, 3)
    assert page_picture(noise(5, 40, 30)).shape == (40, 90, 3)
    assert np.array_equal(page_picture(noise(2, 8, 8)), np.concatenate(noise(2, 8, 8), axis=1))
    gallery = Gallery(list("abcd"), {"m": [noise(16, 16)] * 4, "n": [noise(16, 16)] * 4})
    monkeypatch.setattr(report, "PAGE_PIXELS", 3 * 2 * 256)
    page = report.render("t", Table(), gallery, (), {})
    assert len(Page(page).images()) == 6 and "The first 3 of 4 prompts" in page
