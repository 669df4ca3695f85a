"""A page to look at: one self-contained index.html with a model's pictures, videos and surfaces in 3D.

    python -m web.page evaluations/ffhq1024x1024/final_model

`--page` of generate_shapes_and_images.py and render_video.py does the same after the run. The page shows what is in the
folder, of whichever runs, so it can be made again at any time. It needs no network and no server: pictures, reduced
meshes and the viewer (model-viewer/) are inside it; full meshes, full pictures and long videos are linked.
"""
import interrupts  # noqa: F401

import base64
import gzip
import io
import itertools
import math
import re
from pathlib import Path

import jinja2
import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from tqdm import tqdm

from camera import cameras_at, project
from generate_shapes_and_images import read_index
from options import Parser, explained, not_empty
from surfaces.files import for_gltf, load_mesh
from surfaces.shading import draw_surface
from utils import UserError, atomic_path, run_command, to_uint8

HERE = Path(__file__).resolve().parent
VIEWER = HERE / 'model-viewer' / 'model-viewer.min.js'

GENERATED = {'random_angles': 'Random views', 'fixed_angles': 'Fixed views'}
VIDEOS = {'videos': 'Videos', 'videos/with_noise_projection': 'Videos with noise on the surface'}
PICTURES = {'video': 'image', 'depth_video': 'surface', 'side_by_side_video': 'image and surface'}

# What a page holds at most, so that a phone can open it.
RESULTS = 64                     # identities of a section
TRIANGLES, ALL_TRIANGLES = 16_000, 1_600_000  # of one mesh, of all
FEWEST_TRIANGLES = 1_000         # of one mesh, however many there are
PICTURE_SIZE = 512               # pixels along a side
VIDEO_BYTES, ALL_VIDEO_BYTES = 4 << 20, 24 << 20
PICTURE_QUALITY = 90             # WebP

POSITIONS, NORMALS = 2. ** -16, 2. ** -6  # steps that coordinates and normals are rounded to, for compression
PLASTER = (0.32, 0.31, 0.29, 1.)


# ---------------------------------------------------------------------------------------------- what goes into a page

