"""The built pages in a real browser, without a network: light, dark and on a phone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import NAMES, Browser, program
from test_book import PAGES

from kdutils.chapters import ROOT

pytestmark = pytest.mark.skipif(program() is None, reason=f"no browser installed; any of: {', '.join(NAMES)}")

DESKTOP, PHONE = (1280, 900), (390, 844)
MATHS = [name for name in PAGES if name in ("book/notation",) or name.startswith("notebooks/")]

LUMINANCE = """(css => {
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = css.match(/[\\d.]+/g).map(v => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
})"""
LEAST_CONTRAST = f"""(() => {{
  const luminance = {LUMINANCE}, alpha = css => +(css.match(/[\\d.]+/g)[3] ?? 1), least = {{}};
  const ground = node => {{
    while (node && alpha(getComputedStyle(node).backgroundColor) < 0.5) node = node.parentElement;
    return getComputedStyle(node ?? document.body).backgroundColor;
  }};
  for (const what of ['p', 'li', 'a', 'th', 'td', 'caption', 'figcaption', 'pre'])
    for (const node of document.querySelectorAll('.bd-article ' + what)) {{
      if (!node.innerText.trim()) continue;
      const [dim, bright] = [getComputedStyle(node).color, ground(node)].map(luminance).sort((a, b) => a - b);
      least[what] = Math.min(least[what] ?? 21, (bright + 0.05) / (dim + 0.05));
    }}
  return least;
}})()"""  # WCAG contrast of each kind of text with what it stands on
PICTURES = """[...document.querySelectorAll('.bd-article img')].map(image => {
  const style = getComputedStyle(image);
  return {source: image.getAttribute('src'), alt: image.alt, loaded: image.naturalWidth > 0, filter: style.filter,
          width: image.getBoundingClientRect().width, card: style.backgroundColor};
})"""
TOO_WIDE = """[...document.querySelectorAll('.bd-article *')].filter(node => {
  for (let box = node.parentElement; box; box = box.parentElement)
    if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(box).overflowX)) return false;
  return node.getBoundingClientRect().right > screen.width + 1;
}).map(node => node.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Browser(tmp_path_factory.mktemp("browser"))
    yield tab
    tab.close()


def visit(browser, site, name, size=DESKTOP, scheme="light"):
    browser.open((site / f"{name}.html").as_uri(), size, scheme)


def is_dark(browser):
    """Whether the page is darker than its text."""
    page, text = (
        browser.run(f"{LUMINANCE}(getComputedStyle(document.querySelector('{what}')).{how})")
        for what, how in (("body", "backgroundColor"), (".bd-article p", "color"))
    )
    return page < text


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_down_only(browser, site, name):
    visit(browser, site, name, PHONE)
    assert browser.run(TOO_WIDE) == []
    assert browser.run("[screen.width, innerWidth, document.documentElement.scrollWidth]") == [PHONE[0]] * 3


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
def test_a_phone_shows_figures_large_and_captions_whole(browser, site, name):
    visit(browser, site, name, PHONE)
    boxes = "[...document.querySelectorAll('.bd-article {}')].map(node => node.getBoundingClientRect().{})"
    assert min(browser.run(boxes.format("figure img", "width")), default=640) >= 640
    assert max(browser.run(boxes.format(":is(figcaption, caption)", "right")), default=0) <= PHONE[0]


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
def test_a_desk_shows_code_whole(browser, site, name):
    visit(browser, site, name)
    hidden = "[...document.querySelectorAll('.bd-article .cell pre')].map(code => code.scrollWidth - code.clientWidth)"
    assert max(browser.run(hidden)) <= 0
    lines = """[...document.querySelectorAll('.bd-article .cell_input pre')].map(code => {
      const {paddingTop, paddingBottom, lineHeight} = getComputedStyle(code);
      const shown = (code.clientHeight - parseFloat(paddingTop) - parseFloat(paddingBottom)) / parseFloat(lineHeight);
      return Math.round(shown) - code.textContent.trimEnd().split('\\n').length;
    })"""
    assert max(browser.run(lines)) <= 0  # none wraps


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_and_pictures_can_be_seen(browser, site, name, scheme):
    visit(browser, site, name, scheme=scheme)
    ratios, dark = browser.run(LEAST_CONTRAST), is_dark(browser)
    assert dark == (scheme == "dark") and ratios["p"] >= 7
    assert min(ratios.values()) >= 4.5, ratios  # level AA
    for picture in browser.run(PICTURES):
        assert picture["loaded"] and picture["width"] >= 100 and picture["alt"].strip(), picture
        if dark:
            assert picture["filter"] == "none" and picture["card"] == "rgb(255, 255, 255)", picture


@pytest.mark.parametrize("name", MATHS)
def test_equations_are_set_without_a_network(browser, site, name):
    visit(browser, site, name)
    count = "['.math', 'mjx-container', 'mjx-merror'].map(what => document.querySelectorAll(what).length)"
    sources, made, wrong = browser.run(count)
    assert made >= sources > 0 and wrong == 0
    assert browser.run("[...document.fonts].some(font => font.family.includes('MJX') && font.status === 'loaded')")


def test_what_these_tests_look_for_can_be_found(browser, site):
    visit(browser, site, "book/notation", PHONE)
    browser.run("document.querySelector('.bd-article p').style.minWidth = '900px'")
    assert browser.run(TOO_WIDE)
    browser.run("document.querySelector('.bd-article p').style.color = '#999'")
    assert browser.run(LEAST_CONTRAST)["p"] < 7


def test_search_finds_a_chapter(browser, site):
    browser.open((site / "search.html").as_uri() + "?q=friendliness")
    found = """new Promise((done, fail) => {
      const look = tries => {
        const results = document.querySelector('#search-results');
        if (/finished/.test(results?.innerText)) done([...results.querySelectorAll('li a')].map(a => a.textContent));
        else tries ? setTimeout(look, 100, tries - 1) : fail(new Error(results?.innerText));
      };
      look(200);
    })"""
    assert "Notation" in browser.run(found)


def test_the_whole_book_prints_as_one_pdf(site, tmp_path):
    """By the Makefile's own recipe, without its set-up: this python's folder has the programs."""
    where = {"READY": "", "BIN": Path(sys.executable).parent, "OUT": tmp_path, "BROWSER": program()}
    command = ["make", "--silent", "pdf", *(f"{name}={value}" for name, value in where.items())]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    pdf = (tmp_path / "_build" / "distilling-bert.pdf").read_bytes()
    pictures = {path.name for path in (site / "_images").glob("*.png")}
    assert pdf.startswith(b"%PDF-") and len(re.findall(rb"/Type /Page\b", pdf)) > 10 * len(PAGES)
    assert len(re.findall(rb"/Subtype /Image", pdf)) >= len(pictures) > 20
