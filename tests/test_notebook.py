"""StyleSDF_demo.ipynb, executed from top to bottom as Jupyter does: what it shows, and how it installs itself."""
import base64
import io
import os
import re
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from tiny_model import save_tiny_model

nbformat = pytest.importorskip('nbformat', reason='needs nbclient (requirements-test.txt)')
nbclient = pytest.importorskip('nbclient', reason='needs nbclient (requirements-test.txt)')
pytest.importorskip('ipykernel', reason='needs ipykernel (requirements-test.txt)')

PLACE = r"REPOSITORY = '([^']*)'"  # in the first cell of code


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'StyleSDF_demo.ipynb', as_version=4)


def execute(notebook, folder):
    """Run the notebook's cells in `folder`; any error in one is raised."""
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',
                            resources={'metadata': {'path': str(folder)}}).execute()


def outputs(cell, kind):
    """What a cell displays of one media type; text that it prints is 'text'."""
    if kind == 'text':
        return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')
    return [output.data[kind] for output in cell.outputs if kind in output.get('data', {})]


def test_top_to_bottom(notebook, tmp_path, monkeypatch):
    """With a tiny model of the demo model's name, which is found before that one; with fewer pictures."""
    save_tiny_model(tmp_path)
    Path(tmp_path / 'full_models/tiny.pt').rename(tmp_path / 'full_models/cats_demo.pt')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    small = ('import numpy as np\nimport surfaces.rendering\n'
             'surfaces.rendering.SURFACE_RESOLUTION = 32\n')
    quick = ('import inversion.preview, inversion.search, web.own_photo\n'
             'inversion.preview.PICTURES = inversion.search.IDENTITIES = 2\n'
             'web.own_photo.STEPS = 0\n')
    for cell, there, fewer in ((9, 'FRAMES = 40\n', 'FRAMES = 3\n'), (11, "PHOTO = ''\n", f"PHOTO = ''\n{quick}"),
                               (5, 'import numpy as np\n', small), (5, '[-20., -10., 0., 10., 20.]', '[-20., 20.]'),
                               (5, 'SEEDS, TRUNCATION = [0, 2, 13], 0.7', 'SEEDS, TRUNCATION = [0, 13], 0.7')):
        assert there in notebook.cells[cell].source
        notebook.cells[cell].source = notebook.cells[cell].source.replace(there, fewer)
    execute(notebook, tmp_path)
    assert 'cats_demo.pt' in outputs(notebook.cells[3], 'text')

    images, surface, videos, photo = (cell for cell in notebook.cells[5:] if cell.cell_type == 'code')
    assert outputs(images, 'text') == 'Seed 0\nSeed 13\n'
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))), dtype=float)
             for png in outputs(images, 'image/png')]
    assert [picture.shape for picture in shown] == [(2 * 192, 2 * 192, 3)] * 2
    for picture in shown:
        tiles = picture.reshape(2, 192, 2, 192, 3).swapaxes(1, 2)
        assert (tiles[0].std(axis=(1, 2)) > 1).all() and np.abs(tiles[0, 0] - tiles[0, 1]).mean() > 0.1
        assert np.ptp(tiles[1], axis=-1).max() == 0  # the surfaces are gray
    assert np.abs(shown[0] - shown[1]).mean() > 0.1

    html, = outputs(surface, 'text/html')
    assert '<iframe srcdoc=' in html and 'THREE' in html
    assert len(outputs(videos, 'text/html')) == 2
    for video, html in zip(('around', 'walk'), outputs(videos, 'text/html'), strict=True):
        data = base64.b64decode(html.partition('base64,')[2].partition('"')[0])
        assert data == (tmp_path / f'{video}.mp4').read_bytes()
        with av.open(io.BytesIO(data)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 3

    assert outputs(photo, 'text').startswith('Found: azimuth')
    shown = [Image.open(io.BytesIO(base64.b64decode(png))).size for png in outputs(photo, 'image/png')]
    assert shown == [(2 * 192, 192)] * 2  # the photo and what was found; two views of it


def test_outside_of_a_checkout_it_fetches_one(notebook, tmp_path, monkeypatch):
    """As in Colab: a folder without the project, and the address of a repository."""
    checkout = tmp_path / 'origin'
    checkout.mkdir()
    (checkout / 'inference').mkdir()
    (checkout / 'inference' / '__init__.py').write_text('PLACE = "the clone"\n')
    (checkout / 'requirements.txt').write_text('numpy\n')  # pip need not look for more
    identity = ['-c', 'user.name=Tester', '-c', 'user.email=tester@example.org']
    for command in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-q', '-m', 'The project']):
        if subprocess.run(['git', *command], cwd=checkout, env={**os.environ, 'HOME': str(tmp_path)}).returncode:
            pytest.skip('needs git')
    (tmp_path / 'colab').mkdir()
    monkeypatch.delenv('PYTHONPATH', raising=False)
    cell = notebook.cells[1]
    cell.source = re.sub(PLACE, f"REPOSITORY = '{checkout.as_uri()}'", cell.source)
    check = nbformat.v4.new_code_cell('import inference\nprint(inference.PLACE)')
    notebook.cells = [cell, check]
    execute(notebook, tmp_path / 'colab')
    assert outputs(check, 'text') == 'the clone\n'
    assert 'ERROR' not in outputs(cell, 'text')


def test_without_an_address_it_asks_for_one(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    cell = notebook.cells[1]
    cell.source = re.sub(PLACE, "REPOSITORY = ''", cell.source)
    notebook.cells = [cell]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match='Set REPOSITORY'):
        execute(notebook, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_repositorys_address_stands_in_one_place(notebook):
    """The README shows the notebook's, or says that it is this repository's while there is none."""
    address, = re.findall(PLACE, notebook.cells[1].source)
    shown = re.findall(r'git clone (<this repository>|\S+)', (ROOT / 'README.md').read_text())
    assert shown and set(shown) == {address or '<this repository>'}


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert cell.outputs == [] and cell.execution_count is None
