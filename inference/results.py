"""Where results go, what their files are called, and how both are read back; no other module knows these names.

    RESULTS_DIR/EXPNAME/MODEL/                       MODEL: final_model, vol_renderer or iter_0300000
        random_angles/, fixed_angles/, chosen_angles/ of generate_shapes_and_images.py
            images/0000000.png                       all views of an identity in a row; images/0000000_thumb.png
            depth_map_meshes/sample_0_depth_mesh_azim10_elev-3.obj
            marching_cubes_meshes/sample_0_marching_cubes_mesh_azim10_elev-3.obj
            textured_meshes/sample_0_textured_mesh_azim10_elev-3.glb  with --texture; also .obj, .mtl and .png
            maps/0000000_depth_azim10_elev-3.png     with --maps: also normal, mask and position; .exr, .npy
            cameras/0000000.json                     with --texture or --maps: the cameras of all views
            latents/0000000.pt                       with --save_latents: files that --latents takes
            index.json                               what was made from which seed, view and checkpoint
        videos/ or videos/with_noise_projection/     of render_video.py
            sample_video_0_elipsoid.mp4              also sample_depth_video_…, sample_side_by_side_video_…
            sample_0_frontal_marching_cubes_mesh.obj
        inversions/                                  of invert_photos.py
            anna/photo.png                           the square that was used; reconstruction.png, views.png, depth.png
            anna/latents.pt                          a file that --latents takes
            anna/mesh.obj, anna/video.mp4            the surface, and with --video the head turning
            index.json                               what was found of each photo
        directions.pt                                of find_directions.py
        index.html                                   the page of results

An identity of --identities is called by its number (0000000 and 0), one of --seeds by its seed (seed0000003 and seed3),
one of --mix 3,8@4 mix-3-8-at4, and one of --latents latents- and the name of its file. Edits follow its name:
seed0000003-shape2+1.5.
Results may come from somewhere else: whatever is read back is checked, and nothing outside their folder is read.
"""
import contextlib
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from utils import UserError, atomic_path, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GENERATED = ('random_angles', 'fixed_angles', 'chosen_angles')
VIDEOS = ('videos', 'videos/with_noise_projection')
PICTURES = {'image': '', 'thumbnail': '_thumb'}  # kinds of pictures, and the endings of their names
MESHES = {'depth_mesh': 'depth_map_meshes', 'marching_cubes_mesh': 'marching_cubes_meshes',
          'textured_mesh': 'textured_meshes'}
INVERSIONS = 'inversions'
INVERTED = ('photo.png', 'reconstruction.png', 'views.png', 'depth.png', 'latents.pt')  # of each photo
VIDEO_KINDS = ('video', 'depth_video', 'side_by_side_video')
CAMERA_PATH = r'elipsoid|azim|orbit|dolly|path_[A-Za-z0-9-]+'  # what camera_paths.path_name gives
FRONTAL_MESH = 'frontal_marching_cubes_mesh'
INDEX = 'index.json'
IDENTITY = r'(seed)?(\d{7,20})|mix-[0-9]+-[0-9]+-at[0-9]+|latents-[A-Za-z0-9-]+?'  # long names without edits
EDITS = r'(?:-[A-Za-z][A-Za-z0-9]*[+-][0-9.]+(?:e[+-]?[0-9]+)?)*'
NAME = r'[A-Za-z0-9_.+-]+?'  # what identities and walks are called in the names of videos
MAX_EDITS_NAME = 80  # characters; of longer ones the name has a hash
SEEDS_IN_NAME = 8  # A walk through more seeds names only so many of them in its file's name.

# What decides how an identity looks: while none of it changes, earlier files of the identity still belong to it.
APPEARANCE = ('seed', 'checkpoint', 'truncation_ratio', 'truncation_mean', 'fov', 'dist_radius', 'views',
              'latents', 'directions')


# ---------------------------------------------------------------------------------------------- names

def model_folder(opt, model_name):
    """The folder of all results of one model; model_name: as inference.loading.load_generator returns it."""
    return Path(opt.inference.results_dir) / opt.experiment.expname / model_name


def generation_folder(opt, model_name):
    """Where generate_shapes_and_images.py writes."""
    own = opt.inference.latents and 'num_views_per_id' not in opt.given  # those that the files of latents hold
    fixed = opt.inference.fixed_camera_angles
    chosen = 2 if opt.inference.views or own and not fixed else int(fixed)
    return model_folder(opt, model_name) / GENERATED[chosen]


