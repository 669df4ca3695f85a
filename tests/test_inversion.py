"""inversion/: coordinates, first guesses, the optimization's gradients and what it keeps, the encoder, features."""
import dataclasses
import math

import pytest
import torch
from PIL import Image

import checkpoint
from discriminators import Discriminator
from inference.latents import Owner
from inversion import encoder as encoders
from inversion import search, solving, writing
from inversion.features import load_features
from inversion.fitting import Fitting, Weights, clamped_viewpoint
from inversion.inverter import Guess, Inverter, shrunk
from inversion.inverting import Guesser, Inversion, Settings
from inversion.photos import cropped, sources
from inversion.preview import Preview, to_guess, to_vector
from inversion.solving import LeastSquares, Part, Search, learned, solve
from inversion.space import Space
from inversion.tuning import Tuning
from inversion.writing import outcome_of, verdict
from losses import depth_roughness, edge_loss, feature_loss, noise_correlation, pyramid, pyramid_loss
from model import Generator
from utils import UserError


@pytest.fixture
def inverter(loaded_tiny, monkeypatch):
    monkeypatch.setattr('inversion.search.IDENTITIES', 6)
    return Inverter.of(loaded_tiny.generator, loaded_tiny.opt, loaded_tiny.means)


@pytest.fixture
def known(inverter):
    """(three images of the model's own, the Guess of their truth)."""
    truth = inverter.draw(3, torch.Generator().manual_seed(5))
    with torch.no_grad():
        images, _ = inverter.render(inverter.latents(truth.u), truth.viewpoint)
    return images, truth


# ---------------------------------------------------------------------------------------------- coordinates

def test_coordinates_of_samples_are_normal():
    mixing = torch.diag(torch.tensor([4., 2., 1., 0.5])) @ torch.linalg.qr(torch.randn(4, 4)).Q
    samples = torch.randn(5000, 4) @ mixing + 3
    space = Space.of(samples)
    found = space.coordinates(samples)
    assert found.mean(0).abs().max() < 1e-3 and torch.allclose(found.T @ found / 4999, torch.eye(4), atol=1e-2)
    assert torch.allclose(space.latents(found), samples, atol=1e-3)
    assert (space.lengths.diff() <= 0).all()


def test_what_varies_hardly_at_all_still_has_coordinates():
    space = Space.of(torch.randn(100, 3) * torch.tensor([2., 1., 0.]))
    assert space.lengths.min() >= 0.01 * space.lengths.max() * 0.999
    assert space.coordinates(torch.ones(1, 3)).isfinite().all()


# ---------------------------------------------------------------------------------------------- losses

def test_losses_are_zero_for_equal_images_and_count_each_photo_alone():
    images, others = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert [level.shape[-1] for level in pyramid(images)] == [16, 8, 4]
    for loss in (pyramid_loss, edge_loss):
        assert loss(images, images).abs().max() == 0 and loss(images, others).shape == (2,)
        assert torch.allclose(loss(images, others)[1:], loss(images[1:], others[1:]))
    assert torch.allclose(pyramid_loss(images, images + 0.1), torch.full((2,), 0.01))
    assert edge_loss(images, images + 0.1).abs().max() < 1e-6
    maps = [torch.rand(2, 5, 4, 4)]
    assert feature_loss(maps, [3 * maps[0]]).abs().max() < 1e-6 and feature_loss(maps, [-maps[0]]).min() > 3.9


def test_roughness_of_a_plane_is_zero_and_background_does_not_count():
    rows, columns = torch.meshgrid(torch.arange(6.), torch.arange(6.), indexing='ij')
    plane = (0.3 * rows - 0.2 * columns)[None]
    background = torch.zeros(1, 6, 6)
    assert depth_roughness(plane, background).item() == pytest.approx(0, abs=1e-5)
    bumpy = plane.clone()
    bumpy[0, 3, 3] += 1
    assert depth_roughness(bumpy, background).item() > 0.05
    background[0, 3, 3] = 1
    assert depth_roughness(bumpy, background).item() == pytest.approx(0, abs=1e-5)


