"""The page of results: one self-contained index.html with a model's pictures, videos and surfaces in 3D.

It needs no network and no server: pictures, reduced meshes and the viewer (model-viewer/) are inside it; full meshes,
full pictures and long videos are linked. results_page.html is its template.
"""
import base64
import math
from pathlib import Path

import jinja2
import torch
from tqdm import tqdm

from camera import cameras_at
from inference import results
from surfaces.files import load_mesh
from utils import UserError, atomic_path
from web.embedding import (
    PLASTER,
    compact_mesh,
    compact_textured,
    depth_picture,
    first_frame,
    opened_picture,
    picture_uri,
    pictures_of_row,
)

HERE = Path(__file__).resolve().parent
VIEWER = HERE / 'model-viewer' / 'model-viewer.min.js'

TITLES = {'inversions': 'Photos and what was found of them', 'random_angles': 'Random views',
          'fixed_angles': 'Fixed views', 'chosen_angles': 'Chosen views', 'videos': 'Videos',
          'videos/with_noise_projection': 'Videos with noise on the surface'}
VIDEO_TITLES = {'video': 'image', 'depth_video': 'surface', 'side_by_side_video': 'image and surface'}

# What a page holds at most, so that a phone can open it.
RESULTS = 64                     # identities of a section
TRIANGLES, ALL_TRIANGLES = 16_000, 1_600_000  # of one mesh, of all
FEWEST_TRIANGLES = 1_000         # of one mesh, however many there are
SMALLEST_WIDTH, LARGEST_WIDTH, VIDEO_WIDTH = 288, 640, 480  # CSS pixels of a view
ENLARGED = 4                     # times that a small picture is enlarged
VIDEO_BYTES, ALL_VIDEO_BYTES = 4 << 20, 24 << 20  # of one video (or mesh with a texture) inside the page, of all videos
ALL_TEXTURED_BYTES = 16 << 20    # of all meshes with textures


class Budget:
    """The bytes of video that still fit into the page."""

    def __init__(self, size):
        self.left = size

    def takes(self, size):
        """Whether a file of this size goes into the page; if so, it is counted."""
        fits = size <= min(VIDEO_BYTES, self.left)
        self.left -= size * fits
        return fits


# ---------------------------------------------------------------------------------------------- generated identities

def degrees(radians):
    """An angle as the page writes it, to a tenth of a degree."""
    text = f'{math.degrees(radians):.1f}'.removesuffix('.0')
    return f'{"0" if text == "-0" else text}°'.replace('-', '\N{MINUS SIGN}')


def file_size(size):
    """A number of bytes as the page writes it."""
    return f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{max(1, round(size / 1e3))} KB'


def generated_entry(result, root):
    """An IdentityResult as the template shows it; its meshes are still to be read (add_meshes)."""
    views = [{'id': f'{result.folder.name}-{result.name}-{i}', 'image': None, 'thumbnail': None, 'depth': None,
              'text': f'azimuth {degrees(azimuth)}, elevation {degrees(elevation)}'}
             for i, (azimuth, elevation) in enumerate(result.views)]
    for kind, file in result.pictures.items():
        try:
            uris = pictures_of_row(file, len(views))
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            reason = ' '.join(str(error).split())
            raise UserError(f'{file} is not a row of {len(views)} pictures ({reason}); remove it, or generate it '
                            'again.') from None
        for view, uri in zip(views, uris, strict=True):
            view[kind] = uri
    cameras = cameras_at(torch.tensor(result.views), 1, result.fov, result.dist_radius)
    # The first one is shown at first: the surface of the first view, seen as its picture shows it, and wearing it.
    meshes = []
    for i, (file, (azimuth, elevation)) in enumerate(zip(result.depth_meshes, result.views, strict=True)):
        if file:
            meshes.append(mesh_entry(file, root, f'Depth, {views[i]["text"]}', view=views[i], camera=cameras[i:i + 1],
                                     orbit=(azimuth, math.pi / 2 - elevation)))
    meshes += [mesh_entry(file, root, 'Marching cubes') for file in result.marching_cubes]
    azimuth, elevation = result.views[0]
    meshes[:0] = [mesh_entry(file, root, 'Whole surface, with its picture', orbit=(azimuth, math.pi / 2 - elevation))
                  | {'textured': True} for file in result.textured]
    return {
        'name': result.title, 'width': picture_width(result),
        'text': ('' if result.by_seed else f'--seed {result.seed}, ') + f'truncation {result.truncation:g}',
        'opening': f'{2 * result.fov:g}deg',
        'views': [view for view in views if view['image'] or view['thumbnail']], 'meshes': meshes, 'videos': [],
        'links': {kind: kind in result.pictures and link_to(result.pictures[kind], root) for kind in results.PICTURES}}