def video_folder(opt, model_name):
    """Where render_video.py writes."""
    return model_folder(opt, model_name) / VIDEOS[opt.model.project_noise]


def inversion_folder(opt, model_name):
    """Where invert_photos.py writes."""
    return model_folder(opt, model_name) / INVERSIONS


def long_name(number, by_seed):
    """The name of an identity in the names of its pictures and in index.json: 0000003, or seed0000003."""
    return f'seed{number:07d}' if by_seed else f'{number:07d}'


def short_name(number, by_seed):
    """The name of an identity in the names of its meshes and videos: 3, or seed3."""
    return f'seed{number}' if by_seed else f'{number}'


def mix_name(first, second, layer):
    """The long and short name of a mix of two seeds: mix-3-8-at4."""
    return f'mix-{first}-{second}-at{layer}'


def file_name(name):
    """The long and short name of an identity from a file of latents; name: from latents.name_of_file."""
    return f'latents-{name}'


def edits_name(edits):
    """What follows an identity's name after --edit: -shape2+1.5-color1-2; edits: ((direction, amount), …)."""
    text = ''.join(f'-{name}{amount:+g}' for name, amount in edits)
    if len(text) <= MAX_EDITS_NAME:
        return text
    return f'-edit+{zlib.crc32(text.encode())}'


def walk_name(seeds):
    """The name of a walk through several identities: walk_3_8."""
    more = f'_and_{len(seeds) - SEEDS_IN_NAME}_more' if len(seeds) > SEEDS_IN_NAME else ''
    return f'walk_{"_".join(map(str, seeds[:SEEDS_IN_NAME]))}{more}'


def view_names(viewpoints):
    """A name for each (azimuth, elevation) in radians, azim{a}_elev{e} in whole degrees, cut towards zero (but 19.9999,
    as 20 degrees come out of float32, are 20); views that would share a name are numbered."""
    names = {}  # in their order
    for viewpoint in viewpoints:
        azimuth, elevation = (int(round(math.degrees(angle), 3)) for angle in viewpoint)
        name = f'azim{azimuth}_elev{elevation}'
        names[name if name not in names else f'{name}_view{len(names)}'] = None
    return list(names)


def picture_file(name, kind):
    """The file of an identity's pictures, in its folder; name: the long one. kind: of PICTURES."""
    return f'images/{name}{PICTURES[kind]}.png'


def mesh_file(name, kind, view, suffix):
    """The file of a mesh, in the folder of its run; name: the short one. kind: of MESHES. view: from view_names."""
    return f'{MESHES[kind]}/sample_{name}_{kind}_{view}.{suffix}'


def cameras_file(name):
    """The file of the cameras of an identity's views, in the folder of its run; name: the long one."""
    return f'cameras/{name}.json'


def map_file(name, kind, view, suffix):
    """The file of a map, in the folder of its run; name: the long one. kind: of surfaces.maps. view: from view_names.
    """
    return f'maps/{name}_{kind}_{view}.{suffix}'


def latents_file(name):
    """The file of an identity's latents, in the folder of its run; name: the long one."""
    return f'latents/{name}.pt'


def video_stem(kind, name, camera_path):
    """The name of a video without its suffix; name: the short one, or a walk's. kind: of VIDEO_KINDS. camera_path: from
    camera_paths.path_name."""
    return f'sample_{kind}_{name}_{camera_path}'


def frontal_mesh_file(name, suffix):
    """The file of the surface that a video's noise sticks to; name: the short one."""
    return f'sample_{name}_{FRONTAL_MESH}.{suffix}'


# ---------------------------------------------------------------------------------------------- the index

def read_index(folder):
    """{long name: entry} of the index.json in a folder, or an empty dict where there is none.

    Raises UserError for a file that is not one, of which only the form is checked here: dicts, and lists of texts.
    """
    path = Path(folder) / INDEX
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))['results']
        for entry in entries.values():
            for files in (entry.get('files', []), entry.get('earlier_files', [])):
                if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
                    raise TypeError('its files are no list of texts')
        return entries
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise UserError(f'{path} is not an index that this command wrote; move it away.') from None


