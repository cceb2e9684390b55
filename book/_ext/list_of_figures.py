"""Sphinx directive `list-of-figures`: every captioned figure of the book, by page and in reading order, linked and
numbered."""

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


def _entry(text, uri, *more):
    """A linked item of the list, with what stands below it."""
    link = nodes.reference("", text, internal=True, refuri=uri)
    return nodes.list_item("", nodes.paragraph("", "", link), *more)


def _figures(app, here, uri):
    """The entries of the figures of the page `here`, whose address is `uri`: the first sentence of each caption."""
    numbers = app.env.toc_fignumbers.get(here, {}).get("figure", {})
    for figure in app.env.get_doctree(here).findall(nodes.figure):
        caption = next(figure.findall(nodes.caption), None)
        if caption is not None and figure["ids"]:
            anchor = figure["ids"][0]
            number = ".".join(map(str, numbers.get(anchor, ())))
            first = clean_astext(caption).split(". ")[0].rstrip(".")
            yield _entry(f"Figure {number}: {first}", f"{uri}#{anchor}")


def _chapters(app, page):
    """One entry a page that has figures, with theirs below it."""
    for here in _pages(app.env):
        uri = app.builder.get_relative_uri(page, here)
        if figures := list(_figures(app, here, uri)):
            yield _entry(clean_astext(app.env.titles[here]), uri, nodes.bullet_list("", *figures))


def fill(app, doctree, page):
    for place in list(doctree.findall(FigureList)):
        place.replace_self(nodes.bullet_list("", *_chapters(app, page)))


def setup(app):
    app.add_node(FigureList)
    app.add_directive("list-of-figures", ListOfFigures)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True}