def test_correlation_of_noise():
    noise = [torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))]
    assert 5 * noise_correlation(noise).item() < noise_correlation([torch.ones(1, 1, 64, 64)]).item()


# ---------------------------------------------------------------------------------------------- optimization

def test_gradients_are_those_of_finite_differences(inverter, known, double):
    generator = inverter.generator.double()
    generator.decoder.dtype = torch.float64
    space = Space(*(value.double() for value in inverter.w_space))
    prime = Space(*(value.double() for value in inverter.w_prime_space))
    means = type(inverter.means)(*(value.double() for value in inverter.means))
    exact = Inverter(generator, inverter.opt, means, inverter.psi, space, prime)
    rng = torch.Generator().manual_seed(6)
    start = Guess(torch.tensor([[0.1, -0.05]]), torch.randn(1, generator.style_dim, generator=rng))
    one = known[0][:1].double()

    def loss(viewpoint, u):
        fitting = Fitting(exact, one, Guess(viewpoint, u), Weights(depth=0.))  # its background counts as given
        fitting.error = torch.tensor([0.1])  # the pull's factor counts as given too
        total = sum(fitting.terms(fitting.latents()).values()).sum()
        return fitting, total

    fitting, total = loss(*start)
    total.backward()
    step = 1e-6
    for name, values in (('viewpoint', start.viewpoint), ('u', start.u)):
        change = torch.randn(values.shape, generator=rng)
        there = loss(*start._replace(**{name: values + step * change}))[1]
        back = loss(*start._replace(**{name: values - step * change}))[1]
        expected = ((there - back) / (2 * step)).item()
        found = (getattr(fitting, name).grad * change).sum().item()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-8), name


def test_optimization_comes_nearer_and_begins_with_the_start(inverter, known):
    images, truth = known[0][:1], known[1].select(slice(0, 1))
    start = Guess(truth.viewpoint + 0.02, 0.9 * truth.u)
    fitting, losses = Fitting(inverter, images, start), []
    for _ in fitting.run(8):
        losses.append(fitting.found.loss)
        if len(losses) == 1:
            assert torch.equal(fitting.found.viewpoint, start.viewpoint) and torch.equal(fitting.found.u, start.u)
    assert len(losses) == 9 and (losses[-1] < 0.9 * losses[0]).all()
    layers = fitting.found.latents.w.unbind(1)
    assert len(layers) == inverter.generator.renderer.network.num_layers
    assert not torch.equal(layers[0], layers[1])  # each of them has moved by itself


def test_optimization_ends_where_nothing_is_gained(inverter, known, monkeypatch):
    monkeypatch.setattr(Fitting, 'keep', lambda self, latents, loss: False)
    monkeypatch.setattr('inversion.fitting.PATIENCE', 2)
    assert sum(1 for _ in Fitting(inverter, known[0][:1], known[1].select([0])).run(100)) == 2 + 1


def test_the_best_is_kept_photo_by_photo(inverter, known):
    fitting = Fitting(inverter, known[0], known[1])
    latents = fitting.latents()
    fitting.keep(latents, torch.tensor([3., 1., 2.]))
    with torch.no_grad():
        fitting.u += 1
    fitting.keep(fitting.latents(), torch.tensor([1., 2., 1.]))
    found = fitting.found
    assert found.loss.tolist() == [1, 1, 1]
    assert torch.equal(found.u[1], known[1].u[1]) and torch.allclose(found.u[0], known[1].u[0] + 1)
    assert torch.equal(found.latents.w_prime[1], latents.w_prime[1]) and len(found.select(2).u) == 1


def test_time_ends_the_optimization(inverter, known):
    steps = sum(1 for _ in Fitting(inverter, known[0], known[1]).run(10 ** 6, seconds=0.2))
    assert 1 <= steps < 10 ** 4


