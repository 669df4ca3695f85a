"""The page: what is in it, from results whose surfaces are known, and in a browser that the surfaces really draw."""
import base64
import gzip
import io
import json
import math
import shutil
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import trimesh
from browser import browser_page
from PIL import Image, ImageFile

import checkpoint
import generate_shapes_and_images
import render_video
from camera import cameras_at
from inference.video_files import video_writer
from model import build_generator
from options import parse
from surfaces.files import save_mesh
from surfaces.meshes import depth_mesh
from surfaces.textured_files import save_textured_glb
from utils import UserError
from volume_renderer import pixel_directions
from web import page, results_page
from web.embedding import compact_mesh, pictures_of_row

RADIUS, GRID = 0.08, 128
VIEWS = [{'azim': 0.4, 'elev': 0.1}, {'azim': -0.3, 'elev': -0.2}]


def ball_view(view):
    """Depth mesh of a ball of RADIUS before a plane at the far end, traced analytically from one camera."""
    camera = cameras_at(torch.tensor([[view['azim'], view['elev']]]), GRID)
    pixels = torch.arange(GRID, dtype=torch.float32)
    local = pixel_directions(pixels[:, None], pixels, GRID, camera.focal)[0]
    direction = local @ camera.extrinsics[0, :, :3].T
    origin = camera.extrinsics[0, :, 3]
    a, b, c = direction.square().sum(-1), direction @ origin, origin @ origin - RADIUS ** 2
    root = b ** 2 - a * c
    t = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, camera.far[0])
    return depth_mesh((origin + direction * t[..., None]).permute(2, 0, 1))


def colors(size, shift):
    """A smooth picture, different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    return (255 * np.stack([x, y, np.full_like(x, shift)], axis=-1)).round().astype(np.uint8)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """A model's folder of results as the two commands leave it: a ball, two views, one video."""
    root = tmp_path_factory.mktemp('evaluations') / 'a <b> & "c"' / 'final_model'
    folder = root / 'random_angles'
    files = ['images/0000000.png', 'images/0000000_thumb.png', 'depth_map_meshes/sample_0_depth_mesh_azim22_elev5.obj',
             'marching_cubes_meshes/sample_0_marching_cubes_mesh_azim22_elev5.obj',
             'depth_map_meshes/sample_0_depth_mesh_azim-17_elev-11.obj']
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, size in zip(files, (256, 64), strict=False):
        Image.fromarray(np.concatenate([colors(size, 0.2), colors(size, 0.8)], axis=1)).save(folder / name)
    ball_view(VIEWS[0]).export(folder / files[2])
    trimesh.creation.icosphere(6, RADIUS).export(folder / files[3])  # 81920 triangles
    ball_view(VIEWS[1]).export(folder / files[4])
    (folder / 'index.json').write_text(json.dumps({'results': {'0000000': {
        'seed': 1234, 'truncation_ratio': 0.5, 'fov': 6., 'dist_radius': 0.12, 'views': VIEWS, 'files': files}}}))
    with video_writer(root / 'videos' / 'sample_video_0_elipsoid.mp4', fps=10) as add:
        for shift in np.linspace(0, 1, 10):
            add(colors(64, shift))
    results_page.write_page(root)
    return root


