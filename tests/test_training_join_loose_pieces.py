"""training/join_loose_pieces.py: loose pieces of surfaces are joined to the largest one."""
import copy
from argparse import Namespace

import pytest
import torch
from conftest import ROOT

from inference.loaded_model import load_model
from training import join_loose_pieces as joining


def balls(*places, n=41):
    """(distances, points) of a volume with balls (x, y, z, radius) in it."""
    axis = torch.linspace(-1, 1, n)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), -1)
    return torch.stack([(points - torch.tensor(place[:3])).norm(dim=-1) - place[3] for place in places]).amin(0), points


def test_pieces_are_found_with_the_shortest_way_to_the_largest():
    distances, points = balls((-0.4, 0., 0., 0.4), (0.5, 0., 0., 0.2), (0., 0.9, 0., 0.04))
    found = joining.loose_pieces(distances, points)
    (begin, end), = found.ways
    spacing = 2 / 40
    assert (begin - torch.tensor([0.3, 0., 0.])).norm() < 2.5 * spacing
    assert (end - torch.tensor([0., 0., 0.])).norm() < 2.5 * spacing
    assert len(found.specks) and ((found.specks - torch.tensor([0., 0.9, 0.])).norm(dim=1) < 0.05).all()


def test_what_is_one_piece_is_left_alone():
    for volume in (balls((-0.3, 0., 0., 0.4), (0.3, 0., 0., 0.4)), balls((0., 0., 0., -1.))):
        found = joining.loose_pieces(*volume)
        assert found.ways == [] and found.specks.shape == (0, 3)


def test_points_lie_around_the_way():
    begin, end = torch.tensor([0., 0., 0.]), torch.tensor([0., 0., 0.1])
    points = joining.points_along([(begin, end)], 5000)
    assert points[:, :2].norm(dim=1).max() <= joining.BRIDGE + 1e-6
    slack = joining.BEYOND * 0.1 + joining.BRIDGE
    assert -slack <= points[:, 2].min() < 0 and 0.1 < points[:, 2].max() <= 0.1 + slack
    other = torch.tensor([1., 0., 0.])
    two = joining.points_along([(begin, end), (other, other + end)], 5000)
    assert 0.4 < (two[:, 0] > 0.5).float().mean() < 0.6


@pytest.fixture(scope='module')
def model():
    return load_model(ROOT / 'demo' / 'cats_demo.pt', device='cpu')


def lesson_of(model, monkeypatch, pieces):
    """A lesson in which these Pieces are all that is found; its copy is the given field itself."""
    monkeypatch.setattr(joining, 'IDENTITIES', 1)
    monkeypatch.setattr(joining, 'GRID', 8)
    monkeypatch.setattr(joining, 'RAYS', 8)
    monkeypatch.setattr(joining, 'loose_pieces', lambda *_: pieces)
    torch.manual_seed(0)
    lesson = joining.Joining(model, copy.deepcopy(model.generator.renderer), Namespace(model='demo', steps=100))
    for parameter in lesson.learning():
        parameter.requires_grad_()
    return lesson


def test_a_field_that_has_not_changed_is_like_the_given_one(model, monkeypatch):
    terms = lesson_of(model, monkeypatch, joining.Pieces([], torch.zeros(0, 3))).terms(0)
    assert set(terms) == {'features', 'color', 'distance', 'far'}
    assert max(terms[name] for name in ('features', 'color', 'distance')) < 1e-5


def test_the_way_comes_to_lie_inside_and_specks_outside(model, monkeypatch):
    """On the demo's field: a way through the air beside the head, and a speck in the middle of the head."""
    way = torch.tensor([0.09, 0.05, 0.02]), torch.tensor([0.09, 0.06, 0.02])
    lesson = lesson_of(model, monkeypatch, joining.Pieces([way], torch.tensor([[0., 0., -0.02]])))
    optimizer = torch.optim.Adam(lesson.new.network.parameters(), 3e-4)
    found = []
    for step in range(1, 12):
        terms = lesson.terms(0 if step == 1 else step)
        found.append((terms['join'].item(), terms['specks'].item()))
        optimizer.zero_grad()
        (terms['join'] + terms['specks']).backward()
        optimizer.step()
    assert found[0][0] > 0 and found[0][1] > 0
    assert found[-1][0] < 0.5 * found[0][0] and found[-1][1] < 0.5 * found[0][1], found


def test_identities_are_looked_through_every_so_often(model, monkeypatch):
    lesson = lesson_of(model, monkeypatch, joining.Pieces([], torch.zeros(0, 3)))
    seen = []
    monkeypatch.setattr(lesson, 'kept', lambda w, step: seen.append((lesson.w, len(w))) or {})
    for step in (0, 1, joining.EVERY - 1, joining.EVERY):
        lesson.terms(step)
    (first, count), (second, _), (third, _), (last, _) = seen
    assert first is second is third and not torch.equal(first, last) and count == joining.BATCH
