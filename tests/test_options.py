"""The option tree: the original's flags and defaults, config files, and errors instead of guesses."""
import json
import re
import subprocess
import sys

import pytest
from conftest import GOLDEN, ROOT

import options
from inversion.search import IDENTITIES
from options import COMMANDS, GROUPS, parse, replaced
from utils import UserError

COMMAND = 'generate_shapes_and_images'


def test_every_flag_and_default_of_the_original():
    expected = json.loads((GOLDEN / 'original.json').read_text())['flags']
    assert len(expected) > 55
    defaults = {flag.name: flag.default for flags in GROUPS.values() for flag in flags}
    for name, value in expected.items():
        assert name in defaults, name
        if value == 'off':
            assert defaults[name] is False, name
        elif isinstance(defaults[name], str):
            assert defaults[name] == value, name
        else:
            assert float(defaults[name]) == float(value), name


def test_each_flag_has_one_group_and_a_help():
    names = [flag.name for flags in GROUPS.values() for flag in flags]
    assert len(names) == len(set(names))
    assert all(flag.help for flags in GROUPS.values() for flag in flags)


def help_of(command, argument, capsys):
    """The flags that a command's help shows."""
    with pytest.raises(SystemExit) as end:
        parse(command, 'does things', [argument])
    assert end.value.code == 0
    return set(re.findall(r'--(\w+)\b', capsys.readouterr().out))


