"""The golden numbers: small enough to travel with the code, cut from the originals, and the head drawn as it was."""
import numpy as np
import pytest
import torch
from conftest import GOLDEN, SHARED
from golden import make
from golden_head import DRAWN, FLAGS, drawn_decoder, head_state
from PIL import Image

import checkpoint
from model import build_generator
from options import parse

LIMIT = 3_000_000  # bytes of all files together


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob('*')
                  if path.is_file() and path.suffix in ('.npz', '.png', '.json'))


def same(a, b):
    """Whether two files hold the same numbers."""
    if a.suffix == '.npz':
        with np.load(a) as one, np.load(b) as other:
            return one.files == other.files and all(np.array_equal(one[key], other[key]) for key in one.files)
    if a.suffix == '.png':
        return np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
    return a.read_text() == b.read_text()


def test_they_are_small():
    assert len(files(GOLDEN)) > 20
    assert sum((GOLDEN / name).stat().st_size for name in files(GOLDEN)) < LIMIT


@pytest.mark.skipif(not (SHARED / 'golden').exists(), reason='needs the uncut golden numbers in ../shared')
def test_they_are_cut_from_the_originals(tmp_path):
    make.make(SHARED / 'golden', SHARED / 'spec.md', tmp_path)
    assert files(tmp_path) == files(GOLDEN)
    assert [name for name in files(GOLDEN) if not same(GOLDEN / name, tmp_path / name)] == []


def test_the_heads_decoder_is_drawn_as_the_original_drew_it():
    """Else the pictures cannot agree, and the fault is PyTorch's generator, not ours."""
    state = head_state()
    with np.load(GOLDEN / 'head.npz') as arrays:
        means = {name.removeprefix('mean:'): float(arrays[name]) for name in arrays.files if name.startswith('mean:')}
    assert means.keys() == {name for name in state if name.startswith('decoder.')}
    for name, mean in means.items():
        tensor = state[name].double()
        assert tensor.mean().item() == pytest.approx(mean, abs=1e-6 * tensor.abs().max().item()), name
    assert len(drawn_decoder()) == len(DRAWN)


def test_the_head_is_a_whole_checkpoint():
    generator = build_generator(parse('generate_shapes_and_images', '', FLAGS))
    generator.load_state_dict(head_state())
    assert all(torch.isfinite(tensor).all() for tensor in generator.state_dict().values())


def test_the_head_can_be_written_for_commands(fresh_process):
    state, expected = checkpoint.read(fresh_process[1])['g_ema'], head_state()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
