"""The house stays in order (CONTRIBUTING.md): who imports whom, how long things are, what they are called.

Each check is a function of a folder that returns what is wrong there. It is tried on the project, and on small made-up
projects, so that it is known to find what it looks for.
"""
import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

METHOD = ('model', 'volume_renderer')
METHOD_MAY_IMPORT = {'torch', 'op', 'camera', *METHOD}
IMPORTERS = 'import_module', '__import__'
LONGEST_FUNCTION = 60
LONGEST_METHOD_FILE = 399
TEXTS = ('.py', '.md', '.sh', '.toml', '.html', '.ipynb', '.yaml', '.yml', '.cff', '.cu', '.h', '.txt')
OTHERS_TEXT = ('web/model-viewer/',)  # a library as its authors deliver it

# Stems of British spellings, in two parts so that this file does not hold them itself.
BRITISH = re.compile('|'.join((
    'colo' 'ur', r'\bgr' 'ey', 'cent' 're', 'behavio' 'ur', 'neighbo' 'ur', 'favo' 'ur', 'flavo' 'ur', 'hono' 'ur',
    'artef' 'act', 'licen' 'ce', 'catalog' 'ue', 'analy' 's(?:e|ed|ing)\\b', 'label' 'led(?!by)', 'model' 'ling',
    'cancel' 'led', 'travel' 'led',
    '(?:normal|initial|optim|organ|recogn|visual|serial|synchron|parametr|regular|raster|summar|minim|maxim|random|'
    'general|discret|real|special|stabil|token|vector|quant|equal|local|final|central|author|util|custom|emphas|'
    'categor|penal|character)i' 's(?:e|ed|es|er|ers|ing|ation|ations|ations?)\\b')), re.IGNORECASE)
DANGLING_SOURCE = re.compile(r'\bspec(?:ification)?\s+section', re.IGNORECASE)


# ---------------------------------------------------------------------------------------------- reading a project

def rooms(root):
    """The folders of a project that hold its modules."""
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name != 'tests'
            and not folder.name.startswith('.') and not (folder / 'pyvenv.cfg').exists() and any(folder.glob('*.py'))]


def modules(root):
    """{dotted name: path} of a project's modules, without its tests. A room's __init__.py bears the room's name."""
    found = {path.stem: path for path in sorted(root.glob('*.py'))}
    for room in rooms(root):
        for path in sorted(room.glob('*.py')):
            found[room.name if path.stem == '__init__' else f'{room.name}.{path.stem}'] = path
    return found


def texts(root):
    """The text files that the project's authors wrote."""
    hidden = [folder for folder in root.iterdir() if folder.is_dir() and (
        folder.name.startswith('.') and folder.name != '.ci' or (folder / 'pyvenv.cfg').exists())]
    generated = ('checkpoint', 'datasets', 'evaluations', 'full_models', 'pretrained_renderer', 'site')
    for path in sorted(root.rglob('*')):
        name = path.relative_to(root).as_posix()
        if (path.is_file() and (path.suffix in TEXTS or path.name == 'Dockerfile')
                and not any(folder in path.parents for folder in hidden)
                and not name.startswith((*OTHERS_TEXT, *(f'{folder}/' for folder in generated)))):
            yield name, path.read_text(encoding='utf-8')


