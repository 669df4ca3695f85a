"""The part of the app's page where a photo is uploaded, found in the model, turned, edited and downloaded.

What is found of a photo is kept with the page that asked for it, and goes with it. The uploaded file is removed as soon
as it has been read.
"""
import contextlib
import functools
import os
from pathlib import Path

from munch import Munch
from PIL import Image

from imaging.fit import RESAMPLE, resize_and_crop
from imaging.pixels import UnusablePixels, read_photo
from inference.directions import edited, find_directions
from inference.latents import save_latents
from inversion.encoder import encoder_path, read_encoder
from inversion.inverter import Inverter
from inversion.inverting import Guesser, Inversion, Settings
from inversion.photos import as_tensor
from inversion.writing import outcome_of, picture_of, saved_of
from surfaces.files import save_mesh
from utils import UserError, to_uint8

UPLOAD_BYTES = 20 << 20   # of one photo
MAX_PIXELS = 50_000_000   # of one photo
KEPT_SECONDS = 3600       # how long a page that nobody uses keeps what was found
STEPS, TUNE_STEPS, SECONDS = 120, 300, 120.  # of the optimization of a photo; the time is a limit
SHOWN_EVERY = 10          # steps between the pictures that are shown on the way
EDITS = 3                 # sliders of shape, and of color
MOST = 3.                 # standard deviations that a slider reaches


class Room:
    """What inverting needs of a LoadedModel, made when the first photo comes; `saved`: SavedLatents of --latents."""

    def __init__(self, model, saved=()):
        self.model, self.saved = model, {one.name: one for one in saved}

    @functools.cached_property
    def inverter(self):
        model = self.model
        return Inverter.with_features(model.generator, model.opt, model.means, model.path)

    @functools.cached_property
    def guesser(self):
        encoder = read_encoder(encoder_path(self.model.path), self.inverter, self.model.owner)
        return Guesser(self.inverter, encoder, starts=3)

    @functools.cached_property
    def directions(self):
        opt = self.model.opt.inference
        return find_directions(self.model.generator, self.model.means, opt.truncation_ratio, 'pca', EDITS)

    def edited(self, saved, amounts):
        """SavedLatents moved along the first directions by amounts, in the order of `edit_names`."""
        edits = [(name, amount) for name, amount in zip(self.edit_names, amounts, strict=True) if amount]
        return saved._replace(latents=edited(saved.latents, edits, self.directions)) if edits else saved

    @property
    def edit_names(self):
        """The names of the directions that have sliders."""
        kinds = ['shape'] + ['color'] * self.model.generator.full_pipeline
        return [f'{kind}{number}' for kind in kinds for number in range(1, EDITS + 1)]


def uploaded(path):
    """The photo in an uploaded file, which is removed. Raises ValueError with a sentence for what is no photo."""
    path = Path(path)
    try:
        if path.stat().st_size > UPLOAD_BYTES:
            raise ValueError(f'Photo: the file has more than {UPLOAD_BYTES >> 20} MB.')
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f'Photo: it has more than {MAX_PIXELS // 10 ** 6} million pixels.')
        return read_photo(path.read_bytes()).image
    except UnusablePixels as error:
        raise ValueError(f'Photo: {error}.') from None
    except ValueError:
        raise
    except FileNotFoundError:
        raise ValueError('Photo: it was removed after the last search; upload it again.') from None
    except Exception:  # Pillow's decoders raise errors of every kind for broken files
        raise ValueError('Photo: this file cannot be read as an image.') from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def invert_steps(room, image, tune):
    """Yield (SavedLatents or None, picture or None, a line) while a photo, a Pillow image, is inverted."""
    inverter = room.inverter
    target = as_tensor(resize_and_crop(image, inverter.size, RESAMPLE['lanczos']), inverter.device)
    yield None, None, 'Looking for a first guess …'
    settings = Settings(STEPS, SECONDS, TUNE_STEPS if tune else 0, 3)
    inversion = Inversion(inverter, target, room.guesser, settings)
    for step, progress in enumerate(inversion.run()):
        if inversion.found is not None and step % SHOWN_EVERY == 0:
            picture = picture_of(inverter, saved_of(inversion))[0]
            yield None, to_uint8(picture)[0], f'{progress.phase}: {100 * progress.done:.0f}%'
    outcome = outcome_of(inversion, source='an uploaded photo')
    yield outcome.saved, to_uint8(outcome.picture)[0], f'Found: {outcome.line}.'


