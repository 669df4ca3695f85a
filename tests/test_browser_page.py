"""The page that runs a model in a browser: its folder, and in Chromium that it shows what Python computes."""
import errno
import functools
import http.server
import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from browser import browser_page
from conftest import ROOT
from PIL import Image
from tiny_model import TINY, save_tiny_model

import checkpoint
import export_model
from inference.directions import edited, find_directions, save_directions
from inference.loaded_model import load_model
from model import build_generator
from options import parse
from web.browser_page import PACKAGE, RUNTIME, SEEDS

pytest.importorskip('onnx', reason='needs onnx (requirements-onnx.txt)')

# Where CI puts the package (scripts/test.sh); elsewhere the variable may name a folder of it.
ONNXRUNTIME_WEB = Path(os.environ.get('ONNXRUNTIME_WEB', ROOT / '.onnxruntime-web/node_modules/onnxruntime-web'))
ROOMY = [*TINY, '--renderer_spatial_output_dim', '16', '--size', '16']


def save_model(folder, name, *flags):
    """A tiny untrained model of 16x16 rays as full_models/NAME.pt."""
    torch.manual_seed(0)
    opt = parse('export_model', '', [*ROOMY, *flags])
    state = build_generator(opt).state_dict()
    checkpoint.save(folder / 'full_models' / f'{name}.pt', {
        'g_ema': state, 'options': {'model': {'renderer_spatial_output_dim': 16}}})


@pytest.fixture
def runtime(tmp_path):
    """A folder with files of the names that the package has."""
    folder = tmp_path / 'package' / 'dist'
    folder.mkdir(parents=True)
    for name in RUNTIME:
        (folder / name).write_text(name)
    return tmp_path / 'package'


# ---------------------------------------------------------------------------------------------- the folder

def test_the_folder_holds_page_model_and_runtime(tmp_path, command, runtime):
    save_model(tmp_path, 'small')
    for _ in range(2):  # the second one replaces the first
        code, out, error = command(export_model, '--expname', 'small', '--browser', 'site', '--onnxruntime_web',
                                   runtime)
        assert code == 0 and 'http.server --directory site' in out, error
    site = tmp_path / 'site'
    assert {path.name for path in site.iterdir()} == {
        'model', 'onnxruntime', 'look.css', 'icon.png', *(path.name for path in (ROOT / 'web' / 'browser').iterdir())}
    assert {path.name for path in (site / 'onnxruntime').iterdir()} == set(RUNTIME)
    facts = json.loads((site / 'model' / 'model.json').read_text())
    assert facts['rays'] == 16 and len(facts['t']) == 24 and facts['beta'] == pytest.approx(0.1)
    assert [one['name'] for one in facts['directions']][:2] == ['shape1', 'shape2']
    z = np.frombuffer((site / 'model' / 'seeds.bin').read_bytes(), '<f4').reshape(SEEDS, 8)
    for seed in (0, 7, 255):
        assert (z[seed] == torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))[0].numpy()).all()


def broken_npm(folder, text):
    """A program npm in a folder of programs that does what `text` says."""
    folder.mkdir()
    (folder / 'npm').write_text(f'#!/bin/sh\n{text}\n')
    (folder / 'npm').chmod(0o755)
    return str(folder)


def test_npm_fetches_the_runtime(tmp_path, command, runtime, monkeypatch):
    save_model(tmp_path, 'small')
    with tarfile.open(tmp_path / 'made.tgz', 'w:gz') as archive:
        archive.add(runtime, 'package')
    text = f'[ "$3" = "{PACKAGE}" ] && cp "{tmp_path}/made.tgz" onnxruntime-web.tgz'
    monkeypatch.setenv('PATH', broken_npm(tmp_path / 'bin', text), prepend=os.pathsep)
    assert command(export_model, '--expname', 'small', '--browser', 'site')[0] == 0
    assert (tmp_path / 'site' / 'onnxruntime' / RUNTIME[0]).read_text() == RUNTIME[0]


@pytest.mark.parametrize('flags, sentence', [
    ('--onnxruntime_web nothing', 'give a folder of the npm package'),
    ('', 'npm could not fetch onnxruntime-web (no network)'),
    ('--browser occupied', 'holds something else'),
    ('--no_sdf --expname raw', 'needs signed distances'),
    ('--expname tiny', 'more than 8, not 8')])
