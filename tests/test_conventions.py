"""docs/conventions.md: its table leads from each formula of the paper to a function that names it."""
import ast
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / 'docs' / 'conventions.md').read_text()
PLACE = re.compile(r'`([\w/]+\.py):\s+([\w.]+)`')
TABLE = re.findall(r'^\| `([^`]+)` \|[^|]*\| `([\w/]+\.py): ([\w.]+)` \|$', PAGE, re.MULTILINE)


def definition(path, name):
    """The syntax tree of a module's function, class or, with a dot, method or field; None where there is none."""
    node = ast.parse((ROOT / path).read_text())
    for part in name.split('.'):
        node = next((child for child in node.body
                     if getattr(child, 'name', None) == part
                     or isinstance(child, ast.AnnAssign) and child.target.id == part), None)
        if node is None:
            return None
    return node


def test_the_table_holds_the_papers_formulas():
    assert {symbol for symbol, *_ in TABLE} >= {'phi_i', 'K_alpha', 'C(r)', 't_i', 'L_adv', 'L_view', 'L_eik', 'L_surf',
                                                'L_path'}


@pytest.mark.parametrize('symbol, path, name', TABLE)
def test_a_formulas_function_names_it(symbol, path, name):
    node = definition(path, name)
    assert node is not None, f'{path} has no {name}'
    assert symbol in (ast.get_docstring(node) or ''), f'the docstring of {path}: {name} does not name {symbol}'


@pytest.mark.parametrize('path, name', sorted(set(PLACE.findall(PAGE))))
def test_names_on_the_page_exist(path, name):
    assert definition(path, name) is not None


def test_definitions_are_found_and_missed():
    assert isinstance(definition('losses.py', 'eikonal_loss'), ast.FunctionDef)
    assert isinstance(definition('camera.py', 'Cameras.magnified'), ast.FunctionDef)
    assert definition('camera.py', 'Cameras.nothing') is None and definition('losses.py', 'nothing') is None