def picture_width(result):
    """How wide a view is shown at most, in CSS pixels: a small picture is not blown up to a screen's width."""
    file = result.pictures.get('image') or result.pictures.get('thumbnail')
    if file is None:
        return LARGEST_WIDTH
    with opened_picture(file) as row:
        return min(LARGEST_WIDTH, max(SMALLEST_WIDTH, ENLARGED * row.height))


def link_to(path, root):
    """The address of a file, relative to the page."""
    return path.relative_to(root).as_posix()


def mesh_entry(path, root, name, view=None, camera=None, orbit=(0., math.pi / 2)):
    """A mesh as the template shows it.

    orbit: azimuth and polar angle to look from at first. view, camera: those of a depth mesh.
    """
    return {'path': path, 'name': name, 'file': link_to(path, root), 'view': view, 'camera': camera,
            'orbit': ' '.join(f'{math.degrees(angle):.2f}deg' for angle in orbit) + ' 1m'}


def add_textured(results):
    """Read the meshes with textures, which come first where they are there, while there is room for them."""
    budget = Budget(ALL_TEXTURED_BYTES)
    for result in results:
        for entry in [mesh for mesh in result['meshes'] if 'textured' in mesh]:
            glb = compact_textured(entry['path'], VIDEO_BYTES)
            if glb and budget.takes(len(glb)):
                entry |= {'glb': glb, 'size': file_size(entry['path'].stat().st_size), 'shown': '', 'draped': False,
                          'id': f'textured-{ALL_TEXTURED_BYTES - budget.left}'}
            else:
                result['meshes'].remove(entry)


