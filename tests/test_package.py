"""What a reader of the README finds, here and on a package index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import diffbio_sc as dbio

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = PROJECT["project"]["urls"]["Documentation"]

LINK = re.compile(r"\]\(([^)\s]+)\)")


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_to_files():
    links = [link for link in LINK.findall(readme()) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_links_of_the_readme_lead_to_pages_on_an_index():
    text = readme()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = LINK.findall(text)
    assert [link for link in links if not link.startswith("https://")] == []
    for link in links:
        page = link.removeprefix(f"{PAGES}/en/latest/").split("#")[0]
        source = ROOT / "docs" / page
        assert source.exists() or source.with_suffix(".md").exists(), link


@pytest.mark.parametrize("name", ["pyproject.toml", "meta.yaml", "README.md", "docs/index.md", "CITATION.cff"])
def test_addresses_of_the_project_are_one(name):
    found = re.findall(r"https://diffbio[\w.-]+", (ROOT / name).read_text(encoding="utf-8"))
    assert set(found) <= {PAGES}


def test_versions_agree():
    fallback = PROJECT["tool"]["hatch"]["version"]["fallback-version"]
    assert re.search(rf"^version: v{re.escape(fallback)}$", (ROOT / "meta.yaml").read_text(), re.MULTILINE)
    assert re.search(rf"^version: {re.escape(fallback)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.match(r"\d", dbio.__version__)


def test_the_test_command_of_the_registry_is_that_of_the_readme():
    command = re.search(r"pytest [^\n`]*", readme().split("<!-- ci:test -->")[1]).group()
    assert command in (ROOT / "meta.yaml").read_text()
