"""An evaluation's results, kept while it runs, so that an interruption costs little and several processes can share."""
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
from training.gradients import chunks
from utils import UserError


class Blocks:
    """Results of numbered items, kept in a file for every block of them and kind of result, until they are all there.

    counts: {kind of result: of how many items, from 0, it is needed}. A result is a list of tensors, each with a row
    for every item of the block.
    """

    def __init__(self, folder, counts, size):
        self.folder, self.counts, self.size = Path(folder), counts, size

    def _blocks(self, kind):
        return [range(block.start, block.stop) for block in chunks(0, self.counts[kind], self.size)]

    def _path(self, kind, block):
        return self.folder / f'{kind}-{block.start:07d}-{block.stop:07d}.pt'

    def missing(self, processes):
        """[(items, kinds)] that are not there yet of this process's share."""
        kinds_of = {}
        for kind in self.counts:
            for number, block in enumerate(self._blocks(kind)):
                if number % processes.size == processes.rank and not self._path(kind, block).exists():
                    kinds_of.setdefault(block, []).append(kind)
        return sorted(kinds_of.items(), key=lambda item: (item[0].start, item[0].stop))

    def save(self, kind, block, tensors):
        checkpoint.save(self._path(kind, block), {'tensors': tensors})

    def load(self, kind):
        """The result of all items: a list of tensors. Raises UserError for a file that is damaged or gone."""
        found = []
        for block in self._blocks(kind):
            path = self._path(kind, block)
            try:
                if tensors := torch.load(path, weights_only=True)['tensors']:  # none where no image could be read
                    found.append(tensors)
            except Exception:  # a damaged file can fail anywhere in the unpickler, with any exception
                raise UserError(f'{path} is damaged or gone; remove it and give the same command again.') from None
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
