"""Build the API reference from the docstrings: `make docs`, or `python docs/build_reference.py OUT`.

The code is copied into one package first, as a wheel has it, since pdoc looks for modules inside the
package's folder.
"""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("multi_exit", "data_partitions", "clients", "server", "fl_app")


class Page(HTMLParser):
    """A page's links and the anchors that others may link to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the tag links to and which anchor it is."""
        found = dict(attrs)
        if found.get("id"):
            self.anchors.add(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))


def broken_links(folder: Path) -> Iterator[str]:
    """Yield each link of the folder's HTML pages whose file or anchor is missing; other sites are not asked."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in known):
                yield f"{path.relative_to(folder.resolve())}: {link}"


def build(out: Path) -> None:
    """Write the reference into `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "persephonee"
        shutil.copytree(ROOT / "persephonee", package)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, package / name)
        sys.path.insert(0, folder)
        os.chdir(folder)  # pdoc refuses to choose between an installed package and a folder of the same name
        pdoc.render.configure(docformat="google", show_source=False, footer_text="PersEPhonEE")
        warnings.filterwarnings("error", module="pdoc")
        pdoc.pdoc("persephonee", *(f"persephonee.{name}" for name in FOLDERS), output_directory=out)
        os.chdir(ROOT)


if __name__ == "__main__":
    reference = Path(sys.argv[1]).resolve()
    build(reference)
    broken = list(broken_links(reference))
    print("\n".join(["Broken links:", *broken]) if broken else f"{reference / 'index.html'}")
    sys.exit(bool(broken))