def test_bad_input_is_one_sentence(tmp_path, command, monkeypatch, flags, sentence):
    save_model(tmp_path, 'small')
    save_model(tmp_path, 'raw', '--no_sdf')
    save_tiny_model(tmp_path)
    (tmp_path / 'occupied').mkdir()
    (tmp_path / 'occupied' / 'thesis.txt').write_text('')
    monkeypatch.setenv('PATH', broken_npm(tmp_path / 'bin', 'echo no network >&2; exit 1'), prepend=os.pathsep)
    code, _, error = command(export_model, '--expname', 'small', '--browser', 'site', *flags.split())
    assert code == 2 and sentence in error
    assert not (tmp_path / 'site').exists() and len(list((tmp_path / 'occupied').iterdir())) == 1
    assert not list(tmp_path.glob('.page-*'))


@pytest.mark.parametrize('room, size, writing', [
    (8000, 0, 'the model'), (11_000, 0, 'the programs of the page'), (15_000, 20_000, 'the runtime')])
def test_no_space_left(tmp_path, command, runtime, room, size, writing):
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    save_model(tmp_path, 'small')
    (runtime / 'dist' / RUNTIME[-1]).write_bytes(bytes(size))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        code, _, error = command(export_model, '--expname', 'small', '--browser', 'site', '--onnxruntime_web', runtime)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and f'cannot read or write site: {os.strerror(errno.EFBIG)}; free some space' in error
    assert not (tmp_path / 'site').exists() and not list(tmp_path.glob('.page-*'))


def test_after_a_stop_the_next_run_writes_the_page(tmp_path, command, runtime, monkeypatch):
    """Each run is stopped a step later than the one before, first where there is no page yet, then over an old one."""
    save_model(tmp_path, 'small')
    replace, site, left = os.replace, tmp_path / 'site', 0

    def stopped(source, target):
        nonlocal left
        if site in Path(target).absolute().parents or site in Path(source).absolute().parents:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', stopped)
    for _ in range(2):
        for steps in range(100):
            left = steps
            code, _, error = command(export_model, '--expname', 'small', '--browser', 'site', '--onnxruntime_web',
                                     runtime)
            if code == 0:
                break
            assert code == 130, error
        assert steps > 10


# ---------------------------------------------------------------------------------------------- its programs

CUBES = '''
import {marchingCubes} from './marching_cubes.mjs';
const size = 24, values = new Float32Array(size ** 3);
for (let z = 0, at = 0; z < size; z++) for (let y = 0; y < size; y++) for (let x = 0; x < size; x++)
  values[at++] = Math.max(...[x, y, z].map(one => Math.abs(one - 11.5))) > 10 ? 9
    : Math.sin(1.3 * x) + Math.sin(1.1 * y + z) + Math.cos(1.7 * z - x);
const mesh = marchingCubes(values, size);
console.log(JSON.stringify({vertices: Array.from(mesh.positions), normals: Array.from(mesh.normals),
  faces: Array.from(mesh.indices), inside: values.filter(value => value < 0).length}));
'''


