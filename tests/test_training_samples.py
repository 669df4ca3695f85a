"""Sample grids: what they show depends on the seed alone."""
import numpy as np
import pytest
import torch
from tiny_model import tiny_training_pair

from camera import cameras_at
from training.samples import sample_grids, shaded

CPU = torch.device('cpu')


@pytest.mark.parametrize('stage, side', [('volume_renderer', 8), ('full_pipeline', 16)])
def test_a_row_for_each_identity_and_a_column_for_each_view(stage, side):
    generator, opt = tiny_training_pair(stage)
    grids = sample_grids(generator, opt, CPU)
    assert set(grids) == ({''} if stage == 'full_pipeline' else {'', '_shape'})
    assert all(grid.shape == (2 * side, 8 * side, 3) and grid.dtype == np.uint8 for grid in grids.values())
    torch.manual_seed(5)  # nothing is drawn from PyTorch's own generator
    again = sample_grids(generator, opt, CPU)
    assert torch.initial_seed() == 5 and all(np.array_equal(grids[name], again[name]) for name in grids)


def test_a_surface_facing_the_camera_is_bright():
    row, column = torch.meshgrid(-torch.arange(6.), torch.arange(6.), indexing='ij')
    flat = torch.stack([column, row, torch.zeros_like(row)])[None]

    class Rendering:
        xyz = flat

    bright = shaded(Rendering, cameras_at(torch.zeros(1, 2)))
    tilted = shaded(Rendering, cameras_at(torch.tensor([[1., 0.]])))
    assert bright.shape == (1, 3, 6, 6) and torch.allclose(bright, torch.ones_like(bright))
    assert torch.allclose(tilted, torch.full_like(tilted, 2 * np.cos(1.) - 1), atol=1e-5)