def data_uri(kind, data):
    """Bytes as a data: URI of a media type."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def picture(image):
    """A PIL image as a data: URI, no larger than PICTURE_SIZE; small ones without loss."""
    small = max(image.size) <= 128
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, 'webp', lossless=small, quality=PICTURE_QUALITY)
    return data_uri('image/webp', file.getvalue())


def pictures_of_row(path, count):
    """The `count` square pictures that stand side by side in a file, as data: URIs; none if the file is not there."""
    if not path.is_file():
        return []
    with Image.open(path) as row:
        width = row.width // count
        return [picture(row.crop((i * width, 0, (i + 1) * width, row.height))) for i in range(count)]


def compact_mesh(mesh, triangles, camera=None):
    """A mesh of at most about so many triangles as gzipped GLB in base64: quadric error decimation, rounded numbers.

    camera: of a depth mesh's view; gives texture coordinates, which lay that view's picture on the mesh. Vertex colors
    are kept; they and the normals are those of the nearest vertices of the full mesh.
    """
    reduced = mesh.simplify_quadric_decimation(face_count=triangles) if len(mesh.faces) > triangles else mesh
    nearest = cKDTree(mesh.vertices).query(reduced.vertices)[1]  # has better normals than the slivers left
    small = trimesh.Trimesh(np.round(reduced.vertices / POSITIONS) * POSITIONS, reduced.faces, process=False,
                            vertex_normals=np.round(mesh.vertex_normals[nearest] / NORMALS) * NORMALS)
    if mesh.visual.kind == 'vertex':
        small.visual = trimesh.visual.ColorVisuals(small, vertex_colors=mesh.visual.vertex_colors[nearest])
        small = for_gltf(small, baseColorFactor=PLASTER)  # multiplies them: the light is for plaster
    else:
        uv = None
        if camera is not None:
            pixels, _ = project(torch.from_numpy(np.array(small.vertices)).float(), camera, 1)
            uv = (pixels * torch.tensor([1., -1.]) + torch.tensor([0., 1.])).numpy()  # v counts from below
        small.visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.PBRMaterial(
            baseColorFactor=PLASTER, metallicFactor=0., roughnessFactor=0.7, doubleSided=True))
    glb = trimesh.exchange.gltf.export_glb(trimesh.Scene(small), include_normals=True, unitize_normals=False)
    return base64.b64encode(gzip.compress(glb, mtime=0)).decode()


def depth_picture(mesh, camera):
    """Depth of a view from its depth mesh, as a data: URI: white at the near plane, black at the far one."""
    size = math.isqrt(len(mesh.vertices))
    xyz = torch.from_numpy(np.array(mesh.vertices)).float().T.reshape(3, size, size)
    drawn = draw_surface(xyz, torch.zeros(1, size, size), camera, 'depth', size=2 * size)
    return picture(Image.fromarray(to_uint8(drawn)).convert('L'))


def degrees(radians):
    """An angle as the page writes it."""
    return f'{math.degrees(radians):.0f}°'.replace('-0°', '0°').replace('-', '\N{MINUS SIGN}')


# ---------------------------------------------------------------------------------------------- reading results

def generated(folder, root):
    """What generation left in `folder`: dicts for page.html of the first RESULTS in its index.json, whose meshes are
    still to be read (add_meshes), and how many more there are."""
    results = read_index(folder / 'index.json')['results']
    shown = []
    for name, entry in itertools.islice(sorted(results.items()), RESULTS):
        files = [file for file in entry['files'] if (folder / file).is_file()]
        cameras = cameras_at(torch.tensor([[view['azim'], view['elev']] for view in entry['views']]), 1, entry['fov'],
                             entry['dist_radius'])
        count = len(entry['views'])
        views = [{'id': f'{folder.name}-{name}-{i}', 'image': None, 'thumbnail': None, 'depth': None,
                  'text': f'azimuth {degrees(view["azim"])}, elevation {degrees(view["elev"])}'}
                 for i, view in enumerate(entry['views'])]
        for kind, ending in (('image', ''), ('thumbnail', '_thumb')):
            for view, uri in zip(views, pictures_of_row(folder / f'images/{name}{ending}.png', count), strict=False):
                view[kind] = uri
        meshes = [mesh_entry(folder / file, root, 'Marching cubes') for file in files
                  if file.startswith('marching_cubes_meshes/')]
        depth_files = [file for file in entry['files'] if file.startswith('depth_map_meshes/')]
        for i, file in enumerate(depth_files[:count]):  # in the order of the views
            if file in files:
                azimuth, elevation = entry['views'][i]['azim'], entry['views'][i]['elev']
                meshes.append(mesh_entry(folder / file, root, f'Depth, {views[i]["text"]}', view=views[i],
                                         camera=cameras[i:i + 1], orbit=(azimuth, math.pi / 2 - elevation)))
        link = f'{folder.relative_to(root).as_posix()}/images/{name}'
        number = re.sub(r'\D', '', name)
        shown.append({
            'name': f'Identity {int(number)}' if name == number else f'Seed {int(number)}',
            'text': f'--seed {entry["seed"]}, ' * (name == number) + f'truncation {entry["truncation_ratio"]:g}',
            'opening': f'{2 * entry["fov"]:g}deg',
            'views': [view for view in views if view['image'] or view['thumbnail']], 'meshes': meshes, 'videos': [],
            'file': f'{link}.png' if views[0]['image'] else None, 'thumbnail_file': f'{link}_thumb.png'})
    return shown, len(results) - len(shown)


def mesh_entry(path, root, name, view=None, camera=None, orbit=(0., math.pi / 2)):
    """A mesh for page.html. orbit: azimuth and polar angle to look from at first; camera, view: a depth mesh's."""
    return {'path': path, 'name': name, 'file': path.relative_to(root).as_posix(), 'view': view, 'camera': camera,
            'orbit': ' '.join(f'{math.degrees(angle):.2f}deg' for angle in orbit) + ' 1m'}


