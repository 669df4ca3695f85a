"""Results of an evaluation that are kept: files that hold something else end in one sentence."""
from types import SimpleNamespace

import pytest
import torch

from metrics.blocks import Blocks
from utils import UserError

ALONE = SimpleNamespace(size=1, rank=0)


@pytest.fixture
def blocks(tmp_path):
    """Blocks of six items, of which 'x' is there: two numbers an item."""
    blocks = Blocks(tmp_path, {'x': 6}, 2)
    blocks.fill('', lambda todo: [{'x': [numbers(block)]} for block, _ in todo], ALONE)
    return blocks


def numbers(block):
    return torch.tensor([[item, 10. * item] for item in block])


def test_results_come_back(blocks):
    assert torch.equal(blocks.load('x')[0], numbers(range(6))) and not blocks.missing(ALONE)


def test_items_that_are_left_out_have_no_rows(blocks):
    blocks.save('x', range(2, 4), [numbers([2])])
    blocks.save('x', range(4, 6), [])
    blocks.left_out = {3, 4, 5}
    assert torch.equal(blocks.load('x')[0], numbers(range(3)))


@pytest.mark.parametrize('contents', [
    5, None, [5], [], torch.zeros(2, 2), torch.zeros(3), [torch.zeros(1, 2)], [torch.zeros(3, 2)], [torch.tensor(1.)],
    [torch.zeros(1).expand(2, 10 ** 10)], [torch.zeros(2, 1000)] * 1000, [torch.zeros(2, 2).to_sparse()],
    [torch.zeros(2, 2, dtype=torch.int64)]])
def test_a_block_of_something_else_is_named(blocks, contents):
    blocks.save('x', range(2, 4), contents)
    with pytest.raises(UserError, match='x-0000002-0000004.pt is damaged or gone; remove it'):
        blocks.load('x')


@pytest.mark.parametrize('contents', [
    [torch.zeros(2, 3)], [torch.zeros(2)], [torch.zeros(2, 2)] * 2, [torch.zeros(2, 2, dtype=torch.float64)]])
def test_blocks_that_do_not_fit_together_are_named(blocks, contents):
    blocks.save('x', range(2, 4), contents)
    with pytest.raises(UserError, match='x-0000002-0000004.pt does not fit .*x-0000000-0000002.pt; remove both'):
        blocks.load('x')


def test_a_file_that_is_none_or_gone_is_named(blocks, tmp_path):
    path = tmp_path / 'x-0000000-0000002.pt'
    path.write_text('no archive')
    with pytest.raises(UserError, match='x-0000000-0000002.pt is damaged or gone'):
        blocks.load('x')
    path.unlink()
    with pytest.raises(UserError, match='x-0000000-0000002.pt is damaged or gone'):
        blocks.load('x')


def test_work_whose_pictures_are_gone_is_done_again(tmp_path):
    pictures = {'saved': lambda item: tmp_path / f'{item}.png'}
    blocks = Blocks(tmp_path / 'notes', {'saved': 6, 'x': 6}, 2, pictures)
    for block in (range(0, 2), range(2, 4), range(4, 6)):
        blocks.save('saved', block, [])
        blocks.save('x', block, [numbers(block)])
    for item in (0, 1, 2, 4, 5):
        pictures['saved'](item).touch()
    assert blocks.missing(ALONE) == [(range(2, 4), ['saved'])]
