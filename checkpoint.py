"""Checkpoints: where they live, strict and safe loading, atomic saving.

A checkpoint is a dict of state dicts under 'g', 'd' and 'g_ema', as the original writes it; ours may hold more beside
them. Files are untrusted: they are read with weights_only=True, which cannot run code.
"""
import difflib
import errno
import glob
import hashlib
import os
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from model import build_generator, sizes_of
from options import FLAGS, adopted_flags, checked, fixed_flags, replaced
from utils import UserError, atomic_path, printable, remedy

FINAL_MODELS = Path('full_models')
RENDERERS = Path('pretrained_renderer')
DEMO_MODELS = Path(__file__).resolve().parent / 'demo'  # the bundled demo model
SPHERE = 'sphere_init.pt'  # what stage 1 begins with, made by itself or the official one


# ---------------------------------------------------------------------------------------------- where files live

def final_model_path(expname):
    """The finished stage-2 model, which generation looks for first."""
    return FINAL_MODELS / f'{expname}.pt'


def renderer_path(expname):
    """The finished stage-1 model, which stage 2 starts from."""
    return RENDERERS / f'{expname}_vol_renderer.pt'


def stage_folder(opt, stage):
    """Folder of an experiment's checkpoints; stage: 'volume_renderer' or 'full_pipeline'."""
    return Path(opt.training.checkpoints_dir) / opt.experiment.expname / stage


def iteration_path(opt, stage, iteration):
    """The checkpoint of one training step."""
    return stage_folder(opt, stage) / f'models_{iteration:07d}.pt'


def iteration_of(path):
    """The training step that a checkpoint's name tells, or None."""
    number = path.stem.removeprefix('models_')
    return int(number) if number.isdecimal() else None


def iteration_paths(opt, stage):
    """{iteration: path} of a stage's checkpoints, the newest first."""
    found = {iteration_of(path): path for path in stage_folder(opt, stage).glob('models_*.pt')}
    return {iteration: found[iteration] for iteration in sorted(found.keys() - {None}, reverse=True)}


def find_model(opt):
    """(path, name of its results folder) of the model that --model names, or --expname and --ckpt.

    The finished model comes first, then the full pipeline's checkpoint --ckpt, then, where there is no other of those,
    what stage 1 finished with (a field without decoder), and last the bundled demo model. Raises UserError that lists
    where it looked.
    """
    if opt.experiment.model:
        return Path(opt.experiment.model), 'final_model'
    iteration = opt.experiment.ckpt
    candidates = [(final_model_path(opt.experiment.expname), 'final_model'),
                  (iteration_path(opt, 'full_pipeline', iteration), f'iter_{iteration:07d}')]
    others = iteration_paths(opt, 'full_pipeline')
    if 'ckpt' not in opt.given and not others:
        candidates.append((renderer_path(opt.experiment.expname), 'vol_renderer'))
        candidates.append((DEMO_MODELS / f'{opt.experiment.expname}.pt', 'final_model'))
    for path, name in candidates:
        if path.is_file():
            return path, name
    there = f' (--ckpt can be {", ".join(map(str, others))})' if others else ''
    meant = difflib.get_close_matches(opt.experiment.expname, _names_of_models(opt), 1)
    meant = f' Did you mean {meant[0]}?' if meant else ''
    raise UserError(f'no checkpoint for --expname {opt.experiment.expname}: looked for '
                    f'{", ".join(str(path) for path, _ in candidates)}{there}; train one, run download_models.py, '
                    f'or check the name and the folder you are in.{meant}')


def _names_of_models(opt):
    """The experiments for which a command would find a model."""
    ending = renderer_path('').name
    return sorted({path.name.removesuffix(suffix) for folder, suffix in
                   ((FINAL_MODELS, '.pt'), (DEMO_MODELS, '.pt'), (RENDERERS, ending))
                   for path in folder.glob(f'*{suffix}')}
                  | {path.parent.parent.name
                     for path in Path(opt.training.checkpoints_dir).glob('*/full_pipeline/models_*.pt')})


