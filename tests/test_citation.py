"""CITATION.cff: valid, and the same paper that the README cites."""
import re

import pytest
import yaml
from conftest import ROOT

TEXT = (ROOT / 'CITATION.cff').read_text()


def test_it_is_valid():
    cffconvert = pytest.importorskip('cffconvert', reason='needs cffconvert (requirements-test.txt)')
    cffconvert.Citation(TEXT).validate()  # raises


def test_it_names_the_readmes_paper():
    paper = yaml.safe_load(TEXT)['preferred-citation']
    readme = re.sub(r'[{}]', '', (ROOT / 'README.md').read_text())
    authors = re.search(r'author\s+= (.+?),\n\s+booktitle', readme, re.DOTALL)[1]
    assert re.split(r'\s+and\s+', authors.strip()) == [
        f'{author["family-names"]}, {author["given-names"]}' for author in paper['authors']]
    assert re.search(r'title\s+= (.+),\n', readme)[1] == paper['title']
    assert f'{paper["start"]}--{paper["end"]}' in readme and f'= {paper["year"]}' in readme
    assert paper['url'].rpartition('/')[2] in readme
