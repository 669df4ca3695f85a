"""Compare the pictures and meshes that two programs made of the same identities and views.

    python benchmarks/compare_results.py evaluations_of_one evaluations_of_the_other

Files are compared that have the same path within both folders: PNG files by their levels (0 to 255, and fractions of
them where a file has 16 bits), OBJ files by the distances between their vertices, in units of the field (a head is
about 0.2 wide). Where the numbers of vertices differ, the distance is that to the nearest vertex of the other mesh. The
exit code is 1 where pictures differ by more than --levels or meshes by more than --distance, where two files are of
another size or kind, or where one folder lacks a file of the other.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import options
from utils import UserError, run_command, shortened


def read_flags():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('first', type=Path, help='folder of results')
    parser.add_argument('second', type=Path, help='folder of results of the other program')
    parser.add_argument('--levels', type=float, default=1, help='largest difference of pictures (default: 1)')
    parser.add_argument('--distance', type=float, default=2e-4, help='largest distance of vertices (default: 0.0002)')
    return parser.parse_args()


if __name__ == '__main__':
    run_command('compare_results', read_flags)

import av
import numpy as np
import trimesh
from scipy.spatial import KDTree

KINDS = {'.png': 'levels of 255', '.obj': 'distance'}


def picture(path):
    """(H,W) or (H,W,C) levels, from 0 to 255, of a PNG file with 8 or 16 bits."""
    with av.open(str(path)) as file:  # Pillow reads 16 bits of gray pictures only
        values = next(file.decode(video=0)).to_ndarray()
    return values / (np.iinfo(values.dtype).max / 255)


def vertices(path):
    """(V,3) vertices of a mesh."""
    values = np.asarray(trimesh.load(path, process=False, force='mesh').vertices)
    if not len(values):
        raise ValueError('it holds no mesh')
    return values


def read(path):
    """What `picture` or `vertices` makes of a file. Raises UserError where it is damaged or of a kind unknown here."""
    try:
        return (picture if path.suffix == '.png' else vertices)(path)
    except Exception as error:  # the readers may raise anything
        raise UserError(f'{path} cannot be compared ({shortened(error)}); make it anew, or move it away.') from None


def picture_differences(a, b):
    """|a - b| of all levels of two pictures, or None where their sizes or kinds differ."""
    return np.abs(a - b).ravel() if a.shape == b.shape else None


def mesh_differences(a, b):
    """Distances between the vertices of two meshes, in both directions where these are not as many."""
    if a.shape == b.shape:
        return np.linalg.norm(a - b, axis=1)
    return np.concatenate([KDTree(b).query(a)[0], KDTree(a).query(b)[0]])


def files_of(folder):
    """{path within the folder: path} of the files that can be compared."""
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder of results.')
    return {path.relative_to(folder): path for path in sorted(folder.rglob('*')) if path.suffix in KINDS}


def rows_of(first, second):
    """Yield (path, differences or None) of each pair of files."""
    for path in sorted(first.keys() & second.keys()):
        differences = picture_differences if path.suffix == '.png' else mesh_differences
        yield path, differences(read(first[path]), read(second[path]))


def compare(first, second, most):
    """Print a line for each pair of files. Returns whether all are within `most` {file ending: difference}."""
    first, second = files_of(first), files_of(second)
    alike = not first.keys() ^ second.keys()
    for path in sorted(first.keys() ^ second.keys()):
        print(f'{path}: only in the {"first" if path in first else "second"} folder')
    if not first.keys() & second.keys():
        raise UserError('the folders have no PNG or OBJ file of the same name; give two of the same experiment.')
    print(f'{"largest":>10} {"mean":>10} {"equal":>7}  file')
    for path, differences in rows_of(first, second):
        if differences is None:
            alike = False
            print(f'{"-":>10} {"-":>10} {"-":>7}  {path}: of another size or kind')
            continue
        alike &= differences.max() <= most[path.suffix]
        print(f'{differences.max():10.3g} {differences.mean():10.3g} {(differences == 0).mean():7.2%}  {path} '
              f'({KINDS[path.suffix]})')
    return alike


def main(flags):
    alike = compare(flags.first, flags.second, {'.png': flags.levels, '.obj': flags.distance})
    print('All files are alike.' if alike else 'Not all files are alike.')
    sys.exit(0 if alike else 1)
