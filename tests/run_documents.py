"""Run the commands that the documents show, in a temporary folder, and compare what they print with what is shown.

    python tests/run_documents.py                    all documents with such commands
    python tests/run_documents.py docs/recipes.md    one of them

It is for commands that need neither a network nor more than a minute. In a document a comment, which readers do not
see, says what is done with the indented block after it:

    <!-- run -->           run it with bash; it must end with exit code 0
    <!-- run: exit 2 -->   the same, for an error that is shown on purpose
    <!-- prints -->        the block run before must have printed these lines, in this order, and may print others too
    <!-- file: NAME -->    write it as the file NAME

A number stands for any number, and … for any text. The blocks of a document run one after the other in one folder,
which has links to the files of the project, so results never get into the checkout.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ('checkpoint', 'datasets', 'evaluations', 'full_models', 'pretrained_renderer')
MARK = re.compile(r'^<!-- (run|prints|file)(?:: *([^>]*?))? -->\n\n?((?: {4}.*\n|\n)+)', re.MULTILINE)
NUMBER = r'-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?'


class Block(NamedTuple):
    """A marked block of a document: run, prints or file, what follows the colon in its mark, and its text."""
    kind: str
    value: str
    text: str


def blocks(document):
    """The Blocks of a document, in its order."""
    found = MARK.findall(Path(document).read_text(encoding='utf-8') + '\n')
    return [Block(kind, value, '\n'.join(line[4:] for line in text.rstrip().split('\n')) + '\n')
            for kind, value, text in found]


def pattern(line):
    """The regular expression of a shown line."""
    parts = re.split(f'(…|{NUMBER})', ' '.join(line.split()))
    return ''.join('.*' if part == '…' else NUMBER if re.fullmatch(NUMBER, part) else re.escape(part)
                   for part in parts)


def missing_line(shown, printed):
    """The first of the shown lines that was not printed after those before it, or None."""
    rest = iter([' '.join(line.split()) for line in re.split(r'[\r\n]+', printed)])
    for line in shown.splitlines():
        if line.strip() and not any(re.fullmatch(pattern(line), candidate) for candidate in rest):
            return line
    return None


def link_project(folder):
    """Fill an empty folder with links to the files of the project."""
    for path in ROOT.iterdir():
        if path.name not in RESULTS and not path.name.startswith('.'):
            (folder / path.name).symlink_to(path, target_is_directory=path.is_dir())


def run_shell(text, folder):
    """(exit code, all that was printed) of a block; `python` is the one that runs this."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    done = subprocess.run(['bash', '-euo', 'pipefail', '-c', text], cwd=folder, env=os.environ | {'PATH': path},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def run_document(document, folder, report=lambda text: None):
    """Run a document's blocks in an empty folder; a list of sentences about what is not as the document says.

    report: called with each command and with what it printed.
    """
    link_project(folder)
    faults, printed = [], ''
    for kind, value, text in blocks(document):
        if kind == 'file':
            (folder / value).write_text(text, encoding='utf-8')
        elif kind == 'run':
            report(f'$ {text}')
            code, printed = run_shell(text, folder)
            report(printed)
            expected = int(value.removeprefix('exit ') or 0)
            if code != expected:
                faults.append(f'exit code {code} instead of {expected}:\n{text}{printed}')
        elif (line := missing_line(text, printed)) is not None:
            faults.append(f'this line was not printed:\n{line}\nbut:\n{printed}')
    return faults


def main(names):
    documents = [Path(name) for name in names] or [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
    faults = 0
    for document in filter(blocks, documents):
        print(f'== {document}', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for fault in run_document(document, Path(folder), lambda text: print(text, flush=True)):
                print(f'{document}: {fault}', file=sys.stderr)
                faults += 1
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
