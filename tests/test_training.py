"""Training: what must not change the gradient does not, resuming is exact, bad input is refused, logs are written."""
import json
import sys
import types

import pytest
import torch
from conftest import assert_close
from PIL import Image
from tiny_training import IMAGES, data, differences, flags, newest, train  # noqa: F401 (data: a fixture)

import checkpoint
import losses
import options
import train_full_pipeline as stage2
import train_volume_renderer as stage1
from dataset import make_loader
from model import Discriminator, VolumeDiscriminator, build_generator, minibatch_stddev
from training import logs, processes, random_numbers, run
from training.augmentation import Strength
from training.state import State
from utils import UserError
from volume_renderer import TRAINING_POINTS, VolumeRenderer, draw

BOTH = pytest.mark.parametrize('stage', ('volume_renderer', 'full_pipeline'))


@pytest.fixture
def double():
    """Double precision: what should be equal is equal to ten digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope='session')
def renderer(data, tmp_path_factory):  # noqa: F811
    """A stage-1 result."""
    folder = tmp_path_factory.mktemp('stage1')
    train('volume_renderer', folder, flags(data, '--iter 1'))
    return folder / 'pretrained_renderer' / 'debug_vol_renderer.pt'


def tiny(command, batch=4, more=''):
    return options.parse(command, '', flags('none', f'--batch {batch} {more}'))


def tiny_generator(opt):
    """A full generator as stage 2 trains it, in the default precision."""
    torch.manual_seed(0)
    generator = build_generator(opt).requires_grad_(False)
    generator.decoder.requires_grad_(True)
    generator.decoder.dtype = torch.get_default_dtype()
    return generator


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


# ---------------------------------------------------------------------------------------------- random draws

def test_draws_depend_on_seed_purpose_step_and_image_alone():
    opt = tiny('train_volume_renderer')
    whole = random_numbers.draw_fakes(opt, 'generator', 7, range(4), 'cpu')
    part = random_numbers.draw_fakes(opt, 'generator', 7, range(2, 4), 'cpu')
    assert torch.equal(whole.z[2:], part.z) and torch.equal(whole.second[2:], part.second)
    assert torch.equal(whole.cameras.extrinsics[2:], part.cameras.extrinsics)
    assert torch.equal(draw(torch.rand, (4, 3), whole.random)[2:], draw(torch.rand, (2, 3), part.rngs))
    assert not torch.equal(whole.z, whole.second)
    for other in (random_numbers.draw_fakes(opt, 'discriminator', 7, range(4), 'cpu'),
                  random_numbers.draw_fakes(opt, 'generator', 8, range(4), 'cpu'),
                  random_numbers.draw_fakes(options.replaced(opt, seed=5), 'generator', 7, range(4), 'cpu')):
        assert not (whole.z == other.z).any()


def test_draws_have_the_right_distribution():
    opt = tiny('train_volume_renderer', more='--azim 0.3 --elev 0.1')
    fakes = random_numbers.draw_fakes(opt, 'generator', 0, range(4000), 'cpu')
    assert abs(fakes.z.mean()) < 0.03 and abs(fakes.z.std() - 1) < 0.03
    assert_close(fakes.cameras.viewpoint.std(0), torch.tensor([0.3, 0.1]), 0.05)
    switches = [stage2.mixing(opt, 'generator', step, 4) for step in range(500)]
    assert set(switches) == {None, 1, 2, 3}
    assert 0.05 < switches.count(None) / 500 < 0.15


# ---------------------------------------------------------------------------------------------- chunks

@pytest.mark.parametrize('chunk', (1, 2))
def test_chunks_do_not_change_the_gradient_of_stage_1(double, chunk):
    opt = tiny('train_volume_renderer')
    torch.manual_seed(0)
    generator, discriminator = build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, True, 0.02)
    real = torch.randn(4, 3, 8, 8)
    for accumulate, module in (
            (lambda fakes, size: stage1.accumulate_discriminator(discriminator, generator, real, fakes, opt, size),
             discriminator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size), generator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size, 0.5),
             generator)):
        found = []
        for size in (4, chunk):
            module.zero_grad()
            terms = accumulate(random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), size)
            found.append((terms, gradients(module)))
        check_same(*found)
    assert set(terms) == {'g', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere', 'surface', 'fog'}


@pytest.mark.parametrize(('batch', 'chunk'), ((4, 1), (4, 2), (8, 2), (8, 4), (6, 3)))
def test_chunks_do_not_change_the_gradient_of_stage_2(double, batch, chunk):
    opt = tiny('train_full_pipeline', batch)
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4, torch.get_default_dtype())
    real, directions = torch.randn(batch, 3, 16, 16), torch.randn(batch, 3, 16, 16)
    rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(batch), 'cpu'), switch=2)
    alone = processes.Processes('cpu')
    for accumulate, module in (
            (lambda size: stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, size, True),
             discriminator),
            (lambda size: stage2.accumulate_generator(generator, discriminator, rendered, size), generator),
            (lambda size: stage2.accumulate_path_length(generator, rendered, directions, torch.tensor(0.3), opt, size,
                                                        alone)[0], generator)):
        found = []
        for size in (batch, chunk):
            module.zero_grad()
            found.append((accumulate(size), gradients(module)))
        check_same(*found)
    assert all(parameter.grad is None for name, parameter in generator.named_parameters()
               if not name.startswith('decoder.'))


@pytest.mark.parametrize('more', ('', '--no_sdf'))
def test_rays_in_tiles_have_the_same_gradient(double, monkeypatch, more):
    opt = tiny('train_volume_renderer', more=more)
    generator, discriminator = build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, True, 0.02)
    tile_sizes, found = [], []
    march = VolumeRenderer._march
    monkeypatch.setattr(VolumeRenderer, '_march', lambda self, *arguments: (
        tile_sizes.append(arguments[4].shape[1]), march(self, *arguments))[1])
    for points in (1 << 20, 500):
        monkeypatch.setitem(TRAINING_POINTS, 'cpu', points)
        generator.zero_grad()
        terms = stage1.accumulate_generator(generator, discriminator,
                                            random_numbers.draw_fakes(opt, 'g', 0, range(4), 'cpu'), opt, 4)
        found.append((terms, gradients(generator)))
    check_same(*found)
    assert tile_sizes[0] == 64 and max(tile_sizes[1:]) < 64


def test_half_precision_learns_the_same():
    opt, found = tiny('train_full_pipeline'), []
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 8)
    real = torch.randn(4, 3, 16, 16)
    for precision in (torch.float32, torch.bfloat16):
        generator.decoder.dtype = discriminator.dtype = precision
        rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), switch=2)
        for module in (generator, discriminator):
            module.zero_grad()
        stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, 4, True)
        stage2.accumulate_generator(generator, discriminator, rendered, 4)
        found.append([torch.cat([gradient.flatten() for gradient in gradients(module).values()])
                      for module in (generator, discriminator)])
    for full, half in zip(*found, strict=True):
        assert half.isfinite().all() and not torch.equal(full, half)
        assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99


def check_same(found, other):
    terms, wanted = found
    assert terms.keys() == other[0].keys() and wanted.keys() == other[1].keys() and wanted
    for name, value in terms.items():
        assert_close(other[0][name], value, 1e-9, name)
    for name, gradient in wanted.items():
        # Against the largest gradient of all: some are zero but for rounding.
        assert (other[1][name] - gradient).abs().max() <= 1e-9 * max(g.abs().max() for g in wanted.values()), name


def test_the_chunked_path_penalty_is_the_plain_one(double):
    opt = tiny('train_full_pipeline')
    generator = tiny_generator(opt)
    rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'path', 0, range(4), 'cpu'), None)
    directions = torch.randn(4, 3, 16, 16)
    mean = torch.tensor(0.3)
    stage2.accumulate_path_length(generator, rendered, directions, mean, opt, 2, processes.Processes('cpu'))
    accumulated = gradients(generator)
    generator.zero_grad()
    images, latents = stage2.decode(generator, rendered)
    penalty, _ = losses.path_length_penalty(losses.path_lengths(images, latents, directions), mean)
    (opt.training.path_regularize * opt.training.g_reg_every * penalty).backward()
    for name, gradient in gradients(generator).items():
        if name in accumulated or gradient.abs().max() > 0:
            assert_close(accumulated[name], gradient, 1e-9, name)


def test_the_discriminator_compares_consecutive_images(double):
    torch.manual_seed(0)
    discriminator, images = Discriminator(16, 1, 4), torch.randn(8, 3, 16, 16)
    separately = torch.cat([discriminator(images[:4]), discriminator(images[4:])])
    assert_close(stage2.judge(discriminator, images).flatten().sort()[0], separately.flatten().sort()[0], 1e-12)
    features = torch.randn(6, 2, 4, 4)
    assert minibatch_stddev(features)[:, -1].unique().numel() == 2  # groups of three


# ---------------------------------------------------------------------------------------------- state

def test_ema():
    opt = tiny('train_full_pipeline')
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4)
    state = State(generator, discriminator, *(run.adam(module.parameters(), 1e-3, (0., 0.99))
                                                       for module in (generator.decoder, discriminator)))
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 1
    for _ in range(3):
        state.update_ema()
    weight = 1 - 0.5 ** (32 / 10_000 * 3)
    for name, tensor in state.g_ema.state_dict().items():
        trained = name in dict(generator.decoder.named_parameters(prefix='decoder'))
        assert_close(tensor, before[name] + (weight if trained else 0), 1e-5, name)


def test_lazy_regularization_corrects_rate_and_decay():
    lr, betas = stage2.lazy(4, 0.002)
    assert (lr, betas) == (0.002 * 0.8, (0., 0.99 ** 0.8))
    assert stage2.lazy(0, 0.002) == (0.002, (0., 0.99))


# ---------------------------------------------------------------------------------------------- resuming

@BOTH
@pytest.mark.parametrize('more', (
    '', '--augment --augment_images 300 --augment_target 0 --sphere_lambda 1 --sphere_fade'))
def test_resuming_is_exact(stage, more, data, renderer, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Strength, 'INTERVAL', 4)
    monkeypatch.setattr(Strength, 'FIRST', 0.5)
    text = f'--renderer_ckpt {renderer} {more}'
    train(stage, tmp_path / 'whole', flags(data, f'{text} --iter 5'))
    train(stage, tmp_path / 'parts', flags(data, f'{text} --iter 2'))
    train(stage, tmp_path / 'parts', flags(data, f'{text} --iter 5 --continue_training --num_workers 2'))
    (steps, whole), (_, parts) = newest(tmp_path / 'whole', stage), newest(tmp_path / 'parts', stage)
    assert steps == whole['iteration'] == 5 and whole['images'] == 20
    assert {'g', 'd', 'g_ema', 'g_optim', 'd_optim', 'options'} <= whole.keys()
    assert differences(whole, parts) == []
    assert differences(whole, newest(tmp_path / 'whole', stage)[1] | {'iteration': 4}) == ['.iteration']
    lines = logs.read_stats(tmp_path / 'parts' / 'checkpoint' / 'debug' / stage / 'stats.jsonl')
    assert not more or len({line['augment'] for line in lines}) > 1
    assert [line['iteration'] for line in lines] == [1, 2, 3, 4, 5]


def test_a_spent_time_saves_and_goes_on(data, tmp_path, capsys):  # noqa: F811
    two = '--iter 2 --sphere_iters 2'
    train('volume_renderer', tmp_path / 'whole', flags(data, two))
    train('volume_renderer', tmp_path / 'parts', flags(data, f'{two} --max_minutes 1e-6'))
    assert not list(tmp_path.glob('parts/checkpoint/debug/volume_renderer/models_*'))  # still making the sphere
    for _ in range(3):
        train('volume_renderer', tmp_path / 'parts', flags(data, f'{two} --max_minutes 1e-6 --continue_training'))
    assert 'Stopped; --continue_training goes on from' in capsys.readouterr().out
    whole, parts = newest(tmp_path / 'whole', 'volume_renderer'), newest(tmp_path / 'parts', 'volume_renderer')
    assert whole[0] == parts[0] == 2
    assert differences(whole[1], parts[1]) == []
    assert (tmp_path / 'parts' / 'pretrained_renderer' / 'debug_vol_renderer.pt').exists()


def test_the_newest_whole_checkpoint_is_taken(data, tmp_path, capsys):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 4 --save_every 1 --keep_checkpoints 3'))
    folder = tmp_path / 'checkpoint' / 'debug' / 'volume_renderer'
    assert sorted(path.name for path in folder.glob('models_*')) == [f'models_000000{i}.pt' for i in (2, 3, 4)]
    newest_path = folder / 'models_0000004.pt'
    newest_path.write_bytes(newest_path.read_bytes()[:5000])
    (folder / '.models_0000005-x.pt').write_bytes(b'left over by a kill')
    train('volume_renderer', tmp_path, flags(data, '--iter 5 --continue_training'))
    said = capsys.readouterr().out
    assert 'Passing over a checkpoint' in said and 'models_0000003.pt (3 steps done)' in said
    assert newest(tmp_path, 'volume_renderer')[0] == 5
    assert not list(folder.glob('.models_*'))


@BOTH
def test_an_official_checkpoint_to_start_from(stage, data, renderer, tmp_path, capsys):  # noqa: F811
    """Official files hold nothing but state dicts, some only the EMA, and noise maps of other sizes."""
    train(stage, tmp_path / 'first', flags(data, f'--renderer_ckpt {renderer} --iter 1'))
    saved = newest(tmp_path / 'first', stage)[1]
    official = {key: saved[key] for key in ('g', 'd', 'g_ema')}
    if stage == 'full_pipeline':
        for key in ('g', 'g_ema'):
            official[key]['decoder.noises.noise_1'] = torch.zeros(1, 1, 32, 32)
    folder = tmp_path / 'resumed' / 'checkpoint' / 'debug' / stage
    checkpoint.save(folder / 'models_0000007.pt', official)
    train(stage, tmp_path / 'resumed', flags(data, '--iter 9 --continue_training'))
    assert newest(tmp_path / 'resumed', stage)[0] == 9
    assert 'holds no g_optim' in capsys.readouterr().out

    checkpoint.save(tmp_path / 'only.pt', {'g_ema': official['g_ema']})
    train(stage, tmp_path / 'begun', flags(data, f'--iter 1 --init_ckpt {tmp_path / "only.pt"}'))
    begun = newest(tmp_path / 'begun', stage)[1]
    name = 'renderer.network.sigma_linear.weight'
    assert (begun['g_ema'][name] - official['g_ema'][name]).abs().max() < 1e-2
    assert not (tmp_path / 'begun' / 'checkpoint' / 'debug' / stage / 'models_0000000.pt').exists()  # no sphere


def test_stage_1_begins_with_the_field_of_a_full_model(data, renderer, tmp_path, capsys):  # noqa: F811
    train('full_pipeline', tmp_path, flags(data, f'--iter 1 --renderer_ckpt {renderer}'))
    full = tmp_path / 'full_models' / 'debug.pt'
    train('volume_renderer', tmp_path / 'field', flags(data, f'--iter 1 --lr_g 1e-9 --init_ckpt {full}'))
    assert 'holds no discriminator of these sizes' in capsys.readouterr().out
    for name, tensor in newest(tmp_path / 'field', 'volume_renderer')[1]['g'].items():
        assert_close(tensor, checkpoint.read(full)['g'][name], 1e-6, name)


def test_photos_are_mirrored_unless_told(data, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr(run, 'make_loader', lambda dataset, sampler, *rest: seen.append(
        [sampler[i][1] for i in range(40)]) or make_loader(dataset, sampler, *rest))
    for name, more in (('a', ''), ('b', '--no_mirror')):
        train('volume_renderer', tmp_path / name, flags(data, f'--iter 1 --no_sphere_init {more}'))
    assert 5 < sum(seen[0]) < 35 and not any(seen[1])


def test_a_field_goes_on_at_another_resolution(data, tmp_path, capsys):  # noqa: F811
    train('volume_renderer', tmp_path / 'a', flags(data, '--iter 1 --no_sphere_init'))
    path = tmp_path / 'a' / 'pretrained_renderer' / 'debug_vol_renderer.pt'
    train('volume_renderer', tmp_path / 'b', flags(data, f'--iter 1 --renderer_spatial_output_dim 16 --lr_g 1e-9 '
                                                         f'--init_ckpt {path}'))
    assert 'holds no discriminator of these sizes' in capsys.readouterr().out
    for name, tensor in newest(tmp_path / 'b', 'volume_renderer')[1]['g'].items():
        assert_close(tensor, checkpoint.read(path)['g'][name], 1e-6, name)

    train('volume_renderer', tmp_path / 'c', flags(data, '--iter 1 --lr_g 1e-9 --initial_beta 0.02 '
                                                         f'--init_ckpt {path}'))
    for key in ('g', 'g_ema'):
        assert abs(newest(tmp_path / 'c', 'volume_renderer')[1][key]['renderer.sigmoid_beta'] - 0.02) < 1e-6


def test_the_official_sphere_is_taken_if_it_fits(data, tmp_path, capsys):  # noqa: F811
    train('volume_renderer', tmp_path / 'a', flags(data, '--iter 1'))
    sphere = checkpoint.read(tmp_path / 'a' / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    for name in 'bc':
        checkpoint.save(tmp_path / name / 'pretrained_renderer' / 'sphere_init.pt', {'g_ema': sphere['g_ema']})
    train('volume_renderer', tmp_path / 'b', flags(data, '--iter 1'))
    train('volume_renderer', tmp_path / 'c', flags(data, '--iter 1 --width 4'))
    said = capsys.readouterr().out
    assert 'Beginning with the sphere of' in said and 'has other sizes than this model' in said
    first = checkpoint.read(tmp_path / 'b' / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    assert differences(first['g'], sphere['g']) == []


def test_the_sphere_is_a_sphere(data, tmp_path):  # noqa: F811
    """After enough steps the field's zero level lies at a quarter of the depth range from the origin."""
    check_sphere(data, tmp_path, 0.06, '')


