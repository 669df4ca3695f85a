"""The layout of a mesh on a texture: every triangle has its own place, as large as it should be."""
import sys

import numpy as np
import pytest
import torch
import trimesh

from camera import cameras_at
from surfaces.atlas import SIDES_DENSITY, check_xatlas, lay_out
from surfaces.rasterizing import rasterize
from utils import UserError

SIZE = 128


def shells():
    """A ball, and a smaller one inside it, which no side sees."""
    outer, inner = (trimesh.creation.icosphere(subdivisions=3, radius=radius) for radius in (0.08, 0.03))
    return trimesh.util.concatenate([outer, inner]), len(outer.faces)


@pytest.fixture(scope='module')
def layout():
    """(mesh, its number of outer triangles, Atlas) of the two balls as seen from azimuth 0.4, elevation 0.2."""
    pytest.importorskip('xatlas', reason='needs xatlas (requirements-texture.txt)')
    mesh, outer = shells()
    camera = cameras_at(torch.tensor([[0.4, 0.2]]), SIZE)
    return mesh, outer, lay_out(torch.tensor(mesh.faces), torch.tensor(mesh.vertices).float(), camera, SIZE)


def areas(corners):
    a, b = (corners[:, i] - corners[:, 0] for i in (1, 2))
    return np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2


def test_triangles_stay_themselves(layout):
    mesh, _, atlas = layout
    assert np.array_equal(atlas.vertex[atlas.faces], mesh.faces)
    assert len(atlas.vertex) < 2 * len(mesh.vertices)  # only those on cuts are there several times


def test_each_triangle_has_a_place_of_its_own(layout):
    mesh, outer, atlas = layout
    corners = atlas.place[torch.tensor(atlas.faces)]
    width, height = atlas.size
    assert corners.min() >= 1 and (corners.amax((0, 1)) <= torch.tensor([width - 1, height - 1])).all()
    shown = rasterize(corners, width, height)
    visible = torch.bincount(shown[shown >= 0], minlength=len(mesh.faces))
    area = torch.tensor(areas(corners.numpy()))
    assert (visible - area).abs().mean() < 1  # pixels of each triangle, against its area: they do not overlap
    assert visible.sum().item() == pytest.approx(area.sum().item(), rel=0.03)
    # Those of the inner ball too, at the density of the sheets from the sides.
    texels = (SIZE / 2 / np.tan(np.radians(6)) * SIDES_DENSITY) ** 2
    assert area[outer:].sum().item() == pytest.approx(mesh.area_faces[outer:].sum() * texels, rel=0.1)


def test_what_the_camera_sees_squarely_lies_as_in_its_picture(layout):
    mesh, outer, atlas = layout
    azimuth, elevation = 0.4, 0.2
    towards = np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    local = mesh.vertices - towards
    square = np.flatnonzero((mesh.face_normals[:outer] @ towards) > 0.8)
    column = SIZE / 2 + local @ right / (-local @ towards) * SIZE / 2 / np.tan(np.radians(6))
    shift = atlas.place[torch.tensor(atlas.faces[square]), 0].numpy() - column[mesh.faces[square]]
    assert np.ptp(shift) < 1e-2 and abs(shift.mean() - round(shift.mean())) < 1e-2  # moved by whole texels


def test_triangles_without_area_do_no_harm():
    """Marching cubes makes some."""
    pytest.importorskip('xatlas', reason='needs xatlas (requirements-texture.txt)')
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.08)
    faces = np.concatenate([mesh.faces, [[0, 0, 1], [2, 2, 2]]])
    atlas = lay_out(torch.tensor(faces), torch.tensor(mesh.vertices).float(), cameras_at(torch.zeros(1, 2), SIZE), SIZE)
    assert torch.isfinite(atlas.place).all() and np.array_equal(atlas.vertex[atlas.faces], faces)


def test_missing_xatlas_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    with pytest.raises(UserError, match='pip install -r requirements-texture.txt'):
        check_xatlas()