class Tags(HTMLParser):
    """Every tag's attributes, and the text of the scripts by id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self._id = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._id = dict(attributes).get('id') if tag == 'script' else None

    def handle_endtag(self, tag):
        self._id = None

    def handle_data(self, data):
        if self._id:
            self.scripts[self._id] = self.scripts.get(self._id, '') + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope='module')
def html(results):
    return Tags((results / 'index.html').read_text(encoding='utf-8'))


# ---------------------------------------------------------------------------------------------- what is in the page

def test_everything_is_inside_and_links_lead_to_files(html, results):
    for tag, attributes in html.tags:
        source = attributes.get('src')
        assert source is None or source.startswith('data:'), f'{tag} {source[:80]}'
        link = attributes.get('href')
        if link and not link.startswith('#'):
            assert (results / link).is_file(), link
    assert not html.all('link')
    assert {'random_angles/images/0000000.png', 'random_angles/images/0000000_thumb.png',
            'videos/sample_video_0_elipsoid.mp4'} <= {attributes['href'] for attributes in html.all('a')}


def test_what_screen_readers_need(html):
    ids = [attributes['id'] for _, attributes in html.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    alts = [attributes['alt'] for attributes in html.all('img')]
    assert len(alts) == 6 and all(alts) and len(set(alts)) == 6
    assert 'Identity 0, image: azimuth 22.9°, elevation 5.7°' in alts
    assert any('depth' in alt and 'azimuth \N{MINUS SIGN}17.2°' in alt for alt in alts)
    assert html.all('html')[0]['lang'] and html.all('video')[0]['aria-label'] and html.all('model-viewer')[0]['alt']
    for tag, attributes in html.tags:
        for name in attributes.get('aria-labelledby', '').split():
            assert name in ids, f'{tag} is labeled by {name}'


def test_the_surface_of_the_picture_comes_first_and_videos_show_a_frame(html):
    """As the picture shows it, wearing it; a video has its first frame to show before it plays."""
    first, *_ = html.all('option')
    assert first['data-orbit'].startswith('22.92deg') and first['data-picture'] == 'random_angles-0000000-0'
    poster, = (video['poster'] for video in html.all('video'))
    image = Image.open(io.BytesIO(base64.b64decode(poster.partition(',')[2]))).convert('RGB')
    assert np.abs(np.asarray(image).astype(int) - colors(64, 0)).mean() < 6


def test_sizes_of_files():
    assert [results_page.file_size(size) for size in (0, 400, 49_000, 1_940_000)] == ['1 KB', '1 KB', '49 KB', '1.9 MB']


def test_small_pictures_are_not_blown_up(html):
    widths = [article['style'] for article in html.all('article')]
    assert widths == ['--width: 640px', '--width: 480px']  # pictures of 256 pixels, and a video


def test_names_are_escaped(results, html):
    text = (results / 'index.html').read_text(encoding='utf-8')
    assert '<h1>a &lt;b&gt; &amp; &#34;c&#34;</h1>' in text and not html.all('b')


def glb_of(html, name):
    data = gzip.decompress(base64.b64decode(html.scripts[name]))
    return trimesh.load_mesh(io.BytesIO(data), file_type='glb', process=False)


def glb_normals(glb):
    """The normals in a GLB file of one mesh, which trimesh would compute anew (glTF 2.0, GLB file format)."""
    length = int.from_bytes(glb[12:16], 'little')
    tree = json.loads(glb[20:20 + length])
    accessor = tree['accessors'][tree['meshes'][0]['primitives'][0]['attributes']['NORMAL']]
    offset = tree['bufferViews'][accessor['bufferView']]['byteOffset']
    return np.frombuffer(glb[28 + length:], '<f4', 3 * accessor['count'], offset).reshape(-1, 3)


def test_meshes_are_reduced_but_true(html):
    meshes = [glb_of(html, option['value']) for option in html.all('option')]
    assert len(meshes) == 3
    for mesh in meshes:
        assert 0.9 * results_page.TRIANGLES < len(mesh.faces) <= results_page.TRIANGLES
    ball = meshes[2]  # after the depth meshes, which wear their pictures
    distance = np.linalg.norm(ball.vertices, axis=1)
    assert np.abs(distance - RADIUS).max() < 0.1 * 0.21 / GRID  # a tenth of a pixel
    assert ball.volume == pytest.approx(4 / 3 * math.pi * RADIUS ** 3, rel=2e-3)
    normals = glb_normals(gzip.decompress(base64.b64decode(html.scripts['mesh-2'])))
    outward = np.einsum('ij,ij->i', normals, ball.vertices / distance[:, None])
    assert (outward / np.linalg.norm(normals, axis=1)).min() > math.cos(math.radians(2))
    assert html.all('option')[2]['data-shown'] == f'{results_page.TRIANGLES:,}'
    assert html.all('option')[2]['data-size'].startswith('81,920 triangles')


def test_depth_pictures_have_the_balls_depth(html):
    depth = next(attributes for attributes in html.all('img') if 'depth' in attributes['alt'])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(depth['src'].partition(',')[2]))).convert('L')) / 255.
    nearest = (1.12 - (1 - RADIUS)) / 0.24
    assert image[128, 128] == pytest.approx(nearest, abs=0.02) and image[4, 4] < 0.02


def test_vertex_colors_are_kept():
    ball = trimesh.creation.icosphere(5, RADIUS)  # 20480 triangles
    red = np.where(ball.vertices[:, 0] > 0, 255, 0)
    ball.visual.vertex_colors = np.stack([red, 0 * red, 255 - red, 0 * red + 255], axis=1)
    small = compact_mesh(ball, 4000)
    mesh = trimesh.load_mesh(io.BytesIO(gzip.decompress(base64.b64decode(small))), file_type='glb', process=False,
                             skip_materials=True)
    assert len(mesh.faces) <= 4000
    away = np.abs(mesh.vertices[:, 0]) > 0.01
    expected = np.where(mesh.vertices[away, 0] > 0, 255, 0)
    assert (mesh.visual.vertex_colors[away, 0] == expected).all()


@pytest.mark.parametrize('room', [results_page.ALL_TEXTURED_BYTES, 100])
def test_the_mesh_that_wears_its_picture_comes_first(tmp_path, monkeypatch, room):
    """While there is room for it."""
    monkeypatch.setattr(results_page, 'ALL_TEXTURED_BYTES', room)
    ball = trimesh.creation.icosphere(2, RADIUS)
    ball.visual = trimesh.visual.TextureVisuals(
        uv=ball.vertices[:, :2] / RADIUS / 2 + 0.5,
        material=trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(colors(64, 0.2))))
    name = 'textured_meshes/sample_0_textured_mesh_azim22_elev5.glb'
    other = 'marching_cubes_meshes/sample_0_marching_cubes_mesh_azim22_elev5.obj'
    save_textured_glb(tmp_path / 'random_angles' / name, ball)
    save_mesh(tmp_path / 'random_angles' / other, ball)
    entry = {'seed': 1234, 'truncation_ratio': 0.5, 'fov': 6., 'dist_radius': 0.12, 'views': VIEWS}
    (tmp_path / 'random_angles/index.json').write_text(json.dumps({'results': {
        '0000000': entry | {'files': [other, name]}}}))
    tags = Tags(results_page.write_page(tmp_path).read_text())
    first, *more = tags.all('option')
    assert len(more) == (room > 100)
    assert (first['data-file'] == f'random_angles/{name}') == (room > 100)
    if room > 100:
        assert first['data-orbit'].startswith('22.92deg') and first['data-file'].endswith('.glb')
        glb = gzip.decompress(base64.b64decode(tags.scripts[first['value']]))
        mesh = trimesh.load(io.BytesIO(glb), file_type='glb', force='mesh', process=False)
        assert np.allclose(mesh.vertices, ball.vertices, atol=1e-4) and len(mesh.visual.uv) == len(ball.vertices)
        shown = np.asarray(mesh.visual.material.baseColorTexture.convert('RGB')).astype(int)
        assert np.abs(shown - colors(64, 0.2)).mean() < 3


def test_pages_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(results_page, 'VIDEO_BYTES', 2000)
    monkeypatch.setattr(results_page, 'RESULTS', 3)
    for i in range(5):
        path = tmp_path / 'videos' / f'sample_video_seed{i}_azim.mp4'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000 if i < 2 else 3000))
    tags = Tags(results_page.write_page(tmp_path).read_text())
    assert [('data-video' in video, video.get('src')) for video in tags.all('video')] == [
        (True, None), (True, None), (False, 'videos/sample_video_seed2_azim.mp4')]
    assert '2 more are in the folder' in (tmp_path / 'index.html').read_text()
    assert not tags.all('model-viewer') and (tmp_path / 'index.html').stat().st_size < 100_000


def test_other_kinds_of_videos(tmp_path):
    videos = tmp_path / 'videos'
    for kind in ('gif', 'webp', 'frames'):
        with video_writer(videos / f'sample_video_{kind}_azim{"" if kind == "frames" else "." + kind}', kind) as add:
            add(colors(16, 0))
            add(colors(16, 1))
    (videos / 'sample_video_walk_3_8_azim.mp4').write_bytes(b'')
    text = results_page.write_page(tmp_path).read_text()
    assert 'src="data:image/gif;base64,' in text and 'src="data:image/webp;base64,' in text
    assert 'src="videos/sample_video_frames_azim/00000.png"' in text and '2 frames' in text
    assert 'Walk through seeds 3 8' in text


# ---------------------------------------------------------------------------------------------- commands, bad input

def test_both_commands_write_the_page(tmp_path, monkeypatch, command):
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    tiny = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
            '--channel_max', '16', '--renderer_spatial_output_dim', '8', '--truncation_mean', '50', '--device', 'cpu',
            '--expname', 'tiny', '--identities', '1', '--page']
    torch.manual_seed(0)
    state = build_generator(parse('generate_shapes_and_images', '', tiny)).state_dict()
    checkpoint.save('full_models/tiny.pt', {'g_ema': state})
    for module, extra in ((generate_shapes_and_images, ['--N_samples', '4']), (render_video, ['--frames', '2'])):
        code, out, _ = command(module, *tiny, *extra)
        assert code == 0 and 'Page: evaluations/tiny/final_model/index.html' in out
    tags = Tags((tmp_path / 'evaluations/tiny/final_model/index.html').read_text())
    assert len(tags.all('option')) >= 1 and len(tags.all('video')) >= 1


def damage_mesh(root):
    next(root.glob('random_angles/marching*/*.obj')).write_text('v nonsense\nf 1 2 9\n')


def damage_picture(root):
    (root / 'random_angles/images/0000000.png').write_bytes(b'PNG')


def damage_index(root):
    (root / 'random_angles/index.json').write_text('{"results": {"0000000": {"files": []}}}')


@pytest.mark.parametrize('damage, named', [(damage_mesh, 'sample_0_marching'), (damage_picture, 'images/0000000.png'),
                                           (damage_index, 'random_angles')])
def test_damaged_results_are_named(results, tmp_path, damage, named):
    root = shutil.copytree(results, tmp_path / 'copy')
    before = (root / 'index.html').read_bytes()
    damage(root)
    with pytest.raises(UserError, match=named):
        results_page.write_page(root)
    assert (root / 'index.html').read_bytes() == before


def outside_mesh(root):
    index = root / 'random_angles/index.json'
    index.write_text(index.read_text().replace('marching_cubes_meshes/', 'marching_cubes_meshes/../../../'))


def no_views(root):
    index = json.loads((root / 'random_angles/index.json').read_text())
    index['results']['0000000']['views'] = []
    (root / 'random_angles/index.json').write_text(json.dumps(index))


def many_views(root):
    index = json.loads((root / 'random_angles/index.json').read_text())
    index['results']['0000000']['views'] = VIEWS * 1000  # more than the row has columns
    (root / 'random_angles/index.json').write_text(json.dumps(index))


def test_rows_of_pictures_may_be_large_but_not_huge(tmp_path, monkeypatch):
    """Pillow's own limit, at which it warns, is below the rows that generation writes."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / 'a.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(pictures_of_row(tmp_path / 'a.png', 2)) == 2
    monkeypatch.setattr('web.embedding.MOST_PIXELS', 199)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda image: pytest.fail('it was unpacked'))
    with pytest.raises(ValueError, match='it has more than'):
        pictures_of_row(tmp_path / 'a.png', 2)


