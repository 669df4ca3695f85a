"""The hold on stage 1's surface: how strongly the field is drawn to the sphere that it started from, and a warning.

A field can paint its pictures without a surface: on the near plane, on the far one, or in fog. Early in training, and
in short ones, that is easier than shaping a head, and the way back is long.
"""
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils import number

# Between these the need for the sphere grows from nothing to all of it.
BETA_RANGE = 0.003, 0.008  # sharp as the paper's fields; so soft that fields here dissolved without a hold
FOG_RANGE = 0.25, 0.45      # a sphere as large as a head has 0.16 to 0.21 at those betas, whatever the number of rays
FEWEST_MEETINGS = 0.08     # of rays with a surface, below which there is none to speak of
MEMORY = 0.98              # of the averages from step to step, so about 50 steps
RISING, FALLING = 1 / 100, 1 / 2000  # the most that the weight changes in a step: it comes back sooner than it fades
SHARES = 'surface', 'fog'   # whose averages are kept
PATIENCE = 50              # steps of a surface that is lost before the warning


class Silhouette(NamedTuple):
    """How much of a surface a batch of renderings shows, as shares of rays; scalar tensors."""
    meets: torch.Tensor  # rays that come from outside and meet a surface
    fog: torch.Tensor    # 0 where every ray ends either on the surface or in the background, 1 where all are undecided


def silhouette(rendering):
    """The Silhouette of a Rendering with its sdf (B,H,W,N,1). Without gradients."""
    with torch.no_grad():
        sdf, background = rendering.sdf[..., 0], rendering.background
        meets = (sdf[..., 0] > 0) & (sdf.amin(-1) < 0)
        return Silhouette(meets.float().mean(), (4 * background * (1 - background)).mean())


def ramp(value, low, high):
    """0 up to `low`, 1 from `high` on, straight between them."""
    return min(max((value - low) / (high - low), 0.), 1.)


class Hold:
    """The weight of the sphere loss at each step of stage 1, and whether the surface is being lost.

    By default the weight falls from --sphere_lambda to nothing by step --sphere_until. With --sphere_fade it follows
    what the pictures need: it fades as beta falls towards a sharp surface while silhouettes are clear, and comes back
    where beta rises, silhouettes dissolve, or rays no longer meet a surface.
    """

    def __init__(self, opt):
        training = opt.training
        self.most, self.until, self.by_need = training.sphere_lambda, training.sphere_until, training.sphere_fade
        self.share = 1.      # of the weight, by need
        self.averages = {}   # of the silhouette, over about 50 steps
        self.lost_steps = 0

    def weight(self, step):
        """Of the sphere loss at `step`."""
        return self.most * (self.share if self.by_need else max(0., 1 - step / self.until))

    def learn(self, run, values):
        """Adapt to the step that run.update has just taken with the generator, whose `values` it gave; warn where
        that is due."""
        if 'surface' not in values:
            return
        for name in SHARES:
            before = self.averages.get(name, values[name])
            self.averages[name] = MEMORY * before + (1 - MEMORY) * values[name]
        if self.by_need:
            change = self.need(run.state.g.renderer.sigmoid_beta.item()) - self.share
            self.share += min(max(change, -FALLING), RISING)
            run.record(sphere_weight=self.weight(run.step))
        self.lost_steps = self.lost_steps + 1 if self.averages['surface'] < FEWEST_MEETINGS else 0
        if self.lost_steps == PATIENCE:
            tqdm.write(f'step {run.step}: the surface is being lost: only {self.averages["surface"]:.0%} of the rays '
                       f'meet one. {self.advice()}')

    def need(self, beta):
        """The share of the weight that a field with this beta needs now."""
        lost = float(self.averages['surface'] < FEWEST_MEETINGS)
        return max(lost, ramp(beta, *BETA_RANGE), ramp(self.averages['fog'], *FOG_RANGE))

    def advice(self):
        """What to do about it."""
        if self.most:
            return ('Go back to a checkpoint before that with --init_ckpt, a new --expname and a larger '
                    '--sphere_lambda or smaller learning rates.')
        return ('If the pictures stay blank in samples/*_shape.png, begin again with --sphere_lambda 1 --sphere_fade '
                '(docs/training.md, Reading the curves).')

    def state_dict(self):
        return {'share': self.share, 'averages': dict(self.averages), 'lost_steps': self.lost_steps}

    def load_state_dict(self, state):
        """Raises ValueError, KeyError, TypeError or AttributeError for what `state_dict` cannot have given."""
        self.share = number(state['share'], 0., 1.)
        averages = dict(state['averages'])
        self.averages = {name: number(averages[name], 0., 1.) for name in SHARES if name in averages}
        self.lost_steps = number(state['lost_steps'], 0, 2 ** 53)