def photo_requests(room, gr, request_file, refusal):
    """The functions that the events of this part call: a Munch."""
    model = room.model

    def needed(saved):
        if saved is None:
            raise refusal(gr, 'Photo: upload one and find it first.')
        return saved

    def find(path, tune):
        try:
            image = uploaded(path)
        except ValueError as error:
            raise refusal(gr, str(error)) from None
        try:
            for saved, picture, line in invert_steps(room, image, tune):
                yield saved, gr.skip() if picture is None else picture, line
        except UserError as error:
            raise refusal(gr, str(error)) from None

    def choose(name):
        return room.saved[name], model.picture(room.saved[name], model.cameras([[0., 0.]])), f'Latents {name}.'

    def turn(saved, azimuth, elevation, *amounts):
        if saved is None:
            return gr.skip()
        return model.picture(room.edited(saved, amounts), model.cameras([[azimuth, elevation]]))

    def photo_mesh(saved, *amounts):
        solid = model.mesh(room.edited(needed(saved), amounts))
        if solid is None:
            raise refusal(gr, 'The SDF does not cross zero here: there is no surface.')
        with request_file('stylesdf_photo.glb') as path:
            save_mesh(path, solid)
            yield str(path)

    def photo_video(saved, *amounts):
        with request_file('stylesdf_photo.mp4') as path:
            for done in model.video_steps(path, room.edited(needed(saved), amounts)):
                if done % SHOWN_EVERY == 0:
                    yield gr.skip()
            yield str(path)

    def photo_latents(saved, *amounts):
        moved = room.edited(needed(saved), amounts)
        with request_file('stylesdf_latents.pt') as path:
            save_latents(path, moved.latents, model.owner, moved.viewpoints, camera=model.opt.camera, noise=moved.noise,
                         tuned=moved.tuned, source=moved.source)
            yield str(path)

    return Munch(find=find, choose=choose, turn=turn, photo_mesh=photo_mesh, photo_video=photo_video,
                 photo_latents=photo_latents)


# ---------------------------------------------------------------------------------------------- fields

def add_photo_part(gr, room, tools):
    """Add this part to the page that is being built. tools: of web.explorer, a Munch of slider, guard, one_of, refusal
    and request_file."""
    requests = photo_requests(room, gr, tools.request_file, tools.refusal)
    kept = gr.State(None, time_to_live=KEPT_SECONDS)
    with gr.Accordion('A photo of your own', open=False), gr.Row():
        with gr.Column(scale=1, min_width=280):
            photo = upload_field(gr, tools)
            tune = tools.guard(gr, gr.Checkbox(label='Tune the decoder too (slower, more like the photo)'),
                               tools.one_of(True, False), 'Tune the decoder too: give true or false.')
            find = gr.Button('Find it', variant='primary')
            names = list(room.saved)
            chosen = tools.guard(gr, gr.Dropdown(names, label='Latents of --latents', visible=bool(names)),
                                 tools.one_of(*names), 'Latents of --latents: choose one.') if names else None
            line = gr.Markdown()
        with gr.Column(scale=2):
            found = gr.Image(label='Found', format='png', height=420, interactive=False)
            view = [tools.slider(gr, -45, 45, 0, step=1, label='Turn (degrees)'),
                    tools.slider(gr, -30, 30, 0, step=1, label='Tilt (degrees)')]
            with gr.Row():
                amounts = [tools.slider(gr, -MOST, MOST, 0, step=0.1, label=f'{name.capitalize()}')
                           for name in room.edit_names]
            buttons = [(gr.Button(label), function, output) for label, function, output in (
                ('Mesh of the photo', requests.photo_mesh, gr.File(label='Mesh of the photo (GLB)')),
                ('Video of the photo', requests.photo_video, gr.Video(label='Turning', loop=True, height=320)),
                ('Latents of the photo', requests.photo_latents, gr.File(label='Latents, for --latents')))]
    find.click(requests.find, [photo, tune], [kept, found, line], concurrency_limit=1, concurrency_id='inversions')
    if chosen:
        chosen.change(requests.choose, chosen, [kept, found, line])
    gr.on([field.change for field in view + amounts], requests.turn, [kept, *view, *amounts], found,
          trigger_mode='always_last', show_progress='hidden')
    for button, function, output in buttons:
        button.click(function, [kept, *amounts], output, concurrency_limit=1, concurrency_id=function.__name__)


def upload_field(gr, tools):
    """The field for a photo, which hands on the path of the uploaded file."""
    field = gr.Image(label='Photo', sources=['upload'], type='filepath')

    def preprocess(value):
        path = getattr(value, 'path', None)
        if not isinstance(path, str):
            raise tools.refusal(gr, 'Photo: upload an image.')
        return path

    field.preprocess = preprocess
    return field