@pytest.mark.parametrize('damage, named', [(outside_mesh, 'lies outside'), (no_views, 'has no views'),
                                           (many_views, 'not a row of 2000 pictures')])
def test_results_that_cannot_be_shown_end_in_one_sentence(results, tmp_path, damage, named):
    root = shutil.copytree(results, tmp_path / 'copy')
    damage(root)
    with pytest.raises(UserError, match=named):
        results_page.write_page(root)


def test_a_folder_without_results(tmp_path, command):
    code, _, error = command(page, tmp_path)
    assert code == 2 and 'holds no results' in error and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- in a browser

@pytest.fixture(scope='module')
def window(results):
    """The page in a browser that has no network; it must raise no error, and ask for nothing from outside."""
    with browser_page('file:', 400, 500, offline=True) as page:  # small, because software draws it
        page.goto((results / 'index.html').as_uri())
        page.evaluate("document.querySelector('model-viewer').scrollIntoView()")  # it loads what is in view
        page.wait_for_function("document.querySelector('model-viewer').loaded", timeout=60_000)
        yield page


def drawn(window, until):
    """The 3D view as floats (H,W,3), once `until` (a function of it) holds; software rendering takes its time."""
    for _ in range(60):
        picture = Image.open(io.BytesIO(window.locator('model-viewer').first.screenshot())).convert('RGB')
        picture = np.asarray(picture, dtype=float)
        if until(picture):
            return picture
        window.wait_for_timeout(250)
    raise AssertionError('the 3D view does not draw what it should')


