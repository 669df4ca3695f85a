"""The one place where the faster classes are chosen: `build_generator(opt, **fast_parts(opt))`."""
import copy
import functools

from model import Decoder
from op import kernels
from op.bands import BandedDecoder
from op.graphs import GraphedDecoder, GraphedRenderer
from op.sparse import SparseRenderer
from op.tiles import TiledRenderer
from volume_renderer import VolumeRenderer


def fast_parts(opt, *, sparse=True, graphs=False):
    """The classes of a generator's parts, as arguments of build_generator, by --dense, --cuda_graphs and STYLESDF_OPS.

    sparse: whether views may come from few samples, unless --dense is given. graphs: whether --cuda_graphs is obeyed,
    which takes a single thread. STYLESDF_OPS=plain leaves out tiles, bands and graphs; with --dense too the parts are
    the definitions themselves.
    """
    fast = not kernels.plain()
    graphs = graphs and fast and opt.inference.cuda_graphs
    sparse = sparse and not opt.inference.dense
    return {'renderer': _combined(*[GraphedRenderer] * graphs, *[SparseRenderer] * sparse, *[TiledRenderer] * fast,
                                  VolumeRenderer),
            'decoder': _combined(*[GraphedDecoder] * graphs, *[BandedDecoder] * fast, Decoder)}


@functools.cache
def _combined(first, *others):
    """A class that works as `first` does, which leaves to the others, in this order, what it does not do itself."""
    return type(first.__name__, (first, *others), {}) if others else first


def few_samples(generator):
    """The generator, with the same weights, but with views from few samples even if its own renderer evaluates all."""
    renderer = generator.renderer
    if isinstance(renderer, SparseRenderer):
        return generator
    twin, sparse = copy.copy(generator), copy.copy(renderer)
    sparse.__class__ = _combined(SparseRenderer, type(renderer))
    twin._modules = {**generator._modules, 'renderer': sparse}
    return twin