def test_elevations_stay_clear_of_the_poles():
    assert clamped_viewpoint(torch.tensor([[5., 3.]])).tolist() == [[5., pytest.approx(1.3963, abs=1e-3)]]


def test_fitted_noise_is_the_pictures_own(inverter, known):
    fitting = Fitting(inverter, known[0], known[1], fit_noise=True)
    for _ in fitting.run(4):
        pass
    sides = [one.shape for one in fitting.found.noise]
    assert sides == [(3, 1, side, side) for side in inverter.generator.decoder.noise_sizes]


# ---------------------------------------------------------------------------------------------- previews, least squares

@pytest.fixture
def preview(inverter, monkeypatch):
    monkeypatch.setattr('inversion.preview.PICTURES', 8)
    return Preview.fitted(inverter)


@pytest.fixture
def field(inverter):
    """An Inverter of the same field without its decoder, an image of it, and the Guess of its truth."""
    generator = Generator(inverter.generator.style_dim, inverter.generator.renderer)
    generator.style = inverter.generator.style
    alone = Inverter.of(generator, inverter.opt, inverter.means)
    truth = alone.draw(1, torch.Generator().manual_seed(5))
    return alone, alone.render(alone.latents(truth.u), truth.viewpoint)[0], truth


def test_previews_are_the_nearest_linear_map_to_pictures(inverter, preview):
    rng = torch.Generator().manual_seed(3)  # the pictures that it was fitted to
    errors, sizes = 0., 0.
    for _ in range(8):
        guess = inverter.draw(1, rng)
        small = shrunk(inverter.render(inverter.latents(guess.u), guess.viewpoint)[0], 8)
        errors += (preview.pictures(guess, 8) - small).square().mean()
        sizes += small.square().mean()
    assert errors < 0.15 * sizes


def test_a_field_is_its_own_preview(field):
    inverter, image, truth = field
    assert torch.allclose(Preview.fitted(inverter).pictures(truth, 8), image, atol=1e-6)


def test_vectors_are_guesses(inverter, known):
    guess = known[1].select(slice(1, 2))
    again = to_guess(to_vector(guess, inverter)[None], inverter)
    assert torch.allclose(again.viewpoint, guess.viewpoint) and torch.equal(again.u, guess.u)


def test_derivatives_of_previews_say_what_a_small_step_does(field):
    inverter, image, guess = field
    preview = Preview.fitted(inverter)
    matrix = preview.jacobian(guess, 8, None, image)
    step = 0.02 * torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(4))
    there = preview.pictures(to_guess((to_vector(guess, inverter) + step)[None], inverter), 8)
    change = (there - image).flatten()
    assert (matrix @ step - change).norm() < 0.2 * change.norm()


def test_learned_derivatives_explain_the_last_step_and_leave_others():
    matrix, step = torch.zeros(3, 2), torch.tensor([2., 0.])
    found = learned(matrix, step, torch.tensor([1., 2., 3.]))
    assert torch.allclose(found @ step, torch.tensor([1., 2., 3.])) and not found[:, 1].any()


def test_least_squares_find_the_truth_of_a_field(field):
    inverter, image, truth = field
    start = Guess(truth.viewpoint + 0.05, 0.7 * truth.u)
    *_, (done, found, error) = solve(inverter, Preview.fitted(inverter), image, start)
    assert done <= 1 and error < 1e-8
    assert (found.viewpoint - truth.viewpoint).abs().max() < 1e-4 and (found.u - truth.u).abs().max() < 1e-3


def test_least_squares_come_nearer_through_a_decoder(inverter, preview, known):
    images, truth = known
    start = Guess(truth.viewpoint[2:] + 0.05, 0.7 * truth.u[2:])
    errors = [error for _, _, error in solve(inverter, preview, images[2:], start)]
    squares = LeastSquares(inverter, preview, images[2:], Part(-1, True, 0, 0.))
    assert errors[-1] < 0.2 * squares.at(to_vector(start, inverter)).error
    assert squares.at(to_vector(truth.select([2]), inverter)).error < 1e-9


