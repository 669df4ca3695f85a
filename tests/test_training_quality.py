"""Images by number, and the quick measurements of --eval_every."""
import torch
from tiny_model import tiny_training_pair

from training.quality import numbered_images, quick_evaluation

CPU = torch.device('cpu')


def test_numbered_images_do_not_depend_on_their_batch():
    generator, opt = tiny_training_pair('full_pipeline')
    together = numbered_images(generator, opt, range(3), CPU)
    alone = torch.cat([numbered_images(generator, opt, [number], CPU) for number in range(3)])
    assert together.shape == (3, 3, 16, 16) and torch.allclose(together, alone, atol=1e-5)


def test_quick_measurements_touch_no_random_state(monkeypatch):
    monkeypatch.setattr('training.quality.EVAL_IMAGES', 4)
    monkeypatch.setattr('training.quality.EVAL_IDENTITIES', 1)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    generator, opt = tiny_training_pair('full_pipeline')
    images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(4)]
    before = torch.get_rng_state()
    measures = quick_evaluation(generator, images, opt, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert measures['swd'] > 0 and measures == quick_evaluation(generator, images, opt, CPU)


def test_images_smaller_than_a_patch_have_no_patch_distance(monkeypatch):
    monkeypatch.setattr('training.quality.EVAL_IDENTITIES', 1)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    generator, opt = tiny_training_pair('full_pipeline')
    assert 'swd' not in quick_evaluation(generator, [torch.zeros(3, 4, 4)] * 4, opt, CPU)