def statements(node, anywhere):
    """The statements of a module; without `anywhere` only those that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if not anywhere and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child, anywhere)


def imported(path, known, anywhere):
    """The dotted names that a module imports. A name from a package of `known` modules counts as that module."""
    for node in statements(ast.parse(path.read_text()), anywhere):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = '.'.join(filter(None, [path.parent.name if node.level else '', node.module]))
            for alias in node.names:
                inner = f'{package}.{alias.name}'
                yield inner if inner in known else package
        elif (isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', '')) in IMPORTERS
              and node.args and isinstance(node.args[0], ast.Constant)):
            yield node.args[0].value


def commands(root):
    """The modules that are run: those at the top and in benchmarks/ that do something as __main__."""
    return {name for name, path in modules(root).items() if name.partition('.')[0] in (path.stem, 'benchmarks')
            and re.search(r"^if __name__ == ['\"]__main__['\"]", path.read_text(), re.MULTILINE)}


# ---------------------------------------------------------------------------------------------- the checks

def imported_commands(root):
    known, run = modules(root), commands(root)
    return [f'{name} imports the command {other}' for name, path in known.items()
            for other in sorted(set(imported(path, known, anywhere=True)) & run - {name})]


def circles(root):
    """Circles of modules that import each other while they are imported, each once, as 'a -> b -> a'."""
    known = modules(root)
    follows = {name: sorted(set(imported(path, known, anywhere=False)) & known.keys() - {name})
               for name, path in known.items()}
    found, done = {}, set()

    def walk(name, path):
        if name in path:
            circle = path[path.index(name):]
            found.setdefault(frozenset(circle), ' -> '.join([*circle, name]))
        elif name not in done:
            for other in follows[name]:
                walk(other, [*path, name])
            done.add(name)

    for name in follows:
        walk(name, [])
    return list(found.values())


def strange_imports_of_the_method(root):
    """What model.py and volume_renderer.py import beyond torch, op/, camera.py, each other and Python's own library."""
    known = modules(root)
    return [f'{name} imports {other}' for name in METHOD for other in imported(known[name], known, anywhere=True)
            if other.partition('.')[0] not in METHOD_MAY_IMPORT | sys.stdlib_module_names]