# ---------------------------------------------------------------------------------------------- reading

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_SHARED = 2  # times what a file holds may its entries claim; two may be the same one (tied weights)
COUNTERS = ('num_batches_tracked', 'total_ops', 'total_params', 'n_averaged')  # entries of other tools, of no use here
DISK_ERRNOS = errno.EIO, errno.ESTALE, errno.ENOTCONN
WRAPPERS = {'module.': 'DataParallel', '_orig_mod.': 'torch.compile'}  # and the prefix that each gives to all names


class Unreadable(UserError):
    """A file that the disk or its permissions do not give us, though it may be whole."""


def read(path, key='g_ema'):
    """The checkpoint at `path` as a dict on the CPU, checked to hold finite tensors under `key`.

    What is plainly meant is taken, with one line saying so: weights under 'g' alone or without any key, names under the
    prefix of a wrapper (torch.nn.DataParallel, torch.compile). Raises UserError for a file that is missing, damaged,
    not a checkpoint, or that would have to run code to load; and for tensors that claim more than the file holds,
    before anything is made of them.
    """
    path = Path(path)
    contents = _weights_under(key, contents_of(path), path)
    state = contents.get(key)
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} is not a StyleSDF checkpoint: it holds no state dict of real numbers under '{key}' "
                        f'(but {_listed(contents)}).')
    contents[key] = state = _cleaned(state, path)
    for name, tensor in state.items():
        _check_tensor(printable(name), tensor, path)
    _check_sharing(state, path)
    if (state.get('renderer.sigmoid_beta', torch.ones(1)) <= 0).any():
        raise UserError(f'{path} has a beta (renderer.sigmoid_beta) of 0 or less, and so no density: the training that '
                        'wrote it diverged; use an earlier checkpoint.')
    return contents


def contents_of(path):
    """The contents of a file of torch.save, whatever they are. Raises UserError, one sentence, where it cannot be read.

    What it holds is not checked: tensors in it may claim more than there is (see `is_plain`).
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe, for instance, from which reading would never end
        raise UserError(f'{path} is no file; check the path.')
    try:
        _refuse_compression(path)
        with warnings.catch_warnings():  # about pickles that are refused anyway
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; check the path.') from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any exception
        # Not for what damage makes the unpickler seek and read.
        if isinstance(error, OSError) and (error.filename or error.errno in DISK_ERRNOS):
            raise Unreadable(f'{path} cannot be read ({error.strerror}); check its permissions and the disk.') from None
        if isinstance(error, pickle.UnpicklingError) and 'GLOBAL' in str(error):
            raise UserError(f'{path} holds Python code or objects beside tensors, which could do anything when loaded, '
                            'and was refused; get the file from a source you trust.') from None
        if 'Unsupported operand' in str(error) and _is_whole_pickle(path):  # of protocols 0 and 1, or 4 and newer
            raise UserError(f'{path} is not pickled as torch.save does it, cannot be read without risk of running '
                            'code, and was refused; its owner can save it again with torch.save.') from None
        if tarfile.is_tarfile(path):
            raise UserError(f'{path} is in the tar format of PyTorch before 0.4, which can only be read by running '
                            'code, and was refused; its owner can save it again with torch.save.') from None
        raise UserError(f'{path} is no PyTorch checkpoint, or a damaged or incomplete one; copy or download it '
                        'again.') from None


def _refuse_compression(path):
    """Raise UserError for an archive that unpacks to more than the file is long, which torch.save never writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise UserError(f'{path} is compressed, which torch.save never does, and was refused: what it unpacks '
                                'to could fill the memory; its owner can save it again with torch.save.')


def _weights_under(key, contents, path):
    """A checkpoint that holds its weights under `key`, also where the file has them under 'g' or bare."""
    if not isinstance(contents, dict):
        raise UserError(f"{path} is not a StyleSDF checkpoint: it holds no state dict of real numbers under '{key}' "
                        f'(but a {type(contents).__name__}).')
    if key in contents or not contents:
        return contents
    if key == 'g_ema' and isinstance(contents.get('g'), dict) and contents['g']:
        print(f"{path} holds no averaged weights (g_ema): using those under 'g'.")
        return contents | {key: contents['g']}
    if all(isinstance(value, torch.Tensor) for value in contents.values()):
        print(f'{path} is a state dict without a key: taking it for the generator.')
        return {key: contents}
    return contents


