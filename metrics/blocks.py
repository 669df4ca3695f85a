"""An evaluation's results, kept while it runs, so that an interruption costs little and several processes can share."""
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
from training.gradients import chunks
from utils import UserError


class Blocks:
    """Results of numbered items, kept in a file for every block of them and kind of result, until they are all there.

    counts: {kind of result: of how many items, from 0, it is needed}. A result is a list of tensors of real numbers,
    each with a row for every item of the block that is not in `left_out`; or an empty list, a note that the work was
    done. pictures: {kind: a function from an item to a file that the work leaves}; where one is gone, it is done again.
    """

    def __init__(self, folder, counts, size, pictures=None):
        self.folder, self.counts, self.size, self.pictures = Path(folder), counts, size, pictures or {}
        self.left_out = set()

    def _blocks(self, kind):
        return [range(block.start, block.stop) for block in chunks(0, self.counts[kind], self.size)]

    def _path(self, kind, block):
        return self.folder / f'{kind}-{block.start:07d}-{block.stop:07d}.pt'

    def _is_there(self, kind, block):
        return self._path(kind, block).exists() and (
            kind not in self.pictures or all(self.pictures[kind](item).exists() for item in block))

    def missing(self, processes):
        """[(items, kinds)] that are not there yet of this process's share."""
        kinds_of = {}
        for kind in self.counts:
            for number, block in enumerate(self._blocks(kind)):
                if number % processes.size == processes.rank and not self._is_there(kind, block):
                    kinds_of.setdefault(block, []).append(kind)
        return sorted(kinds_of.items(), key=lambda item: (item[0].start, item[0].stop))

    def save(self, kind, block, tensors):
        checkpoint.save(self._path(kind, block), {'tensors': tensors})

    def load(self, kind):
        """The result of all items: a list of tensors. Raises UserError for a file that is damaged or gone."""
        found, first = [], None
        for block in self._blocks(kind):
            path, count = self._path(kind, block), len(block) - len(self.left_out.intersection(block))
            try:
                tensors = checkpoint.contents_of(path)['tensors']
                whole = isinstance(tensors, list) and bool(tensors) == bool(count) and all(
                    checkpoint.is_plain(tensor) and len(tensor) == count for tensor in tensors)
                # The same numbers may not be claimed many times over: they are copied when all are put together.
                if not whole or sum(tensor.nbytes for tensor in tensors) > path.stat().st_size:
                    raise ValueError
                form = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
            except Exception:  # a file that holds something else can fail in any way
                raise UserError(f'{path} is damaged or gone; remove it and give the same command again.') from None
            if not count:
                continue
            first = first or (path, form)
            if form != first[1]:
                raise UserError(f'{path} does not fit {first[0]}; remove both and give the same command again.')
            found.append(tensors)
        return [torch.cat(tensors) for tensors in zip(*found, strict=True)]

    def fill(self, description, results, processes):
        """Compute and save what is missing. results: from a list of (items, kinds) to {kind: result} for each."""
        todo = self.missing(processes)
        count = sum(len(block) for block, _ in todo)
        with tqdm(total=count, desc=description, unit='', disable=not count or processes.rank > 0) as bar:
            for (block, _), found in zip(todo, results(todo), strict=True):
                for kind, tensors in found.items():
                    self.save(kind, block, tensors)
                bar.update(len(block))