def test_the_sphere_has_the_radius_that_is_asked_for(data, tmp_path):  # noqa: F811
    check_sphere(data, tmp_path, 0.09, '--sphere_radius 0.09')


def check_sphere(data, tmp_path, radius, more):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --sphere_iters 300 --width 32 --lr_g 2e-4 ' + more))
    saved = checkpoint.read(tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    opt = tiny('train_volume_renderer', more='--width 32')
    generator = build_generator(opt, full_pipeline=False)
    generator.load_state_dict(saved['g_ema'])
    points = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    field = generator.renderer.network.fold(generator.map(torch.randn(1, 8)))
    for distance in (0.02, 0.06, 0.1):
        sdf = field.sdf(field.hidden(points[None] * distance / 0.12))
        assert abs(sdf.mean() - (distance - radius)) < 0.02


def test_the_hold_of_the_sphere_fades_and_beta_begins_where_it_is_told(data, tmp_path):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 6 --no_sphere_init --sphere_lambda 2 --sphere_until 4 '
                                             '--initial_beta 0.02 --lr_g 1e-8'))
    lines = logs.read_stats(tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl')
    held = [line.get('g_sphere') for line in lines]
    assert held[4:] == [None, None]
    assert held[0] > 0 and abs(held[3] / held[0] - 0.25) < 0.1  # the same field, so the weight alone changes
    assert all(abs(line['beta'] - 0.02) < 1e-6 for line in lines)


# ---------------------------------------------------------------------------------------------- the two stages

def test_stage_2_takes_stage_1_by_name_and_leaves_it_alone(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --azim 0.2'))
    sizes = ('--style_dim', '--width', '--depth', '--N_samples', '--renderer_spatial_output_dim')
    arguments = flags(data, '--iter 2')
    for name in sizes:  # all read from stage 1's result
        place = arguments.index(name)
        del arguments[place:place + 2]
    train('full_pipeline', tmp_path, arguments)
    assert 'was trained with' in capsys.readouterr().out
    stage_1 = checkpoint.read(tmp_path / 'pretrained_renderer' / 'debug_vol_renderer.pt')['g_ema']
    full = checkpoint.read(tmp_path / 'full_models' / 'debug.pt')
    for key in ('g', 'g_ema'):
        assert differences({name: full[key][name] for name in stage_1}, stage_1) == []
    assert full['options']['camera']['azim'] == 0.2
    monkeypatch.chdir(tmp_path)
    generator, opt, *_ = checkpoint.load_generator(options.parse('generate_shapes_and_images', '', []), 'cpu')
    assert (opt.model.size, opt.model.renderer_spatial_output_dim, opt.camera.azim) == (16, 8, 0.2)
    assert differences(dict(generator.state_dict()), full['g_ema']) == []

    train('full_pipeline', tmp_path, [*arguments, '--iter', '3', '--continue_training'])  # and from its own checkpoint
    assert newest(tmp_path, 'full_pipeline')[0] == 3


def test_the_decoder_is_drawn_to_the_thumbnail(data, tmp_path):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 1'))
    far = []
    for weight in ('1e-9', '100'):
        train('full_pipeline', tmp_path, flags(data, f'--iter 30 --expname by_{weight} --lr 0.01 '
                                               '--renderer_ckpt pretrained_renderer/debug_vol_renderer.pt '
                                               f'--thumbnail_lambda {weight}'))
        lines = logs.read_stats(tmp_path / 'checkpoint' / f'by_{weight}' / 'full_pipeline' / 'stats.jsonl')
        far.append(lines[-1]['g_thumbnail'] / float(weight))
    assert far[1] < far[0] / 2


# ---------------------------------------------------------------------------------------------- bad input

BAD = {
    'no data set': ('volume_renderer', '--dataset_path nowhere', 'nowhere does not exist'),
    'no such size': ('volume_renderer', '--size 32', 'size 32'),
    'batch of one': ('volume_renderer', '--batch 1', '--batch 1 is too small'),
    'chunks that leave a rest': ('full_pipeline', '--batch 6 --chunk 4', '--batch 6 is not divisible by --chunk 4'),
    'too many workers': ('volume_renderer', f'--num_workers {IMAGES + 1}', f'more than the {IMAGES} images'),
    'a file in the way': ('volume_renderer', '--checkpoints_dir file', '--checkpoints_dir file/debug/volume_renderer'),
    'no stage 1': ('full_pipeline', '', 'no stage-1 result pretrained_renderer/debug_vol_renderer.pt'),
    'no such renderer': ('full_pipeline', '--renderer_ckpt none.pt', 'none.pt does not exist'),
    'no such start': ('volume_renderer', '--init_ckpt none.pt', 'none.pt does not exist'),
    'half precision': ('volume_renderer', '--precision fp16', '--precision fp16'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, data, tmp_path):  # noqa: F811
    stage, text, message = BAD[name]
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError) as refused:
        train(stage, tmp_path, flags(data, text))
    assert message in str(refused.value)
    assert not list(tmp_path.rglob('*.pt'))


def test_images_are_no_smaller_than_thumbnails(data, renderer, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match='--size 16 is less than .* 32.; give'):
        train('full_pipeline', tmp_path, flags(data, f'--renderer_ckpt {renderer} --renderer_spatial_output_dim 32'))
    assert not list(tmp_path.iterdir())


def test_no_run_is_overwritten_and_none_goes_on_with_other_options(data, tmp_path):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 1'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pt')}
    with pytest.raises(UserError, match='holds checkpoints already; add --continue_training'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2'))
    with pytest.raises(UserError, match='debug_vol_renderer.pt is there already'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --checkpoints_dir elsewhere'))
    with pytest.raises(UserError, match='--batch 4 there, 2 here; --lr_g 0.001 there, 0.1 here; --azim 0.3 there'):
        train('volume_renderer', tmp_path,
              flags(data, '--iter 2 --continue_training --batch 2 --lr_g 0.1 --azim 0.7 --save_every 7'))
    with pytest.raises(UserError, match='--width 9 contradicts'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --continue_training --width 9'))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pt')}


def test_stage_2_names_the_unfinished_stage_1(data, tmp_path):  # noqa: F811
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --no_sphere_init --max_minutes 1e-6'))
    with pytest.raises(UserError, match='newest checkpoint so far is checkpoint/debug/volume_renderer/models_'):
        train('full_pipeline', tmp_path, flags(data))


@pytest.mark.parametrize('saved', (False, True))
def test_nan_stops_before_any_weight_changes(saved, data, tmp_path, monkeypatch):  # noqa: F811
    true_loss, calls = losses.minimal_surface_loss, []

    def diverging(sdf, beta):
        calls.append(1)
        return true_loss(sdf, beta) * (float('inf') if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, 'minimal_surface_loss', diverging)
    text = '--iter 9 --no_sphere_init' + (' --save_every 2' if saved else '')
    with pytest.raises(UserError) as stopped:
        train('volume_renderer', tmp_path, flags(data, text))
    assert 'step 3: g_minimal_surface' in str(stopped.value)
    good = 'the last good checkpoint is checkpoint/debug/volume_renderer/models_0000002.pt'
    assert (good if saved else 'there is no checkpoint yet') in str(stopped.value)
    assert len(list(tmp_path.rglob('models_*.pt'))) == saved


# ---------------------------------------------------------------------------------------------- logs

@BOTH
def test_logs_and_samples(stage, data, renderer, tmp_path):  # noqa: F811
    train(stage, tmp_path, flags(data, f'--renderer_ckpt {renderer} --iter 5 --log_every 2 --sample_every 4 '
                                       '--val_n_sample 2'))
    folder = tmp_path / 'checkpoint' / 'debug' / stage
    lines = logs.read_stats(folder / 'stats.jsonl')
    assert [line['iteration'] for line in lines] == [2, 4, 5]
    names = {'iteration', 'd', 'g', 'r1', 'real_score', 'fake_score', 'd_gradient', 'g_gradient', 'beta',
             'seconds_per_step', 'images_per_second', 'peak_memory_gib'}
    names |= {'path', 'path_length', 'path_gradient'} if stage == 'full_pipeline' else \
        {'d_view', 'g_view', 'g_eikonal', 'g_minimal_surface'}
    assert lines[0].keys() == names
    assert all(value > 0 for name, value in lines[0].items() if 'score' not in name)
    assert Image.open(folder / 'progress.png').size[0] > 500
    side = 8 if stage == 'volume_renderer' else 16
    grids = {path.name: Image.open(path).size for path in (folder / 'samples').iterdir()}
    wanted = {f'{step:07d}.png' for step in (0, 4, 5)}
    wanted |= {name.replace('.', '_shape.') for name in wanted} if stage == 'volume_renderer' else set()
    assert grids == dict.fromkeys(wanted, (8 * side, 2 * side))


def test_progress_shows_beta_and_its_line(tmp_path, monkeypatch):
    drawn = []
    savefig = logs.Figure.savefig
    monkeypatch.setattr(logs.Figure, 'savefig', lambda self, *rest, **more: (drawn.append(self),
                                                                                savefig(self, *rest, **more)))
    logs.plot_progress([{'iteration': i, 'd': 1., 'beta': 0.1 / i, 'new_name': 3} for i in range(1, 1000)],
                           tmp_path / 'progress.png')
    titles = {axes.get_title(): axes for axes in drawn[0].axes}
    assert set(titles) == {'adversarial losses', 'beta'}
    curve, line = titles['beta'].lines
    assert list(line.get_ydata()) == [3e-3, 3e-3]
    assert len(curve.get_xdata()) == logs.CURVE_POINTS
    assert curve.get_ydata()[-1] == pytest.approx(1e-4, rel=0.01)


def test_stats_of_steps_that_are_done_again_are_cut_off(tmp_path):
    path = tmp_path / 'stats.jsonl'
    path.write_text(''.join(json.dumps({'iteration': i}) + '\n' for i in range(1, 8)) + '{"iteration": 8, "d"')
    logs.Log(tmp_path, tiny('train_volume_renderer'), iteration=5)
    assert [line['iteration'] for line in logs.read_stats(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('fault', ('import', 'init', 'log', None))
def test_wandb_never_stops_training(fault, data, tmp_path, monkeypatch):  # noqa: F811
    logged = []

    def fail(name, result):
        if fault == name:
            raise ConnectionError('no network')
        return result

    class Wandb(types.ModuleType):
        Image = staticmethod(str)

        def init(self, **settings):
            return fail('init', types.SimpleNamespace(log=lambda values, **_: fail('log', logged.append(values))))

    monkeypatch.setitem(sys.modules, 'wandb', None if fault == 'import' else Wandb('wandb'))
    train('volume_renderer', tmp_path, flags(data, '--iter 3 --wandb --sample_every 2'))
    assert newest(tmp_path, 'volume_renderer')[0] == 3
    if fault is None:
        assert [values['iteration'] for values in logged if 'd' in values] == [1, 2, 3]
        assert any('samples' in values for values in logged)
