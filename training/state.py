"""What training changes: the networks, their moving average, the optimizers, and how far it has come."""
import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import checkpoint
from utils import UserError

EMA_DECAY = 0.5 ** (32 / 10_000)  # a batch of 32 halves the weight of 10,000 images ago


class State:
    """All that training changes, and so all that a checkpoint holds beside the options.

    controls: by name, whatever else adapts during training (such as the strength of augmentation), each with
    state_dict and load_state_dict.
    """

    def __init__(self, generator, discriminator, g_optim, d_optim, **controls):
        self.g, self.d, self.g_optim, self.d_optim = generator, discriminator, g_optim, d_optim
        self.g_ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.g_ema.renderer.perturb = 0.  # samples without jitter
        self.controls = controls
        self.iteration = 0   # steps done
        self.images = 0      # position of the sampler: real images taken by all processes together
        self.path_mean = torch.zeros((), device=next(generator.parameters()).device)
        self._average = get_ema_multi_avg_fn(EMA_DECAY)

    def update_ema(self):
        """Move the EMA towards the generator. (Its buffers are constants.)"""
        trained = [(mean, new) for mean, new in zip(self.g_ema.parameters(), self.g.parameters(), strict=True)
                   if new.requires_grad]
        self._average(*zip(*trained, strict=True), None)

    def weights(self):
        """The part of a checkpoint that generation reads."""
        return {'g': self.g.state_dict(), 'd': self.d.state_dict(), 'g_ema': self.g_ema.state_dict(),
                'iteration': self.iteration}

    def checkpoint(self):
        return self.weights() | {'g_optim': self.g_optim.state_dict(), 'd_optim': self.d_optim.state_dict(),
                                 'images': self.images, 'path_mean': self.path_mean.item(),
                                 'controls': {name: control.state_dict() for name, control in self.controls.items()}}

    def load_generator(self, saved, path):
        """The generator and its EMA from a checkpoint, ours or official, which may lack all but the EMA.

        A generator without decoder (stage 1) leaves that of a full model out.
        """
        for module, state in ((self.g_ema, saved['g_ema']), (self.g, saved.get('g', saved['g_ema']))):
            checkpoint.load_state(module, state if self.g.full_pipeline else checkpoint.without_decoder(state), path)

    def begin_from(self, saved, path):
        """The weights of a checkpoint for a new run, perhaps at another resolution: the field has none."""
        self.load_generator(saved, path)
        try:
            checkpoint.load_state(self.d, saved.get('d', {}), path)
        except UserError:
            print(f'{path} holds no discriminator of these sizes: that begins anew.')

    def load(self, saved, path):
        """A checkpoint to go on from. Official ones hold only weights: then the optimizers begin anew."""
        self.load_generator(saved, path)
        if 'd' in saved:
            checkpoint.load_state(self.d, saved['d'], path)
        self.iteration = saved.get('iteration', checkpoint.iteration_of(path))
        self.images = saved.get('images', 0)
        self.path_mean.fill_(saved.get('path_mean', 0.))
        for name, control in self.controls.items():
            if name in saved.get('controls', {}):
                control.load_state_dict(saved['controls'][name])
        for name, optimizer in (('g_optim', self.g_optim), ('d_optim', self.d_optim)):
            if name in saved:
                optimizer.load_state_dict(saved[name])
            else:
                print(f'{path} holds no {name}: that optimizer begins anew.')