def test_least_squares_take_the_best_start(field):
    inverter, image, truth = field
    starts = Guess(torch.cat([truth.viewpoint + 0.5, truth.viewpoint]), torch.cat([-truth.u, truth.u]))
    _, first, _ = next(solve(inverter, Preview.fitted(inverter), image, starts))
    assert (first.viewpoint - truth.viewpoint).abs().max() < 1e-3


def test_least_squares_begin_again_where_the_first_start_does_not_find_the_image(field, monkeypatch):
    inverter, image, truth = field
    starts = Guess(torch.cat([truth.viewpoint + 0.5, truth.viewpoint + 0.02]), torch.cat([-truth.u, 0.8 * truth.u]))
    monkeypatch.setattr(Search, 'begin', lambda search: 0)  # so the first one stays the first
    monkeypatch.setattr(solving, 'FOUND', 1e-7)
    steps = list(solve(inverter, Preview.fitted(inverter), image, starts))
    assert steps[-1][2] < 1e-7 and [share for share, _, _ in steps] == sorted(share for share, _, _ in steps)
    monkeypatch.setattr(solving, 'TRIED', 1)
    assert list(solve(inverter, Preview.fitted(inverter), image, starts))[-1][2] > 1e-5


def test_least_squares_prefer_what_is_likely(field):
    inverter, image, truth = field
    far = to_vector(truth.select(slice(0, 1)), inverter) * 2
    ends = [list(LeastSquares(inverter, Preview.fitted(inverter), image, Part(0, False, 3, pull)).run(far))[-1].x.norm()
            for pull in (0., 10.)]
    assert ends[1] < 0.5 * ends[0]


def test_least_squares_end_when_the_time_is_over(inverter, preview, known):
    start = known[1].select(slice(0, 1))
    assert len(list(solve(inverter, preview, known[0][:1], start, late=lambda: True))) == 1


def test_the_search_finds_its_own_candidates(inverter, preview):
    found = search.candidates(inverter, preview)
    guess, previews = found
    assert len(previews) == len(guess.u) == 6 * 15
    assert not guess.u[:15].any() and guess.u[15:].any(1).all()  # the mean identity from all sides, then others
    images = torch.nn.functional.interpolate(previews[[20, 80]], size=16, mode='nearest')
    best = search.best_candidates(found, images, 2)
    assert torch.equal(best.viewpoint[[0, 2]], guess.viewpoint[[20, 80]])
    assert not torch.equal(best.u[0], best.u[1])


def test_tuning_leaves_latents_and_mapping_alone_and_brings_the_picture_nearer(inverter, monkeypatch):
    weights = {name: value.clone() for name, value in inverter.generator.state_dict().items()}
    target = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inversion = Inversion(inverter, target, Guesser(inverter), Settings(steps=2, tune_steps=4, starts=2))
    phases = [phase for phase, _, _ in inversion.run()]
    assert phases[0] == 'first guess' and 'latents' in phases and phases[-1] == 'decoder'
    difference, = inversion.differences
    assert difference and not any(name.startswith('style.') for name in difference)
    tuning = Tuning(inverter, target, inversion.found.select(0), Weights())
    before = pyramid_loss(tuning.picture(), target).item()
    for _ in tuning.run(25):
        pass
    assert pyramid_loss(tuning.picture(), target).item() < before
    # A tuned decoder comes near to anything, so how sure a result is must not depend on it.
    inversion.differences = [tuning.difference]
    tuned = outcome_of(inversion)
    inversion.differences = [None]
    by_latents = outcome_of(inversion)
    assert tuned.decibels > by_latents.decibels + 0.1
    monkeypatch.setattr(writing, 'FAIR', (tuned.decibels + by_latents.decibels) / 2)
    inversion.differences = [tuning.difference]
    assert 'unlike the photo' in outcome_of(inversion).verdict
    assert all(torch.equal(weights[name], value) for name, value in inverter.generator.state_dict().items())