@pytest.mark.skipif(not shutil.which('node'), reason='needs Node.js')
def test_marching_cubes_leave_no_holes_whatever_the_case(tmp_path):
    """A rough volume, in which all cases occur: its surface is closed, faces outward, and holds what is inside."""
    (tmp_path / 'cubes.mjs').write_text(CUBES)
    shutil.copy(ROOT / 'web' / 'browser' / 'cubes.js', tmp_path / 'marching_cubes.mjs')
    done = subprocess.run(['node', '--no-warnings', 'cubes.mjs'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    mesh = trimesh.Trimesh(np.reshape(made['vertices'], (-1, 3)), np.reshape(made['faces'], (-1, 3)), process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and len(mesh.faces) > 15_000
    assert mesh.volume == pytest.approx(made['inside'], rel=0.15)
    assert np.linalg.norm(np.reshape(made['normals'], (-1, 3)), axis=1) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------------------------- in Chromium

class Server(http.server.SimpleHTTPRequestHandler):
    """A plain web server, which knows the types of the files."""
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, '.mjs': 'text/javascript',
                      '.js': 'text/javascript', '.wasm': 'application/wasm'}

    def log_message(self, *_):
        pass


LOG = '''window.log = [];
for (const name of ['picture', 'surface']) document.addEventListener(name, event => log.push(event.detail));'''


# A direction may be called like a value of the page, or like something that each object in JavaScript has.
NAMES = 'shape1', 'mix', 'color1', 'constructor'
EDITS = {'shape1': -1, 'mix': 0.5, 'color1': 1, 'constructor': -1.5}
ADDRESS = ('#seed=3&azimuth=20&elevation=-5&other=8&mix=0.25&edit-constructor=-1.5&edit-color1=1&edit-mix=0.5'
           '&shape1=-1')  # the last one as earlier versions wrote it


@pytest.fixture(scope='module')
def demo():
    return load_model('cats_demo', device='cpu')


@pytest.fixture(scope='module')
def directions(demo):
    """{name: Direction} of NAMES."""
    found = find_directions(demo.generator, demo.means, 0.7, 'pca', 2)
    return dict(zip(NAMES, found.values(), strict=True))


@pytest.fixture(scope='module')
def shown(demo, directions):
    """The Latents that ADDRESS shows."""
    first, second = demo.w_of([3, 8], psi=0.7)
    return edited(demo.latents(first.lerp(second, 0.25)[None], 0.7), EDITS.items(), directions)


@pytest.fixture(scope='module')
def window(tmp_path_factory, demo, directions):
    """The page of the demo model in Chromium; `log` there holds all events."""
    if not (ONNXRUNTIME_WEB / 'dist' / RUNTIME[0]).exists():
        pytest.skip('needs onnxruntime-web (npm install onnxruntime-web, or its folder in ONNXRUNTIME_WEB)')
    folder = tmp_path_factory.mktemp('page') / 'site'
    file = folder.with_name('directions.pt')
    save_directions(file, directions, demo.owner)
    export_model.main(parse('export_model', '', ['--expname', 'cats_demo', '--browser', str(folder), '--directions',
                                                 str(file), '--onnxruntime_web', str(ONNXRUNTIME_WEB)]))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Server, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}/'
    with browser_page(address, 900, 700) as page:
        page.add_init_script(LOG)
        page.goto(address + ADDRESS)
        wait(page, "log.some(one => one.kind === 'image')")
        yield page
    server.shutdown()


def wait(page, condition):
    page.wait_for_function(condition, timeout=120_000)


def picture(page):
    """What the canvas of the picture holds, as (H,W,3) uint8."""
    side, values = page.evaluate('''() => {
        const canvas = document.querySelector('#picture canvas'), {width} = canvas;
        return [width, Array.from(canvas.getContext('2d').getImageData(0, 0, width, width).data)];
    }''')
    return np.array(values, dtype=np.uint8).reshape(side, side, 4)[..., :3]


@pytest.fixture(scope='module')
def assert_shown(window, demo):
    """assert_shown(latents, azimuth, elevation): of the same by PyTorch, from every sample of every ray."""
    def compare(latents, azimuth, elevation):
        found, expected = picture(window), demo.picture(latents, demo.cameras([[azimuth, elevation]]))
        assert found.shape == expected.shape and expected.std() > 20
        assert np.abs(found.astype(int) - expected).max() <= 1
    return compare


def test_the_page_shows_what_python_computes(window, shown, assert_shown):
    assert_shown(shown, 20., -5.)

    window.evaluate('log.length = 0')  # then from another side, by keyboard and by dragging
    stage = window.locator('#picture .stage')
    stage.focus()
    window.keyboard.press('Home')
    wait(window, "log.some(one => one.kind === 'image')")
    assert_shown(shown, 0., 0.)
    box = stage.bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    window.mouse.move(x, y)
    window.mouse.down()
    window.mouse.move(x - box['width'] / 12, y)
    wait(window, "log.some(one => one.kind === 'moving')")  # however long this machine takes for a first picture
    window.mouse.move(x - box['width'] / 6, y)  # 60 degrees are a whole width: 10 in all
    window.mouse.up()
    wait(window, "log.findLast(one => one.kind === 'image') && log.at(-1).kind !== 'moving'")
    assert window.locator('#view').inner_text() == 'azimuth 10°, elevation 0°'
    wait(window, "log.filter(one => one.kind === 'image').length === 2")
    assert_shown(shown, 10., 0.)


def test_the_mesh_is_the_surface(window, demo, shown):
    """Its vertices lie where the field is zero, it is closed but for its rim, and the file opens elsewhere."""
    wait(window, 'log.some(one => one.stride === 1)')
    window.get_by_role('checkbox', name='in color').check()
    with window.expect_download(timeout=60_000) as saved:
        window.get_by_role('button', name='Save GLB').click()
    data = Path(saved.value.path()).read_bytes()
    mesh = trimesh.load_mesh(io.BytesIO(data), file_type='glb', process=False, skip_materials=True)
    assert len(mesh.faces) > 20_000 and mesh.visual.kind == 'vertex'
    renderer, camera = demo.generator.renderer, demo.cameras([[0., 0.]])
    vertices = torch.from_numpy(np.array(mesh.vertices)).float()
    normals = torch.from_numpy(np.array(mesh.vertex_normals)).float()
    with torch.no_grad():
        distance = renderer.sdf_at(renderer.field(shown.w), vertices, camera)
        before, behind = (renderer.sdf_at(renderer.field(shown.w), vertices + step * 0.002 * normals, camera)
                          for step in (1, -1))
    steepness = (before - behind).abs().median() / 0.004
    assert (distance.abs() / steepness).quantile(0.99) < 0.1 * 0.24 / 128  # a tenth of a cell
    assert (before > behind).float().mean() > 0.99, 'normals do not point outward'
    assert np.asarray(mesh.visual.vertex_colors)[:, :3].std() > 10

    window.evaluate('log.length = 0')
    window.locator('#seed').fill('7')
    window.locator('#seed').press('Enter')
    save = window.get_by_role('button', name='Save GLB')
    assert save.is_disabled()  # the surface is still that of the last seed
    wait(window, 'log.some(one => one.stride !== undefined)')
    with window.expect_download(timeout=60_000) as saved:
        save.click()
    assert saved.value.suggested_filename.endswith('_seed7.glb')


OPEN = '''async address => {  // and return what the page shows as soon as it has noticed
    const changed = new Promise(resolve => addEventListener('hashchange', resolve, {once: true}));
    log.length = 0;
    location.hash = address;
    await changed;
    const element = id => document.getElementById(id);
    return {...Object.fromEntries(['seed', 'other', 'mix', 'azimuth'].map(id => [id, Number(element(id).value)])),
        edits: Object.fromEntries(Array.from(element('directions').querySelectorAll('input'),
            input => [input.name, Number(input.value)])),
        dimmed: Number(element('surface').querySelector('.stage').style.opacity) < 1,
        savable: !element('save-glb').disabled};
}'''


def test_a_link_in_the_open_page_leads_where_it_leads_in_a_new_one(window, demo, directions, assert_shown):
    none = dict.fromkeys(NAMES, 0)

    def open_link(address):
        found = window.evaluate(OPEN, address)
        wait(window, "log.some(one => one.kind === 'image')")
        return found

    open_link('#seed=4&azimuth=20&edit-shape1=1.5&edit-mix=1')
    wait(window, 'log.some(one => one.stride === 1)')
    window.locator('#seed').focus()  # whoever writes in the address bar may have written here before
    address = '#seed=5&truncation=0.7&edit-color1=2'
    assert open_link(address) == {'seed': 5, 'other': 8, 'mix': 0, 'azimuth': 0, 'edits': {**none, 'color1': 2},
                                  'dimmed': True, 'savable': False}
    latents = edited(demo.latents(demo.w_of([5], psi=0.7), 0.7), [('color1', 2)], directions)
    assert_shown(latents, 0., 0.)
    assert window.evaluate('location.hash') == address

    open_link('#seed=6&mix=0.5')
    window.get_by_role('button', name='Walk').click()
    walked = open_link('#seed=7&other=0&mix=0.5&azimuth=-20&edit-mix=-1')
    assert walked | {'edits': None} == {'seed': 7, 'other': 0, 'mix': 0.5, 'azimuth': -20, 'edits': None,
                                        'dimmed': True, 'savable': False}
    assert walked['edits'] == {**none, 'mix': -1}
    address = '#seed=7&other=0&mix=0.5&truncation=0.7&azimuth=-20&edit-mix=-1'
    assert window.evaluate('location.hash') == address

    still = open_link('#seed')  # Skip to the controls: no link, but a place of the page
    assert {**still, 'dimmed': True, 'savable': False} == walked  # the surface may have come meanwhile
    assert window.evaluate('location.hash') == address


@pytest.mark.parametrize('scheme, dark', [('light', False), ('dark', True)])
def test_phone_dark_mode_and_keyboard(window, scheme, dark):
    window.set_viewport_size({'width': 390, 'height': 844})
    window.emulate_media(color_scheme=scheme)
    assert window.evaluate('document.documentElement.scrollWidth') <= 390
    places = [window.locator(name).bounding_box()['y'] for name in ('#picture', '.controls', '#surface')]
    assert places == sorted(places)
    window.evaluate('scrollTo(0, 0)')  # to the head of the page
    screen = np.asarray(Image.open(io.BytesIO(window.screenshot())).convert('L'), dtype=float)
    assert (np.median(screen[:60]) < 80) == dark
    window.locator('body').click(position={'x': 2, 'y': 2})
    reached = set()
    for _ in range(30):
        window.keyboard.press('Tab')
        reached.add(window.evaluate('document.activeElement.id || document.activeElement.className'))
    assert {'stage', 'seed', 'another', 'truncation', 'mix', 'azimuth', 'save-glb', 'painted'} <= reached
