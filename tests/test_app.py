"""app.py: the functions of its page, and the page in a browser."""
import io
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from browser import browser_page
from conftest import ROOT
from PIL import Image
from tiny_model import frames_of, save_tiny_model, z_of

import app
import options
from utils import UserError
from web.explorer import AROUND, build, w_between
from web.own_photo import UPLOAD_BYTES, uploaded

IDENTITY = (3, 8, 0.5, 0.7)  # seed, second seed, mix, truncation


@pytest.fixture
def model(loaded_tiny):
    return loaded_tiny


@pytest.fixture
def api(model):
    """The page's functions by name."""
    pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    return {function.api_name: function.fn for function in build(model).fns.values()}


def test_latents_between_two_seeds(model):
    first, last = model.w_of([3], 0.7), model.w_of([8], 0.7)
    assert torch.equal(w_between(model, 3, 8, 0, 0.7), first)
    assert torch.allclose(w_between(model, 3, 8, 1, 0.7), last)
    assert torch.allclose(w_between(model, 3, 8, 0.25, 0.7), 0.75 * first + 0.25 * last)
    assert torch.allclose(model.w_of([3], 0.), model.means.w)
    with torch.no_grad():
        assert torch.allclose(model.w_of([3], 1.), model.generator.style(z_of(3)))


# ---------------------------------------------------------------------------------------------- the page's functions

def test_files_last_as_long_as_the_request(api, tmp_path):
    request = api['mesh'](*IDENTITY)
    html, path = next(request)
    assert html.startswith('<iframe') and len(trimesh.load_mesh(path).faces) > 100
    assert next(request, None) is None and not Path(path).exists()
    request = api['video'](*IDENTITY, AROUND, 4, True)
    *_, last = itertools.islice(request, 4)  # between frames there is nothing to show yet
    assert len(frames_of(last)) == 4
    request.close()  # the browser has the file
    assert not list((tmp_path / 'temporary').glob('stylesdf-*'))


def test_a_photo_is_found_turned_and_kept_as_a_file(api, model, tmp_path, monkeypatch, quick_inversion):
    for name, value in (('STEPS', 4), ('TUNE_STEPS', 3), ('SHOWN_EVERY', 2)):
        monkeypatch.setattr(f'web.own_photo.{name}', value)
    Image.fromarray(model.picture(model.w_of([3], 0.7), model.cameras([[5., 0.]]), 0.7)).save('photo.png')
    *on_the_way, last = api['find']('photo.png', True)
    saved, picture, line = last
    assert not Path('photo.png').exists() and len(on_the_way) > 2 and 'dB' in line
    assert picture.shape == (16, 16, 3) and saved.tuned
    still = [0.] * 6
    front, turned, moved = (api['turn'](saved, azimuth, 0., *amounts)
                            for azimuth, amounts in ((0., still), (30., still), (0., [3., *still[1:]])))
    assert (front != turned).any() and (front != moved).any()
    request = api['photo_latents'](saved, *still)
    assert torch.equal(model.read(next(request)).latents.w, saved.latents.w)
    request.close()
    request = api['photo_mesh'](saved, *still)
    assert len(trimesh.load_mesh(next(request)).faces) > 100
    request.close()
    assert not list((tmp_path / 'temporary').glob('stylesdf-*'))


def test_a_wrong_upload_is_refused_and_removed(api, tmp_path):
    gradio = pytest.importorskip('gradio')
    Image.new('1', (9000, 9000)).save('large.png')
    Path('text.png').write_text('no image')
    Image.new('1', (900, 9)).save('strip.png')
    for name, message in (('large.png', 'million pixels'), ('text.png', 'cannot be read'),
                          ('strip.png', '^Photo: it is a strip of 900x9 pixels.$'),
                          ('none.png', 'upload it again')):
        with pytest.raises(ValueError, match=message):
            uploaded(name)
        assert not Path(name).exists()
    with pytest.raises(gradio.Error, match='find it first'):
        next(api['photo_mesh'](None, *[0.] * 6))


def test_a_video_that_nobody_waits_for_ends(api, model, tmp_path, monkeypatch):
    """Gradio closes the request where the viewer has left; what it was at must stop and go."""
    rendered, render = [], model.generator.render
    monkeypatch.setattr(type(model.generator), 'render', lambda self, *arguments, **wanted: (
        rendered.append(1), render(*arguments, **wanted))[1])
    monkeypatch.setattr('inference.parallel.two_at_once', lambda *_: False)  # else the next frames are made meanwhile
    request = api['video'](*IDENTITY, AROUND, 100, False)
    next(request)
    request.close()
    assert len(rendered) == 1 and not list((tmp_path / 'temporary').glob('stylesdf-*'))


