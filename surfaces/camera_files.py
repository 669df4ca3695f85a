"""Cameras for other programs: in a JSON file of our own, and in glTF files.

glTF has our axes: a camera looks along its -z, with y up (glTF 2.0, section 3.10).
"""
import json
import math

import torch

from utils import atomic_path

FORMAT = 'StyleSDF cameras 1'


def camera_entries(cameras, names, size, resolution):
    """What is said of each of B cameras, a list of dicts of plain numbers.

    cameras: their focal lengths are for `resolution`. names: one for each. size: of the pictures, in pixels.
    """
    entries = []
    for i, name in enumerate(names):
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3] = cameras.extrinsics[i].double().cpu()
        focal = cameras.focal[i].item() * size / resolution
        azimuth, elevation = torch.rad2deg(cameras.viewpoint[i].double()).tolist()
        entries.append({'name': name, 'azimuth_degrees': azimuth, 'elevation_degrees': elevation, 'width': size,
                        'height': size, 'focal_pixels': focal, 'center_pixels': [size / 2, size / 2],
                        'yfov_degrees': math.degrees(2 * math.atan(size / 2 / focal)), 'near': cameras.near[i].item(),
                        'far': cameras.far[i].item(), 'camera_to_world': matrix.tolist()})
    return entries


def save_cameras(path, entries):
    """Write camera_entries as JSON, atomically."""
    about = ('Right-handed world, y up. A camera looks along -z of its own frame, x right and y up; camera_to_world is '
             '4x4, row by row. Pixel (column i, row j) has its center at (i + 0.5, j + 0.5). near and far are depths.')
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({'format': FORMAT, 'about': about, 'cameras': entries}, indent=1) + '\n',
                             encoding='utf-8')


def add_gltf_cameras(tree, entries):
    """Put camera_entries into the JSON of a glTF file, each as a camera and as a node of the scene.

    Their planes are so far apart that no program cuts off a part of the surface.
    """
    cameras, nodes = tree.setdefault('cameras', []), tree['nodes']
    for entry in entries:
        columns = [row[column] for column in range(4) for row in entry['camera_to_world']]
        tree['scenes'][tree.get('scene', 0)]['nodes'].append(len(nodes))
        nodes.append({'name': entry['name'], 'camera': len(cameras), 'matrix': columns})
        cameras.append({'name': entry['name'], 'type': 'perspective', 'perspective': {
            'aspectRatio': entry['width'] / entry['height'], 'yfov': math.radians(entry['yfov_degrees']),
            'znear': entry['near'] / 10, 'zfar': 10 * entry['far']}})
