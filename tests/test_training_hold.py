"""The hold on stage 1's surface: what is measured of it, when its weight fades and comes back, and the warning."""
from types import SimpleNamespace

import pytest
import torch
from tiny_training import flags

import options
from camera import cameras_at
from training import hold
from training.hold import Hold, silhouette
from volume_renderer import VolumeRenderer


def options_with(text=''):
    return options.parse('train_volume_renderer', '', flags('none', text))


class Sphere(VolumeRenderer):
    """A renderer whose field is the distance from a sphere; negative radii give a field that is positive everywhere."""

    def __init__(self, radius, beta):
        super().__init__(8, 16, 64, 2, 8, perturb=0.)
        self.radius = radius
        torch.nn.init.constant_(self.sigmoid_beta, beta)

    def evaluate(self, field, points, viewdirs, cameras, eikonal=False):
        return points.norm(dim=-1, keepdim=True) - self.radius, None, None, None


@pytest.mark.parametrize(('radius', 'beta', 'share', 'foggy'), (
    (0.06, 0.001, 0.256, False),  # pi 0.06 ** 2 of the (2 tan 6 degrees) ** 2 that a picture shows
    (0.09, 0.001, 0.576, False), (0.06, 0.05, 0.256, True), (-0.01, 0.001, 0., False), (0.5, 0.001, 0., False)))
def test_what_a_sphere_shows(radius, beta, share, foggy):
    cameras = cameras_at(torch.zeros(1, 2), 16, 6., 0.12)
    found = silhouette(Sphere(radius, beta)(torch.zeros(1, 8), cameras, color=False, sdf=True))
    assert abs(found.meets - share) < 0.03
    assert (found.fog > 0.4) == foggy


class FakeRun(SimpleNamespace):
    def __init__(self):
        renderer = SimpleNamespace(sigmoid_beta=torch.tensor(0.))
        super().__init__(step=0, record=lambda **values: None,
                         state=SimpleNamespace(g=SimpleNamespace(renderer=renderer)))

    def step_with(self, own, surface=0.5, fog=0.1, beta=0.002):
        self.step += 1
        self.state.g.renderer.sigmoid_beta.fill_(beta)
        own.learn(self, {'surface': surface, 'fog': fog})
        return own.weight(self.step)


def test_without_the_rule_the_weight_falls_by_step():
    own = Hold(options_with('--sphere_lambda 2 --sphere_until 4'))
    assert [own.weight(step) for step in range(6)] == [2, 1.5, 1, 0.5, 0, 0]


def test_the_weight_fades_with_beta_and_comes_back():
    own, run = Hold(options_with('--sphere_lambda 2 --sphere_fade')), FakeRun()
    assert own.weight(0) == 2
    assert run.step_with(own, beta=0.02) == 2
    fading = [run.step_with(own) for _ in range(2500)]
    assert fading == sorted(fading, reverse=True) and fading[1000] == pytest.approx(1, abs=0.01) and fading[-1] == 0
    assert run.step_with(own, beta=0.0029) == 0
    for trouble in ({'beta': 0.01}, {'fog': 0.9}, {'surface': 0.}):
        back = [run.step_with(own, **trouble) for _ in range(250)]
        assert back[-1] == 2, trouble
        assert [run.step_with(own) for _ in range(2500)][-1] == 0
    halfway = [run.step_with(own, beta=0.0055) for _ in range(500)][-1]
    assert halfway == pytest.approx(1)


def test_a_hold_goes_on_where_it_was_saved():
    text = '--sphere_lambda 2 --sphere_fade'
    whole, first, second = (Hold(options_with(text)) for _ in range(3))
    troubles = [{'beta': 0.002, 'surface': 0.3 + 0.01 * step, 'fog': 0.02 * step} for step in range(1, 9)]
    for own, part in ((whole, troubles), (first, troubles[:4])):
        run = FakeRun()
        for trouble in part:
            run.step_with(own, **trouble)
    second.load_state_dict(first.state_dict())
    for trouble in troubles[4:]:
        run.step_with(second, **trouble)
    assert second.state_dict() == whole.state_dict() and whole.share < 1


def test_a_lost_surface_is_told_once_with_what_to_do(capsys):
    for text, advice in (('', '--sphere_lambda 1 --sphere_fade'), ('--sphere_lambda 1', 'larger --sphere_lambda')):
        own, run = Hold(options_with(text)), FakeRun()
        for _ in range(100):
            run.step_with(own)
        assert not capsys.readouterr().out
        for _ in range(hold.PATIENCE + 300):
            run.step_with(own, surface=0.)
        said = capsys.readouterr().out
        assert said.count('surface is being lost') == 1 and advice in said