def add_to_index(folder, name, entry):
    """Put an identity's entry into the index, which other runs may be changing at the same time.

    Files of an earlier entry that are still there stay listed: as the identity's own where nothing changed that decides
    how it looks (meshes stay when only pictures are made again), else as `earlier_files`.
    """
    folder = Path(folder)
    with alone(folder):
        entries = read_index(folder)
        old = entries.get(name, {})
        same = all(old.get(key) == entry.get(key) for key in APPEARANCE)
        kept = [file for file in old.get('files', []) if file not in entry['files'] and (folder / file).is_file()]
        files = entry['files'] + (kept if same else [])
        earlier = {file for file in kept + old.get('earlier_files', [])
                   if file not in files and (folder / file).is_file()}
        entries[name] = entry | {'files': files} | ({'earlier_files': sorted(earlier)} if earlier else {})
        _write_index(folder, entries)


def remove_inversion(folder, name):
    """Remove the files that invert_photos.py has written of a photo, and its entry in the index."""
    folder = Path(folder)
    place = folder / name
    files = [place / file for file in INVERTED] + [*place.glob('mesh.*'), *place.glob('video.*')]
    with alone(folder):
        entries = read_index(folder)
        if entries.pop(name, None):
            _write_index(folder, entries)
        for file in files:
            if file.is_file():
                file.unlink()


def _write_index(folder, entries):
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({'results': entries}, indent=1) + '\n', encoding='utf-8')


@contextlib.contextmanager
def alone(folder):
    """Inside, no other process that asks for the same folder is inside too (where the system has such locks)."""
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if handle is not None:
            with contextlib.suppress(OSError):  # Some network disks have no locks; there, runs must not overlap.
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


# ---------------------------------------------------------------------------------------------- reading back

class IdentityResult(NamedTuple):
    """What generation left of one identity."""
    folder: Path            # of its run
    name: str               # the long one
    title: str              # for people: 'Identity 0' or 'Seed 3'
    by_seed: bool           # its name says where it comes from
    seed: int | None        # None for one of a file
    truncation: float
    fov: float              # half the field of view, in degrees
    dist_radius: float
    views: list             # (azimuth, elevation) of each view, in radians
    pictures: dict          # kind -> the file with all views in a row, of those that are there
    depth_meshes: list      # for each view its depth mesh's file, or None
    marching_cubes: list    # files
    textured: list          # files of meshes with a texture, in GLB


class VideoResult(NamedTuple):
    """What render_video.py left of one identity or walk."""
    title: str
    videos: list            # (kind of VIDEO_KINDS, camera path, file or folder of frames), in the order of the kinds
    frontal_meshes: list    # files


def read_generated(folder):
    """The IdentityResults in a folder, in the order of their names. Raises UserError for a damaged index.json."""
    return _read_entries(Path(folder), _identity_result, 'generate the identity again')


def _read_entries(folder, result_of, again):
    """result_of(folder, name, entry) for each entry of a folder's index.json, in the order of their names.

    again: what to do where an entry is damaged, as words for the UserError that is raised then.
    """
    results = []
    for name, entry in sorted(read_index(folder).items()):
        try:
            results.append(result_of(folder, name, entry))
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            name, reason = printable(repr(name)), printable(error, 200)
            raise UserError(f'{folder / INDEX}: its entry {name} is damaged ({reason}); remove the entry, or '
                            f'{again}.') from None
    return results


def _files_of(folder, entry):
    """The files that an entry names, of those that are there. Raises ValueError for one outside of the folder."""
    files = []
    for file in entry['files']:
        path = inside(folder, folder / file)
        if path is None:
            raise ValueError(f'it names {file!r}, which lies outside of this folder')
        if path.is_file():
            files.append(path)
    return files


