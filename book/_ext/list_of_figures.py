"""Sphinx directive `list-of-figures`: every captioned figure of the book, in reading order, linked and numbered."""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import clean_astext


class FigureList(nodes.General, nodes.Element):
    """Stands where the list goes until every page has been read."""


class ListOfFigures(SphinxDirective):
    def run(self):
        return [FigureList()]


def _pages(env):
    """Pages in the order of the table of contents."""
    found = []

    def visit(page):
        if page not in found:
            found.append(page)
            for child in env.toctree_includes.get(page, []):
                visit(child)

    visit(env.config.root_doc)
    return found


def _entries(app, page):
    numbers = app.env.toc_fignumbers
    for here in _pages(app.env):
        for figure in app.env.get_doctree(here).findall(nodes.figure):
            caption = next(figure.findall(nodes.caption), None)
            if caption is None or not figure["ids"]:
                continue
            anchor = figure["ids"][0]
            number = numbers.get(here, {}).get("figure", {}).get(anchor, ())
            text = f"Figure {'.'.join(map(str, number))}: {clean_astext(caption)}"
            uri = f"{app.builder.get_relative_uri(page, here)}#{anchor}"
            link = nodes.reference("", text, internal=True, refuri=uri)
            yield nodes.list_item("", nodes.paragraph("", "", link))


def fill(app, doctree, page):
    for place in list(doctree.findall(FigureList)):
        place.replace_self(nodes.bullet_list("", *_entries(app, page)))


def setup(app):
    app.add_node(FigureList)
    app.add_directive("list-of-figures", ListOfFigures)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True}