def _cleaned(state, path):
    """A state dict without the prefixes of what its model was wrapped in, and without counters of other tools."""
    if not all(isinstance(name, str) for name in state):
        raise UserError(f'{path} is not a StyleSDF checkpoint: its state dict has names that are no text.')
    dropped = [name for name in state if name.rpartition('.')[2] in COUNTERS]
    if dropped:
        print(f'{path}: {len(dropped)} entries left out that other tools count in ({printable(dropped[0])}).')
    state = {name: value for name, value in state.items() if name not in dropped}
    while wrapped := [prefix for prefix in WRAPPERS if state and all(name.startswith(prefix) for name in state)]:
        print(f'{path} was saved by {WRAPPERS[wrapped[0]]}: leaving out the prefix "{wrapped[0]}" of its names.')
        state = {name.removeprefix(wrapped[0]): value for name, value in state.items()}
    return state


def is_plain(tensor):
    """Whether a tensor is a dense one of real numbers, and claims no more of them than it holds."""
    return (tensor.layout is torch.strided and tensor.device.type == 'cpu' and not tensor.is_nested
            and not tensor.is_quantized and tensor.dtype in FLOATS
            and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


def _check_tensor(name, tensor, path):
    """Raise UserError where an entry of a state dict is no tensor of finite real numbers."""
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f'{path} is not a StyleSDF checkpoint: {name} is no tensor.')
    if not is_plain(tensor):
        raise UserError(f'{path} is not a StyleSDF checkpoint: {name} is no plain tensor of real numbers '
                        f'({str(tensor.dtype).removeprefix("torch.")}), or claims more of them than the file holds.')
    if not tensor.numel():
        raise UserError(f'{path} is not a StyleSDF checkpoint: {name} is empty.')
    if not tensor.isfinite().all():
        raise UserError(f'{path} holds values that are not finite numbers (in {name}): the training that wrote it '
                        'diverged; use an earlier checkpoint.')


def _check_sharing(state, path):
    """Raise UserError where the entries of a state dict claim far more numbers than it holds, by sharing them."""
    storages = {storage.data_ptr(): storage.nbytes()
                for storage in (tensor.untyped_storage() for tensor in state.values())}
    if sum(tensor.nbytes for tensor in state.values()) > MOST_SHARED * sum(storages.values()):
        raise UserError(f'{path} is not a StyleSDF checkpoint: its entries share their numbers, so a model made of '
                        'them would be far larger than the file.')


def _listed(contents, most=5):
    """The keys of a dict, in words."""
    names = [printable(name) for name in list(contents)[:most]]
    return ', '.join(names + ['…'] * (len(contents) > most)) or 'nothing'


def _is_whole_pickle(path):
    """Whether the file is (or, of torch.save's archives, holds) a pickle of any protocol. It is read, never run."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, 'rb') as file:
                return all(pickletools.genops(file))
        with zipfile.ZipFile(path) as archive:
            return all(all(pickletools.genops(archive.read(name))) for name in archive.namelist()
                       if name.endswith('/data.pkl'))
    except Exception:  # a damaged archive can fail in many ways
        return False


def newest_whole(opt, stage):
    """(path, checkpoint) of a stage's newest checkpoint that is whole, or None; says which damaged ones it passes over.

    Raises UserError where one cannot be read: it may be whole, and the steps since the one before it would be lost.
    """
    for path in iteration_paths(opt, stage).values():
        try:
            return path, read(path)
        except Unreadable:
            raise
        except UserError as error:
            if not os.path.lexists(path):  # removed since by another run, which has a newer one now
                return newest_whole(opt, stage)
            print(f'Passing over a checkpoint: {error}')
    return None


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- options

def sizes(state, path, rays=64, multiplier=1, limit=0):
    """The flags that the shapes of a generator's state dict tell (model.sizes_of). Raises UserError if it is none."""
    try:
        return sizes_of(state, rays, multiplier, limit)
    except ValueError as error:
        raise UserError(f'{path} is not a StyleSDF generator: {error}.') from None


def saved_options(opt):
    """The option tree as plain containers, for a checkpoint."""
    return {name: dict(group) for name, group in opt.items() if isinstance(group, dict)}