def _identity_result(folder, name, entry):
    named = re.fullmatch(f'(?:{IDENTITY})(?P<edits>{EDITS})', name, re.ASCII)
    if not named:
        raise ValueError('there is no identity of that name')
    by_seed = not named[2] or bool(named[1])
    short = short_name(int(named[2]), by_seed) + named['edits'] if named[2] else name
    views = [(_number(view['azim']), _number(view['elev'])) for view in entry['views']]
    if not views:
        raise ValueError('it has no views')
    files, paths = {}, _files_of(folder, entry)
    for path in paths:
        files.setdefault((path.parent.name, path.stem), path)
    depth_stems = [(MESHES['depth_mesh'], f'sample_{short}_depth_mesh_{view}') for view in view_names(views)]
    pictures = {kind: inside(folder, folder / picture_file(name, kind)) for kind in PICTURES}
    return IdentityResult(
        folder, name, _title(short), by_seed, None if entry['seed'] is None else int(_number(entry['seed'])),
        _number(entry['truncation_ratio']), _number(entry['fov'], 0, 90), _number(entry['dist_radius'], 0, 1), views,
        {kind: path for kind, path in pictures.items() if path is not None and path.is_file()},
        [files.get(stem) for stem in depth_stems],
        [path for (parent, _), path in files.items() if parent == MESHES['marching_cubes_mesh']],
        [path for path in paths if path.parent.name == MESHES['textured_mesh'] and path.suffix == '.glb'])


def _number(value, low=-math.inf, high=math.inf):
    """A finite number between two limits, from a file that may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f'{value!r} is no number')
    if not low < value < high:
        raise ValueError(f'{value!r} is out of range')
    return value


class InversionResult(NamedTuple):
    """What invert_photos.py left of one photo."""
    name: str
    source: str             # where the photo was
    viewpoint: tuple        # (azimuth, elevation) in radians
    psnr: float             # of the reconstruction, in dB
    fov: float              # half the field of view, in degrees
    files: dict             # name of INVERTED, 'mesh' or 'video' -> the file, of those that are there


def read_inversions(folder):
    """The InversionResults in a folder, in the order of their names. Raises UserError for a damaged index.json."""
    return _read_entries(Path(folder), _inversion_result, 'invert the photo again')


def _inversion_result(folder, name, entry):
    if not re.fullmatch('[A-Za-z0-9-]{1,80}', name, re.ASCII):
        raise ValueError('there is no photo of that name')
    files = {path.name if path.name in INVERTED else path.stem: path for path in _files_of(folder, entry)}
    view = entry['viewpoint']
    return InversionResult(name, str(entry['photo'])[:300], (_number(view['azim']), _number(view['elev'])),
                           _number(entry['psnr']), _number(entry['fov'], 0, 90), files)


def read_videos(folder):
    """The VideoResults in a folder, in the order of their files' names."""
    folder = Path(folder)
    found = {}
    kinds = '|'.join(VIDEO_KINDS)
    for path in sorted(folder.glob('sample_*')):
        # A folder of frames has no suffix: what follows a dot in its name belongs to an edit's amount.
        stem = path.name if path.is_dir() else path.stem
        video = re.fullmatch(f'sample_({kinds})_({NAME})_({CAMERA_PATH})', stem)
        mesh = re.fullmatch(f'sample_({NAME})_{FRONTAL_MESH}', stem)
        if not (video or mesh) or inside(folder, path) is None:
            continue
        name = video[2] if video else mesh[1]
        result = found.setdefault(name, VideoResult(_title(name), [], []))
        if video:
            result.videos.append((video[1], video[3], path))
        else:
            result.frontal_meshes.append(path)
    for result in found.values():
        result.videos.sort(key=lambda video: VIDEO_KINDS.index(video[0]))
    return list(found.values())


def _title(name):
    """For people: 'Identity 0', 'Seed 3' or 'Walk through seeds 3 8' from a short name, or what a video is called."""
    numbered = re.fullmatch(r'(seed)?(\d+)(?:-(.+))?', name, re.ASCII)
    if numbered:
        edits = f', {numbered[3]}' if numbered[3] else ''
        return f'{"Seed" if numbered[1] else "Identity"} {numbered[2]}{edits}'
    mix = re.fullmatch(r'mix-(\d+)-(\d+)-at(\d+)(?:-(.+))?', name, re.ASCII)
    if mix:
        return f'Seed {mix[1]} with layers from {mix[3]} on of {mix[2]}' + (f', {mix[4]}' if mix[4] else '')
    if name.startswith('latents-'):
        return f'Latents {name.removeprefix("latents-")}'
    return f'Walk through seeds {name.removeprefix("walk_").replace("_and_", " and ").replace("_", " ")}'


def inside(folder, path):
    """The path, if it lies in a folder when all links on the way are followed; else None."""
    try:
        return Path(path) if Path(path).resolve().is_relative_to(Path(folder).resolve()) else None
    except (OSError, ValueError, RuntimeError):  # an impossible name, or links in a circle
        return None
