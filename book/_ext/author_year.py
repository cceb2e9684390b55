"""Bibliography style `author_year`: sorted by author, with the label that a citation in the text shows, as
[Hinton *et al.*, 2015]; `bibtex_default_style: author_year` in `_config.yml` asks for it."""

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.labels import BaseLabelStyle


class Labels(BaseLabelStyle):
    def format_labels(self, sorted_entries):
        """One label an entry: its first author's last name or two authors' names, and its year."""
        for entry in sorted_entries:
            names = [" ".join([*one.prelast_names, *one.last_names]).strip("{}") for one in entry.persons["author"]]
            shown = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{shown}, {entry.fields['year']}"


class AuthorYear(Plain):
    default_label_style = Labels


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"parallel_read_safe": True}
