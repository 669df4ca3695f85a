"""Find directions in a model's latents, for --edit: of shape (w) and of color (w'), without any labels.

    python find_directions.py --expname cats_demo
    python generate_shapes_and_images.py --expname cats_demo --edit shape2=+1.5,color1=-2

    python find_directions.py --expname cats_demo --name fluffy --with_latents fluffy/ --without_latents sleek/
    python generate_shapes_and_images.py --expname cats_demo --edit fluffy=+1

Writes RESULTS_DIR/EXPNAME/MODEL/directions.pt, which --edit reads, and directions.png, a contact sheet. It has a row
for each direction, with an identity moved from -3 to +3 standard deviations along it. With --name it adds one direction
to the file: the way from the mean of one group of latents to that of another, such as invert_photos.py found for photos
with and without something.
"""
import options

if __name__ == '__main__':
    options.run('find_directions', __doc__)

from pathlib import Path

from tqdm import tqdm

from inference import results
from inference.contact_sheet import save_sheet, sheet_rows
from inference.directions import FILE, direction_between, find_directions, read_directions, save_directions
from inference.identities import draw_w, identities, of_seeds, seeded
from inference.latents import Owner, files_of, latents_of_w, read_latents
from inference.loading import load_generator
from utils import UserError, select_device, writable_file, writable_folder

SHEET_SEED = 0  # of the identity that the contact sheet shows


def is_replaced(name):
    """Whether a direction's name is one that this command gives; a run without --name replaces all of these."""
    return name.rstrip('0123456789') in ('shape', 'color')


def check(opt):
    """Raise UserError for a group of latents without the other or without a name, for a name that is replaced, for a
    file that cannot be written, or for identities that are all the same."""
    groups = [bool(opt.directions[name]) for name in ('name', 'with_latents', 'without_latents')]
    if any(groups) and not all(groups):
        raise UserError('a direction between two groups takes all of --name, --with_latents and --without_latents.')
    if opt.directions.name and is_replaced(opt.directions.name):
        raise UserError(f'--name {opt.directions.name}: the directions that are found without --name are called like '
                        'this, and would replace it; choose another name.')
    if opt.export.out and Path(opt.export.out).suffix != '.pt':  # of others the contact sheets could share a name
        raise UserError(f'--out {opt.export.out}: give a name that ends in .pt; the contact sheet beside it is called '
                        'like it, and ends in .png.')
    if not opt.inference.truncation_ratio and not opt.directions.name:
        raise UserError('--truncation_ratio 0 makes all identities the same, so they differ in no direction; give a '
                        'larger one.')
    if opt.export.out:
        writable_file(opt.export.out, '--out')


def group(paths, flag, generator, owner):
    """The Latents of the files that a flag names."""
    files = files_of(paths, flag)
    for file in files:
        if not file.exists():
            raise UserError(f'{flag} {file} does not exist; check the path.')
    return [read_latents(path, generator, owner).latents for path in tqdm(files, desc='reading')]


def main(opt):
    check(opt)
    device = select_device(opt.machine.device)
    generator, opt, path, model_name = load_generator(opt, device)
    folder = writable_folder(results.model_folder(opt, model_name), '--results_dir')
    file = Path(opt.export.out or folder / FILE)
    sheet = file.with_name(f'{file.stem}_{opt.directions.name}.png' if opt.directions.name else f'{file.stem}.png')
    owner, wanted, psi = Owner.of(generator, opt), opt.directions, opt.inference.truncation_ratio

    def there():
        return read_directions(file, generator, owner) if file.exists() else {}

    known = there()  # a file that cannot be read is refused before the long work
    # An earlier contact sheet is of directions that are in the file.
    if sheet.exists() and not any(name == wanted.name if wanted.name else is_replaced(name) for name in known):
        raise UserError(f'{sheet} is no contact sheet of directions in {file}, and would be overwritten; move it away, '
                        'or give another --out.')
    means = generator.mean_latents(opt.inference.truncation_mean, seeded(opt.experiment.seed, device))
    if wanted.name:
        found = {wanted.name: direction_between(group(wanted.with_latents, '--with_latents', generator, owner),
                                                group(wanted.without_latents, '--without_latents', generator, owner))}
    else:
        found = find_directions(generator, means, psi, wanted.method, wanted.count)
    with results.alone(file.parent):  # so that runs at the same time do not lose each other's directions
        kept = {name: step for name, step in there().items() if wanted.name or not is_replaced(name)}
        save_directions(file, kept | found, owner)
    identity = next(identities(of_seeds(opt, [SHEET_SEED]), seeded(opt.experiment.seed, device)))
    latents = latents_of_w(generator, draw_w(generator, identity, opt, means), psi, means)
    rows = sheet_rows(generator, latents, found, opt, surfaces=not opt.inference.no_surface_renderings)
    save_sheet(sheet, tqdm(rows, total=len(found), desc='contact sheet', unit='direction'))
    counted = f'{len(found)} direction' + 's' * (len(found) > 1)
    print(f'{counted} ({", ".join(found)}) in {file}, with the contact sheet {sheet}')
