"""export_model.py: a small file that makes the same pictures."""

import pytest
import torch
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


def test_nothing_to_write_to(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='--out is missing'):
        export(monkeypatch, tmp_path, '')