def long_functions(root):
    """Functions of the project and its tests with too many lines."""
    found = []
    for path in [*modules(root).values(), *sorted((root / 'tests').glob('*.py'))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found.append(f'{path.relative_to(root)}: {node.name} has {lines} lines')
    return found


def long_files_of_the_method(root):
    lines = {name: len((root / f'{name}.py').read_text().splitlines()) for name in METHOD}
    return [f'{name}.py has {count} lines' for name, count in lines.items() if count > LONGEST_METHOD_FILE]


def matches(root, pattern):
    """'file:line: what was found' of a pattern in the project's texts."""
    return [f'{name}:{number}: {match[0]}' for name, text in texts(root) if pattern.search(text)
            for number, line in enumerate(text.splitlines(), 1) for match in pattern.finditer(line)]


def dangling_sources(root):
    """Places that cite the description from which the project was written, which is not part of it."""
    return matches(root, DANGLING_SOURCE)


def british_spellings(root):
    return matches(root, BRITISH)


def untested_modules(root):
    """Modules without their test file.

    A module x.py at the top has tests/test_x.py. A module room/x.py has tests/test_x.py or tests/test_room_x.py, or the
    room has one file for all that it holds, tests/test_room.py.
    """
    found = []
    for name, path in modules(root).items():
        room, _, module = name.rpartition('.')
        names = [f'test_{module}', f'test_{room}_{module}', f'test_{room}'] if room else [f'test_{module}']
        if not any((root / 'tests' / f'{test}.py').exists() for test in names):
            found.append(f'{path.relative_to(root)}: no tests/{" or ".join(names)}.py')
    return found


CHECKS = [imported_commands, circles, strange_imports_of_the_method, long_functions, long_files_of_the_method,
          dangling_sources, british_spellings, untested_modules]


# ---------------------------------------------------------------------------------------------- the project

@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_the_project(check):
    assert check(ROOT) == []


# ---------------------------------------------------------------------------------------------- made-up projects

ORDERLY = {
    'model.py': 'import math\nimport torch\nimport op.fast\nfrom op import slow\nfrom volume_renderer import Field\n',
    'volume_renderer.py': 'import torch\nfrom camera import poses\nfrom op import slow, twice\n',
    'camera.py': 'import torch\n',
    'op/__init__.py': 'from op.slow import twice\n',
    'op/slow.py': 'from op import fast\n',
    'op/fast.py': 'import torch\n\n\ndef check():\n    import op.slow\n',
    'train.py': "from model import Model\n\nif __name__ == '__main__':\n    Model()\n",
    'README.md': 'A gray color, normalized, at the center.\n',
    'tests/test_train.py': 'import train\n', 'tests/test_model.py': '', 'tests/test_volume_renderer.py': '',
    'tests/test_camera.py': '', 'tests/test_slow.py': '', 'tests/test_op_fast.py': '',
    'tests/test_op.py': '',
}


@pytest.fixture
def project(tmp_path):
    """project(changes) writes an orderly small project with some files changed, and returns its folder."""
    def write(changes=None):
        for name, text in {**ORDERLY, **(changes or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text)
        return tmp_path
    return write


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_an_orderly_project_passes(project, check):
    assert check(project()) == []


@pytest.mark.parametrize('check, changes, expected', [
    (imported_commands, {'op/fast.py': 'import train\n'}, ['op.fast imports the command train']),
    (imported_commands, {'op/fast.py': 'def late():\n    from train import main\n'},
     ['op.fast imports the command train']),
    (imported_commands, {'camera.py': "import importlib\nimportlib.import_module('train')\n"},
     ['camera imports the command train']),
    (imported_commands, {'benchmarks/speed.py': 'import train\n'}, ['benchmarks.speed imports the command train']),
    (circles, {'op/fast.py': 'from op.slow import twice\n'}, ['op.fast -> op.slow -> op.fast']),
    (circles, {'camera.py': 'import model\n'}, ['camera -> model -> volume_renderer -> camera']),
    (circles, {'camera.py': 'class A:\n    import volume_renderer\n'},
     ['camera -> volume_renderer -> camera']),
    (strange_imports_of_the_method, {'model.py': 'import numpy as np\n'}, ['model imports numpy']),
    (strange_imports_of_the_method, {'volume_renderer.py': 'def f():\n    from options import parse\n'},
     ['volume_renderer imports options']),
    (long_functions, {'camera.py': 'def poses():\n' + '    1\n' * 60}, ['camera.py: poses has 61 lines']),
    (long_functions, {'tests/test_op.py': 'class A:\n    def b(self):\n' + '        1\n' * 60},
     ['tests/test_op.py: b has 61 lines']),
    (long_files_of_the_method, {'model.py': '\n' * 400}, ['model.py has 400 lines']),
    (dangling_sources, {'camera.py': '# Rays (spec ' 'section 2).\n'}, ['camera.py:1: spec ' 'section']),
    (british_spellings, {'docs/a.md': 'The colo' 'ur\nis normali' 'sed.\n'},
     ['docs/a.md:1: colo' 'ur', 'docs/a.md:2: normali' 'sed']),
    (untested_modules, {'tests/test_camera.py': None}, ['camera.py: no tests/test_camera.py']),
    (untested_modules, {'web/page.py': ''}, ['web/page.py: no tests/test_page or test_web_page or test_web.py']),
])
def test_disorder_is_found(project, check, changes, expected):
    assert check(project(changes)) == expected


def test_a_functions_own_imports_are_no_circle(project):
    assert circles(project({'op/fast.py': 'def late():\n    from op.slow import twice\n'})) == []


def test_an_environment_inside_the_checkout_is_not_the_projects(project):
    root = project({'venv/pyvenv.cfg': '', 'venv/other.py': 'colo' 'ur = 1\n'})
    assert all(check(root) == [] for check in CHECKS)


def test_it_looks_at_the_whole_project():
    assert {'model', 'op', 'op.upfirdn', 'web.page', 'benchmarks.speed', 'training.run'} <= modules(ROOT).keys()
    assert {'train_volume_renderer', 'app', 'benchmarks.speed'} <= commands(ROOT)
    names = {name for name, _ in texts(ROOT)}
    assert {'README.md', 'docs/training.md', 'tests/conftest.py', 'scripts/test.sh', 'Dockerfile'} <= names
    assert Path('web/model-viewer/README.md').as_posix() not in names
