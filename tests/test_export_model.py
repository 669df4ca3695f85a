"""export_model.py: a small file that makes the same pictures."""
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model
from tiny_training import flags, train

import checkpoint
import export_model
from inference.loading import load_generator
from options import parse
from utils import UserError


def export(monkeypatch, folder, arguments):
    monkeypatch.chdir(folder)
    export_model.main(parse('export_model', '', ['--expname', 'debug', *arguments.split()]))


def test_the_exported_model_is_small_and_makes_the_same_pictures(data, tmp_path, monkeypatch, capsys):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --azim 0.2'))
    train('full_pipeline', tmp_path, flags(data, '--iter 1 --azim 0.2'))
    export(monkeypatch, tmp_path, '--out away/debug2.pt')
    assert 'levels of 255' in capsys.readouterr().out
    out, full = tmp_path / 'away' / 'debug2.pt', checkpoint.final_model_path('debug')
    saved, before = checkpoint.read(out), checkpoint.read(full)
    assert all(tensor.dtype == torch.float16 for tensor in saved['g_ema'].values())
    assert saved['options'] == before['options'] and saved.keys() == {'g_ema', 'options'}
    assert out.stat().st_size < full.stat().st_size / 2

    images = []
    for path in (full, out):
        path.replace(checkpoint.final_model_path('tried'))
        opt = parse('generate_shapes_and_images', '', ['--expname', 'tried'])
        generator, opt, _, _ = load_generator(opt, torch.device('cpu'))
        assert opt.camera.azim == 0.2
        images.append(export_model.frontal_pictures(generator, opt))
    assert images[0].std() > 0.01 and 0 < (images[0] - images[1]).abs().max() < 0.02


def test_the_discriminator_is_kept_on_demand(data, tmp_path, monkeypatch):
    for stage in ('volume_renderer', 'full_pipeline'):
        train(stage, tmp_path, flags(data, '--iter 1'))
    export(monkeypatch, tmp_path, '--out small.pt --keep_discriminator')
    saved, before = checkpoint.read(tmp_path / 'small.pt'), checkpoint.read(checkpoint.final_model_path('debug'))
    assert saved['d'].keys() == before['d'].keys() and saved['d']['convs.0.0.weight'].dtype == torch.float16
    export(monkeypatch, tmp_path, '--out full_models/without.pt')
    with pytest.raises(UserError, match='without.pt holds no StyleGAN2 discriminator'):
        export(monkeypatch, tmp_path, '--model full_models/without.pt --out again.pt --keep_discriminator')
    with pytest.raises(UserError, match='only files of --format pt'):
        export(monkeypatch, tmp_path, '--out small.onnx --format onnx --keep_discriminator')


def test_the_model_itself_is_not_overwritten(tmp_path, monkeypatch):
    """It would lose the larger half of its digits, and all that is needed to train on."""
    save_tiny_model(tmp_path)
    model = checkpoint.final_model_path('tiny')
    (tmp_path / 'link.pt').symlink_to(tmp_path / model)
    before = (tmp_path / model).read_bytes()
    for out in (model, 'link.pt'):
        with pytest.raises(UserError, match='the file of the model itself; give another name'):
            export(monkeypatch, tmp_path, f'--expname tiny --out {out}')
    assert (tmp_path / model).read_bytes() == before


def test_numbers_too_large_for_half_precision(tmp_path, monkeypatch):
    save_tiny_model(tmp_path)
    path = tmp_path / checkpoint.final_model_path('tiny')
    saved = checkpoint.read(path)
    saved['g_ema']['style.0.weight'][0, 0] = 1e5
    checkpoint.save(path, saved)
    with pytest.raises(UserError, match=r'tiny.pt holds numbers beyond 65504.*\(in style.0.weight\); use the file'):
        export(monkeypatch, tmp_path, '--expname tiny --out small.pt')


@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs a folder in which nothing can be made')
@pytest.mark.parametrize('flags, said', [
    ('--out taken', '--out taken: this is a folder; give the name of a file'),
    ('--out /proc/a/x.pt', '--out /proc/a: cannot write there'),
    ('--out /proc/x.onnx --format onnx', '--out /proc: cannot write there'),
    ('--browser /proc/site', '--browser /proc: cannot write there')])
def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch, flags, said):
    (tmp_path / 'taken').mkdir()
    monkeypatch.setattr(export_model, 'import_onnx', lambda: None)
    monkeypatch.setattr(export_model, 'load_generator', lambda *_: pytest.fail('the model was loaded'))
    with pytest.raises(UserError, match=said):
        export(monkeypatch, tmp_path, f'--expname cats_demo {flags}')


@pytest.mark.parametrize('flags', ['--browser site', '--out cats.onnx --format onnx'])
def test_a_missing_package_is_named_before_the_work(tmp_path, monkeypatch, flags):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.setattr(export_model, 'load_generator', lambda *_: pytest.fail('the model was loaded'))
    with pytest.raises(UserError, match='--format onnx and --browser need the package onnx'):
        export(monkeypatch, tmp_path, f'--expname cats_demo {flags}')


def test_nothing_to_write_to(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='--out is missing'):
        export(monkeypatch, tmp_path, '')