def reconcile(opt, saved, path, resumed=False):
    """The option tree that fits a checkpoint of ours or an official one, which holds no options.

    Flags that its weights tell get the value that they have there. Of the others, those that the command adopts
    (options.adopted_flags) and the user did not give are taken from the options of the checkpoint. Where anything
    changes one line says so. resumed: the training goes on from it, so what is learnt must stay the same. Raises
    UserError for what the user typed and the checkpoint contradicts, and for an option without meaning.
    """
    there, here = _flags_in(saved, path), flags_of(opt)
    adopted = {}
    for name in adopted_flags(opt.command, has_decoder(saved['g_ema'])):
        if name in there and name not in opt.given and there[name] != here[name]:
            try:
                adopted[name] = checked(name, there[name])
            except ValueError as error:
                raise UserError(f'{path} was trained with {name} {printable(repr(there[name]))}, which {error}; give '
                                f'--{name}.') from None
    here |= adopted
    told = sizes(saved['g_ema'], path, here['renderer_spatial_output_dim'], here['channel_multiplier'],
                 here['channel_max'])
    wrong = {name: value for name, value in told.items() if here[name] != value}
    _refuse_contradictions(opt, wrong, path)
    for how, values in (('was trained with', {name: adopted[name] for name in adopted if name not in wrong}),
                        ('has', wrong)):
        if values:
            print(f'{path} {how} {", ".join(f"{name} {value}" for name, value in values.items())}: using that.')
    here |= wrong
    if resumed:
        differing = [f'--{name} {printable(there[name])} there, {here[name]} here' for name in fixed_flags(opt.command)
                     if name in there and there[name] != here[name]]
        if differing:
            raise UserError(f'{path} was trained with other options ({"; ".join(differing)}); give the same ones, or '
                            'begin a new --expname.')
    opt = replaced(opt, **adopted | wrong)
    check_fits(opt, saved['g_ema'], path)
    return opt


def flags_of(tree):
    """{name: value} of all flags in an option tree, or in what a file holds in its place."""
    groups = tree.values() if isinstance(tree, dict) else ()
    return {name: value for group in groups if isinstance(group, dict) for name, value in group.items()}


def _flags_in(saved, path):
    """flags_of the options that a checkpoint holds. Raises UserError where one of ours is no number or text."""
    there = flags_of(saved.get('options'))
    for name, value in there.items():
        values = value if isinstance(value, list | tuple) else [value]
        if name in FLAGS and not all(part is None or isinstance(part, bool | int | float | str) for part in values):
            raise UserError(f'{path} is damaged: its option {name} is no number or text; use an earlier checkpoint, or '
                            'one from elsewhere.')
    return there


def _refuse_contradictions(opt, wrong, path):
    """Raise UserError where the user typed one of the flags `wrong`, whose values the weights tell."""
    for name in wrong.keys() & opt.given:
        typed = flags_of(opt)[name]
        contradiction = f'--{name}' if wrong[name] is False else f'--{name} {typed}'
        raise UserError(f'{contradiction} contradicts {path}, which has {name} {wrong[name]}; leave the flag out, and '
                        'the value is read from the file.')


# ---------------------------------------------------------------------------------------------- loading

def has_decoder(state):
    """Whether a generator's state dict is that of a full model."""
    return any(str(name).startswith('decoder.') for name in state)


def without_decoder(state):
    """The part of a generator's state dict that stage 1 trains: mapping, field and renderer."""
    return {name: tensor for name, tensor in state.items() if not str(name).startswith('decoder.')}


def is_projected(name):
    """Whether an entry of a discriminator's state dict belongs to the projected one beside it (training/projected.py).
    """
    return str(name).startswith('projected.')


def without_projected(state):
    """A discriminator's state dict without what belongs to the projected one beside it."""
    return {name: tensor for name, tensor in state.items() if not is_projected(name)}