def stage(picture):
    """Which pixels show the view's background."""
    return np.abs(picture - picture[6, 6]).max(axis=-1) < 8


def test_the_surface_is_drawn_and_turns(window):
    window.get_by_role('combobox', name='Surface').select_option(index=2)
    picture = drawn(window, lambda picture: 0.1 < stage(picture).mean() < 0.9)
    covered = 1 - stage(picture).mean()
    seen = math.tan(math.asin(RADIUS)) / math.tan(math.radians(6))  # the ball's radius, of half the picture's side
    assert covered == pytest.approx(math.pi / 4 * seen ** 2, rel=0.03)
    assert picture[~stage(picture)].std() > 5, 'the ball is not shaded'

    window.get_by_role('combobox', name='Surface').select_option(index=0)
    image = np.asarray(Image.fromarray(colors(256, 0.2)).resize(picture.shape[1::-1]), dtype=float)
    inner = (slice(8, -8), slice(8, -8))
    # From where it was rendered, a depth mesh with its picture looks like the picture: camera, scale and place agree.
    front = drawn(window, lambda view: np.abs(view - image)[inner].mean() < 4)
    window.get_by_role('combobox', name='Surface').focus()
    window.keyboard.press('Shift+Tab')
    window.keyboard.press('ArrowRight')
    drawn(window, lambda view: np.abs(view - front)[inner].mean() > 8)
    window.get_by_role('checkbox', name='with its picture').uncheck()
    drawn(window, lambda view: np.ptp(view[inner], axis=-1).mean() < 25)  # gray


