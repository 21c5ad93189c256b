"""The HTML in a real browser: nothing is loaded, nothing complains, everything can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.bench.report.compare import compare_all
from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.read import BenchData, read_bench
from tests.bench import made_up
from tests.bench.report import hostile
from tests.bench.report.browser import Browser, Page

pytestmark = pytest.mark.peer
WINDOWS = [(width, height, dark) for width, height in ((360, 800), (1280, 900)) for dark in (False, True)]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
# every element with text of its own: its colour against what is painted behind it (WCAG 2.2, 1.4.3)
CONTRAST = """
(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const part = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('symbol')) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
    let back = behind(e);
    if (svg && e.classList.contains('on')) back = parse(getComputedStyle(e.previousElementSibling).fill);
    const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
    const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const got = ratio(parse(svg ? style.fill : style.color), back);
    found.push([got, least, e.className.baseVal ?? e.className, e.textContent.trim().slice(0, 30)]);
  }
  return found;
})()
"""
WIDE = """
[document.documentElement.scrollWidth - innerWidth,
 [...document.querySelectorAll('body *')].filter(e => !e.closest('.sr, thead, symbol')
   && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
   .map(e => e.tagName + '.' + (e.className.baseVal ?? e.className) + ' ' + e.textContent.slice(0, 30)).slice(0, 5)]
"""
# non-text marks against what lies behind them (1.4.11)
MARKS = (
    CONTRAST.split("const found")[0]
    + """
  return [...document.querySelectorAll('rect[class^=s], .mark')].map(e => {
    const style = getComputedStyle(e);
    const paint = e.classList.contains('mark') ? style.stroke : style.fill;
    return [ratio(parse(paint), behind(e.closest('svg.plot, ul').parentElement)), e.getAttribute('class')]; });
})()
"""
)


def checked(page: Page) -> None:
    """What holds for every page in every window."""
    page.evaluate(OPEN_ALL)
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("file:")] == []
    assert len(page.requests()) == 1
    too_wide, names = page.evaluate(WIDE)
    assert too_wide <= 0, names
    assert names == []
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 100
    assert [text for text in texts if text[0] < text[1]] == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, benches: list[BenchData], holds: BenchData) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    worse = read_bench(made_up.write(folder / "worse", run="newer", slower=1.2, right=(0.58, 0.71, 0.62)))
    attack = hostile.write(folder / "hostile")
    texts = {
        "one": render_html([holds]),
        "all": render_html(benches),
        "compared": render_html([worse], *compare_all([holds], [worse])),
        "hostile": render_html([attack]),
        "hostile-all": render_html([attack, holds], *compare_all([holds], [attack])),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["one", "all", "compared", "hostile", "hostile-all"])
@pytest.mark.parametrize(("width", "height", "dark"), WINDOWS)
def test_the_page_is_quiet_and_fits_and_can_be_read(
    browser: Browser, pages: dict[str, Path], name: str, width: int, height: int, dark: bool
) -> None:
    with browser.open(pages[name], width, height, dark) as page:
        checked(page)


@pytest.mark.parametrize("dark", [False, True])
def test_marks_stand_out(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    with browser.open(pages["one"], dark=dark) as page:
        found = page.evaluate(MARKS)
    assert len(found) > 10
    assert [mark for mark in found if mark[0] < 3] == []


def test_dark_is_dark(browser: Browser, pages: dict[str, Path]) -> None:
    colours = []
    for dark in (False, True):
        with browser.open(pages["one"], dark=dark) as page:
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(247, 247, 245)", "rgb(18, 20, 23)"]


def test_thumbnails_are_shown(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.open(pages["one"]) as page:
        widths = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt.length])")
    assert len(widths) == 12
    assert all(width == 240 and alt for width, alt in widths)


def test_headings_and_names_are_in_order(browser: Browser, pages: dict[str, Path]) -> None:
    for path in pages.values():
        with browser.open(path) as page:
            levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
            assert page.evaluate("document.documentElement.lang") == "en"
            nameless = (
                "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length"
            )
            assert page.evaluate(nameless) == 0
            twice = "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
            assert page.evaluate(twice) == 0
        assert levels.count(1) == 1
        assert levels[0] == 1


def test_hostile_texts_stay_texts(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.open(pages["hostile"]) as page:
        assert page.evaluate("document.scripts.length") == 0
        assert page.evaluate("document.images.length") == page.evaluate(
            "document.querySelectorAll('.cards img').length"
        )
        handlers = (
            "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on')))"
        )
        assert page.evaluate(f"{handlers}.length") == 0
        assert page.evaluate("document.title").startswith("Not settled yet – <script>")
        assert "<script>" in page.evaluate("document.body.innerText")


def test_on_paper_everything_is_open(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.open(pages["one"]) as page:
        page.send("Emulation.setEmulatedMedia", media="print")
        hidden = "[...document.querySelectorAll('details td')].filter(e => !e.offsetHeight || !e.checkVisibility())"
        page.evaluate("getComputedStyle(document.querySelector('details'), '::details-content').blockSize")
        assert page.evaluate("document.querySelectorAll('details td').length") > 10
        assert page.evaluate(f"{hidden}.length") == 0
        page.send("Emulation.setEmulatedMedia", media="screen")
        assert page.evaluate(f"{hidden}.length") > 10


def test_the_checks_bite(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><p style='color:#aaa;width:2000px'>pale and wide</p><script>console.log('x')</script>"
        "<img src='http://192.0.2.1/x.png'></body>"
    )
    with browser.open(bad, 360, 800) as page:
        assert page.complaints()
        assert "http://192.0.2.1/x.png" in page.requests()
        assert page.evaluate(WIDE)[1]
        assert [text for text in page.evaluate(CONTRAST) if text[0] < text[1]]