def load_state(module, state, path):
    """Load a state dict into a module, strictly: names and shapes must agree; half precision becomes the module's.

    The one exception are noise maps that the file lacks or has of another size, as official ones: the module keeps its
    own, with one line saying so. Raises UserError that names the first missing, unknown or misshapen entry.
    """
    if not isinstance(state, dict):
        raise UserError(f'{path} does not fit this model: it holds no state dict; check which stage it comes from.')
    own = module.state_dict()
    skipped = [name for name in own if name.startswith('decoder.noises.')
               and (name not in state or _shape(state[name]) != own[name].shape)]
    _check_names(own.keys() - set(skipped), state.keys() - set(skipped), path)
    for name, tensor in own.items():
        if name not in skipped:
            _check_shape(name, state[name], tensor.shape, path)
            _check_tensor(name, state[name], path)
    if skipped:
        print(f'{path}: {len(skipped)} noise maps are missing or of another size '
              f'({", ".join(name.rpartition(".")[2] for name in skipped)}); other maps stand in for them.')
    module.load_state_dict({**state, **{name: own[name] for name in skipped}})
    return module


def _check_names(wanted, there, path):
    for what, names in (('lacks', wanted - there), ('has the unknown entry', there - wanted)):
        if names:
            more = f' (and {len(names) - 1} more)' if len(names) > 1 else ''
            raise UserError(f'{path} does not fit this model: it {what} {printable(min(names, key=str))}{more}; check '
                            'the model flags and which stage the file comes from.')


def _check_shape(name, value, shape, path):
    if _shape(value) != shape:
        raise UserError(f'{path} does not fit this model: {name} is {_shape(value)} there and {tuple(shape)} here; '
                        'check the model flags.')


def _shape(value):
    return tuple(value.shape) if isinstance(value, torch.Tensor) else 'no tensor'


class _ShapesOnly(TorchFunctionMode):
    """Inside, weights are made on the meta device, which holds shapes and no numbers.

    What `torch.device('meta')` does besides makes PyTorch import its compiler, which takes seconds.
    """
    MADE = (torch.empty, torch.randn, torch.zeros, torch.ones)
    KEEP_THEIR_SHAPE = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.div, torch.Tensor.__truediv__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.MADE:
            return torch.empty(*args, **kwargs | {'device': 'meta'})
        return args[0] if function in self.KEEP_THEIR_SHAPE and args[0].is_meta else function(*args, **kwargs)


def check_fits(opt, state, path):
    """Raise UserError where a generator's state dict does not have the shapes that the flags describe.

    Nothing is allocated for it, so a small file cannot ask for an enormous model.
    """
    try:
        with _ShapesOnly():
            model = build_generator(opt, full_pipeline=has_decoder(state))
    except (RuntimeError, OverflowError, ValueError):
        raise UserError(f'{path} is not a StyleSDF generator: its tensors claim an impossible size.') from None
    for name, tensor in model.state_dict().items():
        if name in state and not name.startswith('decoder.noises.'):
            _check_shape(name, state[name], tensor.shape, path)


# ---------------------------------------------------------------------------------------------- writing

def save(path, checkpoint):
    """Write a checkpoint atomically: whoever reads `path` finds the old file or the whole new one.

    Raises UserError where it cannot be written, for instance on a full disk; nothing is left of it then.
    """
    try:
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # PyTorch's own, in whose context the file's error is
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())  # the new file is on the disk before it takes the old one's place
    except OSError as error:
        raise UserError(f'cannot write {path} ({error.strerror}); {remedy(error)}.') from None


def prune(opt, stage, keep, newest):
    """Remove what a stage does not need once the checkpoint of step `newest` is written: the unfinished sphere, and its
    oldest checkpoints until `keep` are left (0: keep all).

    Checkpoints of later steps stay, and do not count: the training has passed them over, as damaged.
    """
    (stage_folder(opt, stage) / SPHERE).unlink(missing_ok=True)
    paths = [path for iteration, path in iteration_paths(opt, stage).items() if iteration <= newest]
    for path in paths[keep:] if keep else ():
        path.unlink(missing_ok=True)


def remove_leftovers(opt, stage, final):
    """Remove the unfinished files (utils.atomic_path) that killed runs of a stage left behind, in its folder and beside
    its finished model, `final`."""
    folder = stage_folder(opt, stage)
    for place, name in ((folder, 'models_*.pt'), (folder, SPHERE), (folder, 'stats.jsonl'), (folder, 'progress.png'),
                        (folder / 'samples', '*.png'), (final.parent, glob.escape(final.name))):
        stem, _, suffix = name.rpartition('.')
        for path in place.glob(f'.{stem}-????????.{suffix}'):
            path.unlink(missing_ok=True)