def test_a_failed_request_leaves_nothing(api, model, tmp_path):
    gradio = pytest.importorskip('gradio')
    model.generator.renderer.network.sigma_linear.bias += 100  # no surface anywhere
    with pytest.raises(gradio.Error, match='no surface'):
        next(api['mesh'](*IDENTITY))
    assert not list((tmp_path / 'temporary').glob('stylesdf-*'))


def test_every_field_is_checked(model):
    """Whatever comes in through the page or the API; the refusal says which field, and prints no traceback."""
    gradio = pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    fields = [field for function in build(model).fns.values() for field in function.inputs
              if not isinstance(field, gradio.State)]
    for value in (None, '', 'text', '3', math.nan, math.inf, True, [], {}, [1], -100, 10 ** 12, b'1'):
        checked = set()
        for field in fields:
            if not (value is True and isinstance(field, gradio.Checkbox)):
                with pytest.raises(gradio.Error, match=re.escape(field.label.split(' ')[0])[1:]) as refused:
                    field.preprocess(value)
                assert not refused.value.print_exception, value
                checked.add(field.label)
        assert len(checked) >= 9, value


def test_a_walk_needs_its_second_seed(model):
    """With that field empty it ended in an error without a text."""
    gradio = pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    video = next(function for function in build(model).fns.values() if function.api_name == 'video')
    with pytest.raises(gradio.Error, match='Second seed: give a whole number'):
        video.inputs[1].preprocess(None)


def test_without_gradio(model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match='pip install -r requirements-app.txt'):
        app.main(options.parse('app', '', ['--expname', 'tiny']))


def test_a_port_in_use(model, monkeypatch, tmp_path):
    pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        for name in ('GRADIO_TEMP_DIR', 'NO_PROXY', 'no_proxy'):
            monkeypatch.setenv(name, '')
        with pytest.raises(UserError, match=f'--port {port} cannot be used'):
            app.main(options.parse('app', '', ['--expname', 'tiny', '--port', str(port)]))
    assert not list((tmp_path / 'temporary').glob('stylesdf-*'))


@pytest.mark.parametrize('proxy, except_for', [('http://127.0.0.1:9', ''), ('http://127.0.0.1:9', 'example.org'),
                                               ('nonsense://127.0.0.1:9', '')])
def test_behind_a_proxy(model, monkeypatch, tmp_path, capsys, proxy, except_for):
    """Gradio asks for its own page, which no proxy can reach; a malformed proxy stops it nevertheless."""
    pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    for name, value in (('GRADIO_TEMP_DIR', ''), ('NO_PROXY', except_for), ('no_proxy', ''), ('HTTP_PROXY', proxy),
                        ('http_proxy', proxy)):
        monkeypatch.setenv(name, value)
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]

    class Event(threading.Event):
        def wait(self, timeout=None):  # main waits for ever
            if threading.current_thread() is threading.main_thread() and timeout is None:
                raise KeyboardInterrupt
            return super().wait(timeout)

    started = proxy.startswith('http:')
    monkeypatch.setattr(app, 'threading', types.SimpleNamespace(Event=Event))
    with pytest.raises(KeyboardInterrupt if started else UserError) as end:
        app.main(options.parse('app', '', ['--expname', 'tiny', '--port', str(port)]))
    assert started == (f'open http://127.0.0.1:{port}' in capsys.readouterr().out)
    assert started or 'http_proxy' in str(end.value) and 'remove it' in str(end.value)
    assert os.environ['no_proxy'] == ','.join(filter(None, (except_for, '127.0.0.1', 'localhost')))


# ---------------------------------------------------------------------------------------------- in a browser

# app.py with small surfaces
SERVER = '''
import runpy, sys
from surfaces import rendering
rendering.SURFACE_RESOLUTION = 32
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
'''


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    """The address of app.py as its command serves it; stopped by SIGTERM it must leave nothing behind."""
    pytest.importorskip('gradio', reason='needs gradio (requirements-app.txt)')
    folder = tmp_path_factory.mktemp('app')
    save_tiny_model(folder)
    (folder / 'temporary').mkdir()
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, '-c', SERVER, str(ROOT / 'app.py'), '--expname', 'tiny', '--device', 'cpu', '--port',
         str(port)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(folder / 'temporary'), 'GRADIO_TEMP_DIR': '',
             'PYTHONUNBUFFERED': '1'})
    try:
        output = ''
        while not (found := re.search(r'full_models/tiny.pt on cpu: open (http://\S+)', output)):
            line = process.stdout.readline()
            assert line, output  # it ended
            output += line
        yield found[1].rstrip('/')
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 143 and 'Traceback' not in rest, rest
        assert not list((folder / 'temporary').glob('stylesdf-*'))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.fixture(scope='module')
