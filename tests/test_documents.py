"""The documents: links lead somewhere, and commands that they show exist with the flags that they are shown with."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(path for folder in ('.', 'docs', 'benchmarks', 'demo') for path in (ROOT / folder).glob('*.md'))
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a|video)[^>]*?(?:src|href)="([^"]+)"')


def anchors(text):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ +(.+)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in (first or second for first, second in LINK.findall(document.read_text())):
        if link.startswith(('http://', 'https://', 'mailto:')):
            continue
        path, _, anchor = link.partition('#')
        target = document.parent / path if path else document
        assert target.exists(), f'{link} leads nowhere'
        if anchor:
            assert anchor in anchors(target.read_text()), f'{link}: no such heading'


def shown_commands():
    """{script: the flags that the documents show with it}."""
    found = {}
    for document in DOCUMENTS:
        for script, arguments in re.findall(r'\b([\w/]+\.(?:py|sh))\b((?: +[^\s`|)]+)*)', document.read_text()):
            found.setdefault(script, set()).update(re.findall(r'(?<= )--[\w-]+', arguments))
    return found


def test_scripts_that_are_shown_exist():
    own = [path.name for path in ROOT.rglob('*') if path.suffix in ('.py', '.sh')]
    missing = [script for script in shown_commands() if not (ROOT / script).exists() and Path(script).name not in own]
    assert not missing


@pytest.mark.parametrize('script', sorted(path.name for path in ROOT.glob('*.py')
                                          if re.search(r'run_command\(|options\.run\(', path.read_text())
                                          and path.name not in ('utils.py', 'options.py')))
def test_flags_that_are_shown_are_in_the_help(script):
    shown = shown_commands().get(script)
    assert shown is not None, f'no document shows {script}'
    said = subprocess.run([sys.executable, script, '--help'], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = [flag for flag in shown if not re.search(rf'{flag}\b', said.stdout)]
    assert not missing
