"""The documents: links lead somewhere, commands exist with the flags that they are shown with, the Python runs."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_documents

ROOT = Path(__file__).parent.parent
FOLDERS = ('.', 'docs', 'docs/notes', 'benchmarks', 'demo', 'tests/golden')
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob('*.md'))
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
    own += [block.value for document in DOCUMENTS for block in run_documents.blocks(document) if block.kind == 'file']
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


def test_every_page_is_in_the_index():
    index = (ROOT / 'docs' / 'index.md').read_text()
    linked = {(ROOT / 'docs' / first).resolve() for first, _ in LINK.findall(index)}
    own_index = ROOT / 'docs' / 'index.md'
    assert [str(page.relative_to(ROOT)) for page in DOCUMENTS if page not in linked | {own_index}] == []


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_the_shown_python_runs():
    text = (ROOT / 'docs' / 'generate.md').read_text()
    block = re.search(r'^    from inference.*\n(?:    .*\n|\n)+', text, re.MULTILINE)[0]
    code = '\n'.join(line[4:] for line in block.splitlines())
    names = {}
    exec(code, names)
    assert names['image'].shape == (128, 128, 3) and names['image'].std() > 20


# ---------------------------------------------------------------------------------------------- commands that are run

RUN = [document for document in DOCUMENTS if run_documents.blocks(document)]


def test_every_mark_has_its_block():
    """A mark that the runner does not find would leave its command untried."""
    for document in DOCUMENTS:
        marks = re.findall(r'^<!-- (?:run|prints|file)\b', document.read_text(), re.MULTILINE)
        found = run_documents.blocks(document)
        assert len(marks) == len(found), document
        assert all(block.kind != 'prints' or before.kind in ('run', 'prints')
                   for before, block in zip([None, *found], found, strict=False)), document
    assert {'README.md', 'recipes.md'} <= {document.name for document in RUN}


def page(folder, text):
    """A document of this text, which is run in folder / 'run'; what is not as it says."""
    (folder / 'page.md').write_text(text)
    (folder / 'run').mkdir()
    return run_documents.run_document(folder / 'page.md', folder / 'run')


def test_what_a_document_shows_is_compared(tmp_path):
    said = ('<!-- file: say.py -->\n\n    print("12 cats, -0.5 s,\\nin a", "box")\n\n'
            '<!-- run -->\n\n    python say.py\n\n')
    assert page(tmp_path, said + '<!-- prints -->\n\n    3 cats, 0.25 s,\n    in …\n') == []
    for i, wrong in enumerate(('3 dogs, 0.25 s,', '3 cats, fast,', 'in a box\n    3 cats, 0.25 s,')):
        (tmp_path / str(i)).mkdir()
        faults = page(tmp_path / str(i), said + f'<!-- prints -->\n\n    {wrong}\n')
        assert len(faults) == 1 and 'was not printed' in faults[0], wrong


def test_a_command_that_fails_is_found(tmp_path):
    faults = page(tmp_path, '<!-- run -->\n\n    python prepare_data.py\n    echo after\n\n<!-- run: exit 3 -->\n\n'
                            '    exit 3\n')
    assert len(faults) == 1 and 'exit code 2 instead of 0' in faults[0] and '\nafter' not in faults[0]
    assert not list((tmp_path / 'run').glob('evaluations'))


@pytest.mark.skipif(not os.environ.get('STYLESDF_RUN_DOCUMENTS'),
                    reason='takes minutes: set STYLESDF_RUN_DOCUMENTS=1, or run python tests/run_documents.py')
@pytest.mark.parametrize('document', RUN, ids=lambda path: path.name)
def test_what_the_documents_show_works(document, tmp_path):
    assert run_documents.run_document(document, tmp_path) == []


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip('mkdocs', reason='needs mkdocs-material (requirements-docs.txt)')
    built = subprocess.run(['bash', 'scripts/site.sh', tmp_path / 'site'], cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, 'VIRTUAL_ENV': sys.prefix,
                                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'})
    assert built.returncode == 0, built.stderr
    for document in DOCUMENTS:
        name = 'index.html' if document.name == 'README.md' else f'{document.stem}.html'
        assert (tmp_path / 'site' / document.parent.relative_to(ROOT) / name).is_file()
    page = (tmp_path / 'site' / 'index.html').read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//(?!schema)[^"]+"', page)