def window(address):
    """The page in a browser; it must raise no error, and ask for nothing from outside."""
    with browser_page(address, 1280, 1200) as page:
        page.goto(address)
        page.locator('.picture img').nth(1).wait_for(timeout=60_000)
        yield page


def changed(page, picture, before=None):
    """One of the two pictures as it is shown, once it has come and differs from `before` (its address)."""
    image = page.locator('.picture').nth(picture).locator('img')
    for _ in range(120):
        source = image.get_attribute('src')
        if source != before:
            data = page.request.get(source).body()
            return source, np.asarray(Image.open(io.BytesIO(data)).convert('RGB'), dtype=float)
        page.wait_for_timeout(250)
    raise AssertionError('the picture does not change')


def test_sliders_move_the_pictures(window):
    shown = [changed(window, 0), changed(window, 1)]
    assert shown[0][1].shape == (16, 16, 3) and shown[1][1].shape == (512, 512, 3)
    for slider, value in (('Azimuth', '30'), ('Elevation', '-20'), ('Zoom', '2'), ('Truncation', '0.3'),
                          ('On the way to the second seed', '0.5')):
        window.get_by_role('slider', name=f'range slider for {slider}').fill(value)
        for i in (0, 1):
            before, shown[i] = shown[i], changed(window, i, shown[i][0])
            assert np.abs(shown[i][1] - before[1]).mean() > 0.05, slider
    window.get_by_role('button', name='Another identity').click()
    changed(window, 0, shown[0][0])
    assert int(window.get_by_label('Seed', exact=True).input_value()) > 0
    box = window.locator('.picture img').first.bounding_box()
    assert min(box['width'], box['height']) > 200, 'small pictures are not enlarged'


def test_a_mesh_turns_and_is_there_to_download(window, tmp_path):
    window.get_by_role('button', name='Surface in 3D').click()
    frame = window.locator('iframe[title="Surface in 3D"]')
    window.frame_locator('iframe[title="Surface in 3D"]').locator('canvas').wait_for(timeout=60_000)

    def drawn(until):
        for _ in range(60):
            picture = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert('RGB'), dtype=float)
            if until(picture):
                return picture
            window.wait_for_timeout(250)
        raise AssertionError('the surface in 3D is not drawn')

    front = drawn(lambda picture: picture.std() > 3)
    box = frame.bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    window.mouse.move(x, y)
    window.mouse.down()
    window.mouse.move(x + 150, y + 20, steps=4)
    window.mouse.up()
    drawn(lambda picture: picture.std() > 3 and np.abs(picture - front).mean() > 1)
    with window.expect_download() as download:
        window.get_by_role('link', name=re.compile(r'KB|MB')).click(timeout=60_000)
    download.value.save_as(tmp_path / 'mesh.glb')
    assert len(trimesh.load_mesh(tmp_path / 'mesh.glb').faces) > 100


def test_a_video_plays(window):
    window.get_by_role('slider', name='range slider for Frames').fill('10')
    window.get_by_role('button', name='Video', exact=True).click()
    window.wait_for_function("document.querySelector('video')?.readyState > 0", timeout=60_000)
    assert window.evaluate("document.querySelector('video').duration") == pytest.approx(0.5, abs=0.1)


def test_a_phone_is_wide_enough(window):
    window.set_viewport_size({'width': 390, 'height': 844})
    time.sleep(0.5)
    assert window.evaluate('document.documentElement.scrollWidth') <= 390


def test_values_from_outside_are_checked(address):
    """Over HTTP; the fixture sees to it that no traceback was printed."""
    client = pytest.importorskip('gradio_client').Client(address, verbose=False, analytics_enabled=False)
    with pytest.raises(Exception, match='Azimuth'):
        client.predict(0, 1, 0., 0.7, 1000., 0., 1., api_name='/picture')
    with pytest.raises(Exception, match='Seed'):
        client.predict('x', 1, 0., 0.7, 0., 0., 1., api_name='/picture')
    with pytest.raises(Exception, match='Frames'):
        client.predict(0, 1, 0., 0.7, AROUND, 10 ** 9, False, api_name='/video')

    def called(values):
        request = urllib.request.Request(f'{address}/gradio_api/call/picture', json.dumps({'data': values}).encode(),
                                         {'Content-Type': 'application/json'})
        event = json.load(urllib.request.urlopen(request, timeout=60))['event_id']
        return urllib.request.urlopen(f'{address}/gradio_api/call/picture/{event}', timeout=60).read()

    assert b'Give 7 values, not 3' in called([0, 1, 0.])


def test_uploads_are_refused(address):
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    body = head + bytes(UPLOAD_BYTES + 10_000) + b'\r\n--X--\r\n'
    request = urllib.request.Request(f'{address}/gradio_api/upload', body,
                                     {'Content-Type': 'multipart/form-data; boundary=X'})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 413
