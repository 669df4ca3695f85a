"""What training changes: the networks, their moving average, the optimizers, and how far it has come."""
import copy
import math

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import checkpoint
from utils import UserError, printable

EMA_HALF_LIFE = 10_000 / 32  # steps after which a weight counts half in the moving average
EMA_DECAY = 0.5 ** (1 / EMA_HALF_LIFE)


class State:
    """All that training changes, and so all that a checkpoint holds beside the options.

    ema_rampup: above 0, the moving average's half-life is at most this share of the steps done so far, so that a short
    run's average forgets the weights that it began with (StyleGAN2-ADA has the same). controls: by name, whatever else
    adapts during training (such as the strength of augmentation), each with state_dict and load_state_dict.
    """

    def __init__(self, generator, discriminator, g_optim, d_optim, *, ema_rampup=0., **controls):
        self.g, self.d, self.g_optim, self.d_optim = generator, discriminator, g_optim, d_optim
        self.g_ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.g_ema.renderer.perturb = 0.  # samples without jitter
        self.controls = controls
        self.iteration = 0   # steps done
        self.images = 0      # position of the sampler: real images taken by all processes together
        self.path_mean = torch.zeros((), device=next(generator.parameters()).device)
        self._ema_rampup = ema_rampup

    def update_ema(self):
        """Move the EMA towards the generator. (Its buffers are constants.)"""
        trained = [(mean, new) for mean, new in zip(self.g_ema.parameters(), self.g.parameters(), strict=True)
                   if new.requires_grad]
        decay = EMA_DECAY
        if self._ema_rampup:
            decay = 0.5 ** (1 / min(EMA_HALF_LIFE, self._ema_rampup * max(1, self.iteration)))
        get_ema_multi_avg_fn(decay)(*zip(*trained, strict=True), None)

    def weights(self):
        """The part of a checkpoint that generation reads."""
        return {'g': self.g.state_dict(), 'd': self.d.state_dict(), 'g_ema': self.g_ema.state_dict(),
                'iteration': self.iteration}

    def checkpoint(self):
        """All of a checkpoint but the options, the data set and the images of a step."""
        return self.weights() | {'g_optim': self.g_optim.state_dict(), 'd_optim': self.d_optim.state_dict(),
                                 'images': self.images, 'path_mean': self.path_mean.item(),
                                 'controls': {name: control.state_dict() for name, control in self.controls.items()}}

    def load_generator(self, saved, path):
        """The generator and its EMA from a checkpoint, ours or official, which may lack all but the EMA.

        A generator without decoder (stage 1) leaves that of a full model out.
        """
        for module, state in ((self.g_ema, saved['g_ema']), (self.g, saved['g'] if 'g' in saved else saved['g_ema'])):
            if not self.g.full_pipeline and isinstance(state, dict):
                state = checkpoint.without_decoder(state)
            checkpoint.load_state(module, state, path)

    def begin_from(self, saved, path):
        """The weights of a checkpoint for a new run, perhaps at another resolution: the field has none. Of two
        discriminators it may hold one."""
        self.load_generator(saved, path)
        theirs = saved.get('d')
        # load_state takes tensors on the CPU only, as files have them, and here some are this run's own.
        own = {name: tensor.cpu() for name, tensor in self.d.state_dict().items()}
        parts = {}  # names of the entries of each
        for name in own:
            what = 'projected discriminator' if checkpoint.is_projected(name) else 'discriminator'
            parts.setdefault(what, []).append(name)
        for what, names in parts.items():
            try:
                found = {name: theirs[name] for name in names}
                checkpoint.load_state(self.d, own | found, path)
                own |= found
            except (UserError, KeyError, TypeError):
                print(f'{path} holds no {what} of these sizes: that begins anew.')

    def load(self, saved, path):
        """A checkpoint to go on from. Official ones hold only weights: then the optimizers begin anew.

        Raises UserError where anything in it is not what training writes; the state may be half loaded then.
        """
        self.load_generator(saved, path)
        if 'd' in saved:
            checkpoint.load_state(self.d, saved['d'], path)
        self.iteration = _whole_number(saved, 'iteration', checkpoint.iteration_of(path) or 0, path)
        self.images = _whole_number(saved, 'images', 0, path)
        path_mean = saved.get('path_mean', 0.)
        if not isinstance(path_mean, float | int) or not math.isfinite(path_mean):
            raise damaged(path, 'path_mean', 'is not a finite number')
        self.path_mean.fill_(path_mean)
        for name, control in self.controls.items():
            load_control(control, saved, name, path)
        for name, optimizer in (('g_optim', self.g_optim), ('d_optim', self.d_optim)):
            if name in saved:
                load_optimizer(optimizer, saved[name], name, path)
            else:
                print(f'{path} holds no {name}: that optimizer begins anew.')


def load_control(control, saved, name, path):
    """Load what one of State's controls had come to. One that the checkpoint lacks begins anew."""
    controls = saved.get('controls', {})
    if not isinstance(controls, dict):
        raise damaged(path, 'controls', 'are no dict')
    if name in controls:
        try:
            control.load_state_dict(controls[name])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged(path, f'state of the {name}', 'is not what this program writes') from None


def load_optimizer(optimizer, saved, name, path):
    """Load a state dict into an Adam. Raises UserError where it is not one of this optimizer.

    PyTorch itself does not look: moments of another shape would be read and written beyond their ends by the fused
    step.
    """
    own = optimizer.state_dict()
    if not isinstance(saved, dict) or not isinstance(saved.get('state'), dict):
        raise damaged(path, name, 'is not the state of an optimizer')
    groups = saved.get('param_groups')
    if not isinstance(groups, list) or [_numbers(group) for group in groups] != [
            group['params'] for group in own['param_groups']]:
        raise damaged(path, name, 'belongs to other parameters')
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for index, entry in saved['state'].items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not _moments_fit(entry, parameters[index]):
            raise damaged(path, name, f'does not fit parameter {printable(index)}')
    # The rates are those of this run's flags, which a resumed run must not change.
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own['param_groups']})


def _numbers(group):
    return group.get('params') if isinstance(group, dict) else None


def _moments_fit(entry, parameter):
    """Whether an entry of Adam's state is made of a step and two finite moments of a parameter's shape."""
    if not isinstance(entry, dict) or entry.keys() != {'step', 'exp_avg', 'exp_avg_sq'}:
        return False
    shapes = {'step': torch.Size(()), 'exp_avg': parameter.shape, 'exp_avg_sq': parameter.shape}
    return (all(isinstance(entry[key], torch.Tensor) and checkpoint.is_plain(entry[key])
                and entry[key].shape == shape and bool(entry[key].isfinite().all()) for key, shape in shapes.items())
            and bool((entry['exp_avg_sq'] >= 0).all()) and entry['step'] >= 0)


def _whole_number(saved, name, default, path):
    value = saved.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2 ** 53:
        raise damaged(path, name, 'is not a whole number')
    return value


def damaged(path, name, why):
    """The UserError for a part of a checkpoint that training cannot go on from."""
    return UserError(f'{path} is damaged: its {name} {why}; move it away, and --continue_training goes on from the '
                     'checkpoint before it (or begin a new --expname with its weights: --init_ckpt).')