def test_videos_play_and_all_is_reached_from_the_keyboard(window):
    window.wait_for_function("document.querySelector('video').readyState > 0")
    assert window.evaluate("document.querySelector('video').videoWidth") == 64
    reached = set()
    for _ in range(30):
        window.keyboard.press('Tab')
        reached.add(window.evaluate('document.activeElement.tagName'))
    assert {'A', 'MODEL-VIEWER', 'SELECT', 'VIDEO'} <= reached


@pytest.mark.parametrize('scheme, dark', [('light', False), ('dark', True)])
def test_phone_and_dark_mode(window, scheme, dark):
    window.set_viewport_size({'width': 390, 'height': 844})
    window.emulate_media(color_scheme=scheme)
    assert window.evaluate('document.documentElement.scrollWidth') <= 390
    picture = np.asarray(Image.open(io.BytesIO(window.screenshot())).convert('L'), dtype=float)
    assert (np.median(picture) < 80) == dark
    # WCAG's contrast of text on its background, at least 4.5.
    for selector in ('body', '.quiet', 'a[href^=random]', 'figcaption', 'select'):
        ratio = window.evaluate('''selector => {
            const element = [...document.querySelectorAll(selector)].at(-1), numbers = text => text.match(/[\\d.]+/g);
            const light = text => numbers(text).slice(0, 3).map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            let behind = element;
            while (numbers(getComputedStyle(behind).backgroundColor)[3] === '0') behind = behind.parentElement;
            const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }''', selector)
        assert ratio >= 4.5, selector


def test_a_browser_without_webgl_says_so_and_links_the_meshes(window, results):
    page = window.context.browser.new_page()
    page.add_init_script('HTMLCanvasElement.prototype.getContext = () => null')
    page.goto((results / 'index.html').as_uri())
    page.get_by_role('combobox', name='Surface').select_option(index=1)
    note = page.locator('.note').first
    playwright = pytest.importorskip('playwright.sync_api')
    playwright.expect(note).to_contain_text('no WebGL')
    link = note.get_by_role('link', name='Full mesh (32,258 triangles')
    assert (results / link.get_attribute('href')).name == 'sample_0_depth_mesh_azim-17_elev-11.obj'
    page.close()