# ---------------------------------------------------------------------------------------------- encoder

def test_the_encoder_learns_the_models_own_samples(inverter, monkeypatch, tmp_path, loaded_tiny):
    monkeypatch.setattr(encoders, 'FIRST', 32)
    monkeypatch.setattr(encoders, 'BATCH', 16)
    untrained = encoders.train_encoder(inverter, 1)
    trained = encoders.train_encoder(inverter, 25)
    rng = torch.Generator().manual_seed(9)
    pictures, view, u = encoders.samples(trained.preview, 64, rng, encoders.side_for(inverter))
    losses = [sum(encoders.encoder_loss(one, pictures, view, u)).item() for one in (untrained, trained)]
    assert losses[1] < 0.9 * losses[0]
    owner = Owner.of(loaded_tiny.generator, loaded_tiny.opt)
    encoders.save_encoder(tmp_path / 'e.pt', trained, owner)
    again = encoders.read_encoder(tmp_path / 'e.pt', inverter, owner)
    assert torch.allclose(again(pictures)[0], trained(pictures)[0], atol=0.05)
    assert torch.equal(again.preview.maps[8], trained.preview.maps[8])
    assert encoders.read_encoder(tmp_path / 'none.pt', inverter, owner) is None
    with pytest.raises(UserError, match='for the model tiny .another one of that name.* --train_encoder'):
        encoders.read_encoder(tmp_path / 'e.pt', inverter, owner._replace(weights='x'))
    contents = checkpoint.contents_of(tmp_path / 'e.pt')
    for key, value, message in (
            ('maps', {8: torch.zeros(2, 2)}, 'its maps'), ('maps', {8: 0, 'x': 0}, 'its maps'),
            ('psi', 0.2, 'truncation_ratio'), ('psi', torch.ones(2), 'truncation_ratio'),
            ('side', torch.ones(2), 'no encoder'), ('camera', {'fov': 7.}, 'with --fov 7, not 6')):
        checkpoint.save(tmp_path / 'f.pt', contents | {key: value})
        with pytest.raises(UserError, match=message):
            encoders.read_encoder(tmp_path / 'f.pt', inverter, owner)
    checkpoint.save(tmp_path / 'e.pt', {'format': 'x'})
    with pytest.raises(UserError, match='no encoder'):
        encoders.read_encoder(tmp_path / 'e.pt', inverter, owner)


def test_changed_pictures_are_still_pictures():
    pictures = torch.rand(4, 3, 16, 16) * 2 - 1
    changed = encoders.changed(pictures, torch.Generator().manual_seed(0))
    assert changed.shape == pictures.shape and changed.isfinite().all() and not torch.equal(changed, pictures)


# ---------------------------------------------------------------------------------------------- features

def test_the_checkpoints_discriminator_gives_features(loaded_tiny, tmp_path):
    opt, state = loaded_tiny.opt, loaded_tiny.generator.state_dict()
    network = Discriminator(opt.model.size, opt.model.channel_multiplier, opt.model.channel_max)
    checkpoint.save(tmp_path / 'with.pt', {'g_ema': state, 'd': network.state_dict()})
    features = load_features(opt, tmp_path / 'with.pt', 16, torch.device('cpu'))
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    loss = feature_loss(features.maps(images), features.maps(torch.rand(2, 3, 16, 16))).sum()
    loss.backward()
    assert images.grad.abs().sum() > 0 and 'discriminator' in features.name
    # One of two is found too.
    beside = network.state_dict() | {'projected.heads.weight': torch.zeros(1)}
    checkpoint.save(tmp_path / 'both.pt', {'g_ema': state, 'd': beside})
    assert load_features(opt, tmp_path / 'both.pt', 16, torch.device('cpu')) is not None
    assert load_features(opt, loaded_tiny.path, 16, torch.device('cpu')) is None