def add_meshes(meshes):
    """Read the meshes that the page shows, reduced to the page's budget, and the depth pictures of their views."""
    triangles = min(TRIANGLES, max(FEWEST_TRIANGLES, ALL_TRIANGLES // max(1, len(meshes))))
    for i, entry in enumerate(tqdm(meshes, desc='page', unit='mesh')):
        mesh = load_mesh(entry['path'])
        count = len(mesh.faces)
        entry['glb'] = compact_mesh(mesh, triangles, entry['camera'])
        entry['size'] = f'{count:,} triangles, {file_size(entry["path"].stat().st_size)}'
        entry['shown'] = f'{triangles:,}' if count > triangles else ''
        entry['id'] = f'mesh-{i}'
        view = entry['view']
        entry['draped'] = bool(view and (view['image'] or view['thumbnail'])) and mesh.visual.kind != 'vertex'
        side = math.isqrt(len(mesh.vertices))
        if view and (side ** 2, 2 * (side - 1) ** 2) == (len(mesh.vertices), len(mesh.faces)):
            view['depth'] = depth_picture(mesh, entry['camera'])


# ---------------------------------------------------------------------------------------------- photos

def inversion_entry(result, root, budget):
    """An InversionResult as the template shows it: photo, reconstruction and surface side by side, then other views."""
    azimuth, elevation = result.viewpoint

    def view(file, text):
        return {'id': f'inversion-{result.name}-{file}', 'image': one_picture(result.files[file]), 'thumbnail': None,
                'depth': None, 'text': text}

    texts = {'photo.png': 'photo', 'reconstruction.png': f'reconstruction, {result.psnr:.1f} dB; azimuth '
             f'{degrees(azimuth)}, elevation {degrees(elevation)}', 'views.png': 'from other angles'}
    shown = [view(file, text) for file, text in texts.items() if file in result.files]
    meshes = [mesh_entry(result.files['mesh'], root, 'Surface', orbit=(azimuth, math.pi / 2 - elevation))
              ] if 'mesh' in result.files else []
    videos = [video_entry(result.files['video'], root, 'turning', budget)] if 'video' in result.files else []
    picture = next((result.files[file] for file in texts if file in result.files), None)
    return {'name': f'Photo {result.name}', 'width': SMALLEST_WIDTH, 'text': result.source,
            'opening': f'{2 * result.fov:g}deg', 'views': shown, 'meshes': meshes, 'videos': videos, 'beside': 2,
            'links': {'image': picture and link_to(picture, root), 'thumbnail': None}}


def one_picture(path):
    """A picture as a data: URI. Raises UserError for a broken one."""
    try:
        with opened_picture(path) as picture:
            return picture_uri(picture.convert('RGB'))
    except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
        raise UserError(f'{path} cannot be read ({" ".join(str(error).split())}); remove it, or make it '
                        'again.') from None


# ---------------------------------------------------------------------------------------------- videos

def video_result_entry(result, root, budget):
    """A VideoResult as the template shows it."""
    return {'name': result.title, 'text': '', 'opening': '12deg', 'views': [], 'width': VIDEO_WIDTH,
            'videos': [video_entry(path, root, f'{VIDEO_TITLES[kind]}, {camera_path}', budget)
                       for kind, camera_path, path in result.videos],
            'meshes': [mesh_entry(path, root, 'Marching cubes, frontal') for path in result.frontal_meshes]}


def video_entry(path, root, name, budget):
    """A video as the template shows it: inside the page while there is room for it, else linked."""
    link = link_to(path, root)
    if path.is_dir():  # --format frames
        frames = sorted(path.glob('*.png'))
        return {'name': name, 'file': f'{link}/', 'picture': frames and f'{link}/{frames[0].name}',
                'size': f'{len(frames)} frames'}
    size = path.stat().st_size
    inside = path.suffix != '.webm' and budget.takes(size)
    data = base64.b64encode(path.read_bytes()).decode() if inside else None
    entry = {'name': name, 'file': link, 'size': file_size(size)}
    if path.suffix in ('.mp4', '.webm'):
        return entry | {'data': data, 'picture': None, 'poster': first_frame(path)}
    return entry | {'picture': f'data:image/{path.suffix[1:]};base64,{data}' if inside else link}


# ---------------------------------------------------------------------------------------------- the page

def sections_of(root):
    """The sections of results_page.html: what each folder of a model's results holds."""
    sections, budget = [], Budget(ALL_VIDEO_BYTES)

    def add(folder, found, entry):
        if found:
            sections.append({'id': folder.replace('/', '_'), 'title': TITLES[folder],
                             'results': [entry(result) for result in found[:RESULTS]],
                             'more': max(0, len(found) - RESULTS)})

    add(results.INVERSIONS, results.read_inversions(root / results.INVERSIONS),
        lambda result: inversion_entry(result, root, budget))
    for folder in results.GENERATED:
        add(folder, results.read_generated(root / folder), lambda result: generated_entry(result, root))
    for folder in results.VIDEOS:
        add(folder, results.read_videos(root / folder), lambda result: video_result_entry(result, root, budget))
    return sections


def write_page(root):
    """Write index.html into a model's folder of results (RESULTS_DIR/EXPNAME/MODEL); returns its path.

    It shows all that is there of both commands. Raises UserError where there is nothing to show, or a file is damaged.
    """
    root = Path(root)
    sections = sections_of(root)
    if not sections:
        raise UserError(f'{root} holds no results of generate_shapes_and_images.py, render_video.py or '
                        'invert_photos.py; name the folder of one model, such as evaluations/EXPNAME/final_model.')
    shown = [result for section in sections for result in section['results']]
    add_textured(shown)
    meshes = [mesh for result in shown for mesh in result['meshes']]
    add_meshes([mesh for mesh in meshes if 'textured' not in mesh])
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    html = environment.get_template('results_page.html').render(
        name=root.resolve().parent.name, model=root.resolve().name, sections=sections, has_meshes=bool(meshes),
        plaster=PLASTER, viewer=VIEWER.read_text(encoding='utf-8') if meshes else '')
    with atomic_path(root / 'index.html') as temporary:
        temporary.write_text(html, encoding='utf-8', errors='replace')  # a folder's name may hold odd bytes
    return root / 'index.html'