SHOWN = {  # command: (flags that its help shows, flags that it does not show)
    'train_volume_renderer': ('batch lr_g view_lambda sphere_iters discriminator_width size width azim perturb',
                              'mixing lr d_reg_every thumbnail_lambda renderer_ckpt channel_max ckpt seeds n_mlp'),
    'train_full_pipeline': ('batch lr mixing path_regularize thumbnail_lambda renderer_ckpt dense channel_max',
                            'lr_g lr_d view_lambda sphere_lambda initial_beta discriminator_width frames'),
    'generate_shapes_and_images': ('expname ckpt seeds num_views_per_id vertex_colors azim N_samples precision',
                                   'dataset_path batch width size perturb force_background frames project_noise'),
    'render_video': ('seeds frames project_noise azim_video mesh_format', 'N_samples num_views_per_id metrics out'),
    'evaluate': ('metrics dataset_path num_workers truncation_ratio', 'seeds identities save_every'),
    'export_model': ('out expname', 'identities precision'),
    'invert_photos': ('expname truncation_ratio', 'seeds identities latents'),
    'find_directions': ('expname truncation_ratio', 'seeds latents'),
    'app': ('port share truncation_mean', 'page results_dir'),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_shows_the_flags_that_it_uses_and_accepts_all(command, capsys):
    shown, hidden = (set(names.split()) for names in SHOWN[command])
    said = help_of(command, '--help_all', capsys)
    assert shown <= said and not hidden & said
    assert help_of(command, '--help', capsys) >= {  # it names the further flags too
        flag.name for flag in options.FLAGS.values() if flag.shown_by(command) and not flag.positional}
    opt = parse(command, '', ['--dataset_path', 'elsewhere', '--r1', '50', '--identities', '3', '--size', '512'])
    assert (opt.dataset.dataset_path, opt.training.r1, opt.inference.identities, opt.model.size) \
        == ('elsewhere', 50, 3, 512)
    assert opt.given == {'dataset_path', 'r1', 'identities', 'size'} and opt.command == command


@pytest.mark.parametrize('command', COMMANDS)
def test_help_explains_what_is_used_most_and_fits_a_screen(command, capsys):
    with pytest.raises(SystemExit):
        parse(command, 'does things', ['--help'])
    explained, further = capsys.readouterr().out.split('further flags')
    assert 2 <= len(set(re.findall(r'^  --(\w+)', explained, re.MULTILINE)) - {'help_all', 'config'}) <= 13
    assert len(explained.splitlines()) + len(further.splitlines()) <= 65 and '--expname' in explained
    assert all(len(line) <= 80 for line in further.splitlines())


def test_scopes_make_sense():
    for flag in (flag for flags in GROUPS.values() for flag in flags):
        scope = flag.scope
        assert set(scope.commands) <= set(COMMANDS) and scope.settled in ('', 'weights', 'options'), flag.name
        assert {*flag.defaults, *flag.forced, *flag.frequent} <= set(scope.commands), flag.name
        assert all(flag.shown_by(command) for command in flag.frequent), flag.name
        assert not scope.inherited or {options.STAGE_1, options.STAGE_2} <= set(scope.commands), flag.name
        assert not scope.fixed or set(scope.commands) & set(options.TRAINING), flag.name
        assert scope.commands or flag.help.startswith('accepted because'), flag.name


def test_inference_forces_what_it_must():
    for command in (COMMAND, 'render_video'):
        rendering = parse(command, '', ['--perturb', '1']).rendering
        assert (rendering.perturb, rendering.force_background, rendering.static_viewdirs) == (0, True, True)
    assert parse('render_video', '', []).rendering.N_samples == 64
    assert parse('train_volume_renderer', '', []).rendering.perturb == 1


def test_a_flag_that_is_not_followed_is_said_so(tmp_path, capsys):
    config = tmp_path / 'training.txt'
    config.write_text('N_samples = 24\nstatic_viewdirs = true\n')
    assert parse('render_video', '', ['--config', str(config), '--perturb', '1', '--size', '512']).model.size == 512
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith('render_video always runs with ')
    assert set(line.partition(' with ')[2].split(', ')) == {'N_samples 64 (not 24)', 'perturb 0.0 (not 1.0)'}
    parse('render_video', '', ['--N_samples', '64', '--perturb', '0', '--force_background'])  # it does run with these
    parse(COMMAND, '', ['--N_samples', '12'])  # and this command with that
    parse('train_volume_renderer', '', ['--perturb', '0.5', '--raw_noise_std', '1'])
    assert capsys.readouterr().out == ''


def test_stage_1_stops_earlier_unless_told():
    assert parse('train_volume_renderer', '', []).training.iter == 200000
    assert parse('train_volume_renderer', '', ['--iter', '300000']).training.iter == 300000
    assert parse('train_full_pipeline', '', []).training.iter == 300000


def test_config_file_and_command_line(tmp_path):
    config = tmp_path / 'cats.txt'
    config.write_text('# cats\nsize = 512\nazim: 0.15\nuniform = true\nseeds = 1-3\n')
    opt = parse(COMMAND, '', ['--config', str(config), '--azim', '0.2'])
    assert (opt.model.size, opt.camera.azim, opt.camera.uniform, opt.inference.seeds) == (512, 0.2, True, (1, 2, 3))
    assert {'size', 'azim', 'uniform', 'seeds'} <= opt.given


@pytest.mark.parametrize('text, seeds', [
    ('0-3,42', (0, 1, 2, 3, 42)), ('7', (7,)), ('2,1,2', (2, 1)), (' 1, 3-4', (1, 3, 4))])
def test_seeds(text, seeds):
    assert parse(COMMAND, '', ['--seeds', text]).inference.seeds == seeds


@pytest.mark.parametrize('arguments, named', [
    (['--sise', '3'], '--sise'), (['--siz', '256'], '--siz'), (['stray'], 'stray'),
    (['--size', '300'], '--size'), (['--size', '4'], '--size'), (['--size', 'big'], '--size'),
    (['--identities', '0'], '--identities'), (['--identities', '-3'], '--identities'),
    (['--num_views_per_id', '0'], '--num_views_per_id'),
    (['--seeds', '3-1'], '--seeds'), (['--seeds', 'a'], '--seeds'), (['--seeds', '1,,2'], '--seeds'),
    (['--seeds', '-1'], '--seeds'), (['--seed', '-1'], '--seed'), (['--seeds', '99999999999999999999'], '--seeds'),
    (['--fov', '90'], '--fov'), (['--fov', '0.09'], '--fov'), (['--fov', '1e-40'], '--fov'),
    (['--fov', 'nan'], '--fov'), (['--dist_radius', '1'], '--dist_radius'),
    (['--truncation_ratio', '-0.1'], '--truncation_ratio'), (['--truncation_ratio', 'nan'], '--truncation_ratio'),
    (['--truncation_mean', '10000001'], '--truncation_mean'),
    (['--N_samples', '1'], '--N_samples'), (['--device', 'gpu'], '--device'), (['--precision', 'int8'], '--precision'),
    (['--mesh_format', 'stl'], '--mesh_format'), (['--lr', '0'], '--lr'), (['--batch'], '--batch'),
    (['--config', 'no/such/file'], 'no/such/file'), (['--expname', ''], '--expname'), (['--mixing', '1.1'], '--mixing'),
    (['--azim', '90'], '--azim'), (['--fps', '100000'], '--fps'),
    (['--frames', '1000001'], '--frames'), (['--num_surfaces', '1000001'], '--num_surfaces'),
    (['--num_images', '1000001'], '--num_images'), (['--num_inversions', '1000001'], '--num_inversions'),
])
def test_bad_flags_are_one_sentence(arguments, named):
    with pytest.raises(UserError) as error:
        parse(COMMAND, '', arguments)
    assert named in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('arguments', (['--seed', '1e3'], ['--size', '1e3'], ['--batch', '2.0']))
def test_a_number_that_is_not_whole_is_told_so(arguments):
    with pytest.raises(UserError, match=f"must be a whole number, not '{arguments[1]}'"):
        parse(COMMAND, '', arguments)
    with pytest.raises(UserError, match="must be a number, not 'wide'"):
        parse(COMMAND, '', ['--azim', 'wide'])


def test_the_starts_of_an_inversion_are_no_more_than_there_are_identities():
    assert parse('invert_photos', '', ['--starts', str(IDENTITIES)]).inversion.starts == IDENTITIES
    with pytest.raises(UserError, match='--starts: must lie between 1 and'):
        parse('invert_photos', '', ['--starts', str(IDENTITIES + 1)])


@pytest.mark.parametrize('typed, meant', [
    ('--sise', '--size'), ('--truncation_rate', '--truncation_ratio'), ('--xyzzy', None)])
def test_a_flag_that_was_probably_meant_is_named(typed, meant):
    with pytest.raises(UserError) as error:
        parse(COMMAND, '', [typed, '3'])
    assert ('did you mean' in str(error.value)) == bool(meant) and str(meant or typed) in str(error.value)


def test_options_and_utils_are_quick_to_import():
    """So --help is: neither may import PyTorch, NumPy, Pillow or another package that takes long."""
    code = 'import sys, options, utils; print(*{"torch", "numpy", "PIL", "trimesh", "matplotlib"} & sys.modules.keys())'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_unknown_name_in_a_config_file(tmp_path):
    config = tmp_path / 'bad.txt'
    config.write_text('sise = 512\n')
    with pytest.raises(UserError, match='sise'):
        parse(COMMAND, '', ['--config', str(config)])


@pytest.mark.parametrize('words', (['--si\x1b[31mze', '8'], ['sh\x1bape=1'], ['--size', '9' * 5000],
                                   ['--fov', '\r' * 99], ['--no_sdf=\x1b']))
def test_a_wrong_flag_is_quoted_harmlessly_and_not_at_length(words, tmp_path):
    """A terminal would obey some characters, which may come from somebody else's --config file."""
    config = tmp_path / 'c.txt'
    config.write_text(' = '.join(words).removeprefix('--'))
    for argv in words, ['--config', str(config)]:
        with pytest.raises(UserError) as error:
            parse(COMMAND, '', argv)
        assert str(error.value).isprintable() and len(str(error.value)) < 2000


def test_launchers_local_rank():
    assert parse('train_full_pipeline', '', ['--local-rank=3']).training.local_rank == 3
    assert parse('train_full_pipeline', '', ['--local_rank', '3']).training.local_rank == 3


def test_replaced_leaves_the_tree_alone():
    opt = parse(COMMAND, '', [])
    changed = replaced(opt, size=512, width=64)
    assert (changed.model.size, changed.rendering.width) == (512, 64)
    assert (opt.model.size, opt.rendering.width) == (256, 256)
    with pytest.raises(KeyError):
        replaced(opt, no_such_flag=1)
    assert options.parse(COMMAND, '', []) == opt


@pytest.mark.parametrize('name', ['..', '../x', '/tmp/x', 'a/../b', 'a//b', './a', 'a/', 'C:\\x', '..\\x', 'a\nb',
                                  'é' * 101])
def test_an_experiment_stays_in_its_folders(name):
    """Its name becomes the name of folders and files."""
    with pytest.raises(UserError, match='--expname'):
        parse(COMMAND, '', ['--expname', name])


@pytest.mark.parametrize('name', ['cats', 'a/b', 'a b.c', 'Kätzchen', 'x' * 200])
def test_names_of_experiments(name):
    assert parse(COMMAND, '', ['--expname', name]).experiment.expname == name