def add_meshes(meshes):
    """Read the meshes that page.html shows, reduced to the page's budget, and the depth pictures of their views."""
    triangles = min(TRIANGLES, max(FEWEST_TRIANGLES, ALL_TRIANGLES // max(1, len(meshes))))
    for i, entry in enumerate(tqdm(meshes, desc='page', unit='mesh')):
        try:
            mesh = load_mesh(entry['path'])
            count = len(mesh.faces)
        except Exception as error:  # each of trimesh's readers fails in its own way
            raise UserError(f'{entry["path"]} is not a mesh that can be read ({error}); remove it, or generate it '
                            'again.') from None
        entry['glb'] = compact_mesh(mesh, triangles, entry['camera'])
        entry['size'] = f'{count:,} triangles, {entry["path"].stat().st_size / 1e6:.1f} MB'
        entry['shown'] = f'{triangles:,}' if count > triangles else ''
        entry['id'] = f'mesh-{i}'
        view = entry['view']
        entry['draped'] = bool(view and (view['image'] or view['thumbnail'])) and mesh.visual.kind != 'vertex'
        if view and math.isqrt(len(mesh.vertices)) ** 2 == len(mesh.vertices):
            view['depth'] = depth_picture(mesh, entry['camera'])


def videos(folder, root, budget):
    """What render_video.py left in `folder`: a list of dicts for page.html.

    budget: a list with the one number of bytes of video that still fit into the page, which is counted down.
    """
    subjects = {}
    for path in sorted(folder.glob('sample_*')):
        video = re.fullmatch(r'sample_((?:depth_|side_by_side_)?video)_(.+)_(elipsoid|azim)', path.stem)
        mesh = re.fullmatch(r'sample_(.+)_frontal_marching_cubes_mesh', path.stem)
        if video:
            subject = subjects.setdefault(video[2], subject_entry(video[2]))
            subject['videos'].append(video_entry(path, root, f'{PICTURES[video[1]]}, {video[3]}', budget))
        elif mesh:
            subject = subjects.setdefault(mesh[1], subject_entry(mesh[1]))
            subject['meshes'].append(mesh_entry(path, root, 'Marching cubes, frontal'))
    shown = list(itertools.islice(subjects.values(), RESULTS))
    for subject in shown:
        subject['videos'].sort(key=lambda video: list(PICTURES.values()).index(video['name'].split(',')[0]))
    return shown, len(subjects) - len(shown)


def subject_entry(name):
    """The entry for page.html of what a video shows: '0', 'seed3' or 'walk_3_8' in its file's name."""
    if name.isdecimal():
        text = f'Identity {name}'
    elif name.startswith('seed'):
        text = f'Seed {name[4:]}'
    else:
        text = f'Walk through seeds {name.removeprefix("walk_").replace("_and_", " and ").replace("_", " ")}'
    return {'name': text, 'text': '', 'opening': '12deg', 'views': [], 'videos': [], 'meshes': []}


def video_entry(path, root, name, budget):
    """A video for page.html: inside the page while there is room for it, else linked."""
    link = path.relative_to(root).as_posix()
    if path.is_dir():  # --format frames
        frames = sorted(path.glob('*.png'))
        return {'name': name, 'file': f'{link}/', 'picture': frames and f'{link}/{frames[0].name}',
                'size': f'{len(frames)} frames'}
    size = path.stat().st_size
    inside = size <= min(VIDEO_BYTES, budget[0])
    budget[0] -= size * inside
    data = base64.b64encode(path.read_bytes()).decode() if inside else None
    entry = {'name': name, 'file': link, 'size': f'{size / 1e6:.1f} MB'}
    if path.suffix == '.mp4':
        return entry | {'data': data, 'picture': None}
    return entry | {'picture': f'data:image/{path.suffix[1:]};base64,{data}' if inside else link}


# ---------------------------------------------------------------------------------------------- writing

def write_page(root):
    """Write index.html into a model's folder of results (RESULTS_DIR/EXPNAME/MODEL); returns its path.

    It shows all that is there of both commands. Raises UserError where there is nothing to show, or a file is damaged.
    """
    root = Path(root)
    sections, budget = [], [ALL_VIDEO_BYTES]
    for name, title in GENERATED.items():
        if (root / name / 'index.json').is_file():
            try:
                results, more = generated(root / name, root)
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise UserError(f'{root / name}: its index.json or a picture of it is damaged ({error}); move them '
                                'away.') from None
            sections.append({'id': name, 'title': title, 'results': results, 'more': more})
    for name, title in VIDEOS.items():
        results, more = videos(root / name, root, budget)
        if results:
            sections.append({'id': name.replace('/', '_'), 'title': title, 'results': results, 'more': more})
    if not any(section['results'] for section in sections):
        raise UserError(f'{root} holds no results of generate_shapes_and_images.py or render_video.py; name the folder '
                        'of one model, such as evaluations/EXPNAME/final_model.')
    meshes = [mesh for section in sections for result in section['results'] for mesh in result['meshes']]
    add_meshes(meshes)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    html = environment.get_template('page.html').render(
        name=root.resolve().parent.name, model=root.resolve().name, sections=sections, has_meshes=bool(meshes),
        plaster=PLASTER, viewer=VIEWER.read_text(encoding='utf-8') if meshes else '')
    with atomic_path(root / 'index.html') as temporary:
        temporary.write_text(html, encoding='utf-8')
    return root / 'index.html'


def main():
    parser = Parser(description=__doc__.split('\n')[0], default_config_files=[])
    parser.add_argument('folder', type=explained(not_empty),
                        help="a model's folder of results, such as evaluations/EXPNAME/final_model")
    print(f'Page: {write_page(parser.parse_args().folder)}')


if __name__ == '__main__':
    run_command(main)