def test_features_are_left_out_where_the_pixels_are_near(inverter, known):
    """The images of the model's own take less time without, and a photo beside one keeps its features."""
    images, truth = known
    seen = []

    class Counting:
        name = 'counting'

        def maps(self, images):
            seen.append(len(images))
            return [images]

    inverter = dataclasses.replace(inverter, features=Counting())
    other = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near = Fitting(inverter, images[:1], truth.select([0]))
    assert [set(terms) & {'features'} for _, terms in near.run(2)] == [set()] * 3 and seen == [1]  # of the target
    fitting = Fitting(inverter, torch.cat([images[:1], other]), truth.select([0, 0]))
    features = fitting.terms(fitting.latents())['features']
    assert features[0] == 0 and features[1] > 0
    fitting.error = torch.tensor([1., 0.])  # the beginning decides
    again = fitting.terms(fitting.latents())['features']
    assert again[0] == 0 and again[1] > 0


def test_a_torchscript_network_gives_features(loaded_tiny, tmp_path):
    opt = loaded_tiny.opt
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(str(tmp_path / 'conv.pt'))
    opt.evaluation.features = str(tmp_path / 'conv.pt')
    features = load_features(opt, loaded_tiny.path, 16, torch.device('cpu'))
    assert features.maps(torch.zeros(1, 3, 16, 16))[0].shape[1] == 4
    conv = torch.nn.Conv2d(3, 4, 3)
    conv.weight.data.fill_(math.nan)
    torch.jit.script(conv).save(str(tmp_path / 'conv.pt'))
    with pytest.raises(UserError, match='conv.pt .* gives feature maps .* that are not finite numbers'):
        load_features(opt, loaded_tiny.path, 16, torch.device('cpu'))
    torch.jit.script(torch.nn.Linear(3, 4)).save(str(tmp_path / 'conv.pt'))
    with pytest.raises(UserError, match='cannot take images'):
        load_features(opt, loaded_tiny.path, 16, torch.device('cpu'))


# ---------------------------------------------------------------------------------------------- photos

def test_sources_have_names_of_their_own(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        Image.new('RGB', (40, 20), 'red').save(tmp_path / folder / 'my cat.png')
    for name in ('My-Cat-2.png', 'my cat 2.png'):
        Image.new('RGB', (40, 20), 'red').save(tmp_path / 'b' / name)
    found, left_out = sources([tmp_path / 'a', tmp_path / 'b' / 'my cat.png', tmp_path / 'b'])
    assert [source.name for source in found] == ['my-cat', 'my-cat-2', 'My-Cat-2-2', 'my-cat-2-3', 'my-cat-3']
    assert not left_out
    crop = cropped(found[1], 32)
    assert crop.image.size == (32, 32) and 'only 40x20 pixels' in crop.note
    (tmp_path / 'a/link.png').symlink_to('nowhere.png')
    assert sources([tmp_path / 'a'])[1] == [f'{tmp_path / "a"}: not taken: links that lead nowhere (1)']
    with pytest.raises(UserError, match='name the photos'):
        sources([])


def test_verdicts(inverter, known):
    fitting = Fitting(inverter, known[0], known[1])
    fitting.keep(fitting.latents(), torch.zeros(3))
    found = fitting.found.select(0)
    assert verdict(inverter, found, 30.) == 'sure' and verdict(inverter, found, 20.) == 'fairly sure'
    assert 'unlike the photo' in verdict(inverter, found, 12.)
    assert 'standard deviations' in verdict(inverter, found._replace(u=found.u + 5), 30.)
    assert 'further round' in verdict(inverter, found._replace(viewpoint=found.viewpoint + 3), 30.)
