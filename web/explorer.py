"""The page with sliders that app.py serves, built with Gradio: its fields, and what it asks of a loaded model.

Its events are also an API by the names of the functions: picture, surface, mesh, video, and those of a photo
(own_photo.py). Whatever comes in, from the
page or the API, passes the `guard` of its field before a function sees it.
"""
import contextlib
import math
import os
import re
import tempfile
import warnings
from pathlib import Path

import trimesh
from munch import Munch
from trimesh.viewer import scene_to_html

from surfaces.files import for_gltf, save_mesh
from utils import UserError
from web.own_photo import Room, add_photo_part

SEEDS = 3, 8  # to begin with: of the bundled model two with good surfaces
MAX_SEED = 2 ** 31 - 1  # that a browser's numbers hold without loss
AT_ONCE = 2             # pictures computed at the same time, and beside them one mesh or video
WAITING = 1000          # requests in the queue; further ones are told to come back
CACHE_SECONDS = 3600    # how long results can be downloaded
MAX_FRAMES = 120
AROUND, WALK = 'one identity from around', 'the way to the second seed and back'
# Fonts and colors are those of the other pages; on a phone the pictures come before the sliders. Gradio marks dark mode
# with a class, and puts its own selector before those of a style sheet, where media queries are lost.
COLORS = (Path(__file__).with_name('colors.css')).read_text()
LIGHT, DARK = re.findall(r':root \{\s*(.*?)\s*\}', COLORS, re.DOTALL)
CSS = f':root, .gradio-container {{ {LIGHT} }} .dark, .dark .gradio-container {{ {DARK} }}' + '''
:root, .dark, .gradio-container, .dark .gradio-container {
  --body-background-fill: var(--back); --background-fill-primary: var(--card); --background-fill-secondary: var(--back);
  --block-background-fill: var(--card); --panel-background-fill: var(--back); --block-border-color: var(--line);
  --border-color-primary: var(--line); --body-text-color: var(--text); --body-text-color-subdued: var(--quiet);
  --block-label-text-color: var(--quiet); --block-title-text-color: var(--text); --block-info-text-color: var(--quiet);
  --block-label-background-fill: var(--card); --input-background-fill: var(--back); --input-border-color: var(--line);
  --checkbox-label-background-fill: var(--back); --checkbox-label-text-color: var(--text);
  --checkbox-background-color: var(--card); --checkbox-background-color-selected: var(--link);
  --button-secondary-background-fill: var(--stage); --button-secondary-background-fill-hover: var(--line);
  --button-secondary-text-color: var(--text);
  --block-radius: 12px; --button-primary-background-fill: var(--link); --button-primary-text-color: var(--back);
  --button-primary-background-fill-hover: var(--link); --slider-color: var(--link); --color-accent: var(--link);
}
.gradio-container { font-family: system-ui, sans-serif; }
.picture img { width: 100%; height: 100%; object-fit: contain; border-radius: 12px; }
@media (max-width: 640px) { .pictures { order: -1; } }
'''


def import_gradio():
    """The gradio module. Raises UserError where it is missing."""
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # read at import: nothing is sent home
    try:
        import gradio
    except ImportError:
        raise UserError('app.py needs Gradio: pip install -r requirements-app.txt.') from None
    warnings.filterwarnings('ignore', 'A `<script>` tag')  # the one in turning_view is in a frame, where it runs
    return gradio


# ---------------------------------------------------------------------------------------------- what comes in

def refusal(gr, text):
    """An error that is shown to whoever asked, without a traceback in the terminal."""
    return gr.Error(text, print_exception=False)


def guard(gr, field, check, problem):
    """Let a field hand on only what check(value) returns; where it raises ValueError, the request ends with `problem`.
    """
    def preprocess(value):
        try:
            return check(value)
        except (ValueError, TypeError, OverflowError):
            raise refusal(gr, problem) from None

    field.preprocess = preprocess
    return field


def number_between(low, high, whole=False):
    """A check for `guard`: a finite number from low to high."""
    def check(value):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        if not low <= value <= high or whole and value != int(value):
            raise ValueError
        return int(value) if whole else float(value)
    return check


def one_of(*choices):
    """A check for `guard`: one of some values, of the same type."""
    def check(value):
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError
        return value
    return check


# ---------------------------------------------------------------------------------------------- requests

def w_between(model, seed, other, mix, psi):
    """(1,style_dim) latents w, `mix` in [0, 1] of the way from one seed's to the other's; straight lines in w."""
    first, last = model.w_of([seed, other], psi)
    return first.lerp(last, mix)[None]


@contextlib.contextmanager
def request_file(name):
    """A path for a file that lasts as long as the request: Gradio copies what is yielded to it."""
    with tempfile.TemporaryDirectory(prefix='stylesdf-') as folder:
        yield Path(folder) / name


def turning_view(mesh):
    """HTML of a frame in which a mesh can be turned (trimesh's viewer; gradio.Model3D 6.31 often stays empty)."""
    gray = for_gltf(mesh, baseColorFactor=(0.5, 0.5, 0.5, 1.))  # the viewer's lights are strong
    html = scene_to_html(trimesh.Scene(gray), escape_quotes=True)
    return f'<iframe title="Surface in 3D" srcdoc="{html}" style="width: 100%; height: 400px; border: 0"></iframe>'


def requests_to(model, gr):
    """The functions that the page's events call: a Munch of picture, surface, mesh and video."""
    def picture(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = w_between(model, seed, other, mix, truncation)
        return model.picture(w, model.cameras([[azimuth, elevation]], zoom), truncation)

    def surface(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = w_between(model, seed, other, mix, truncation)
        return model.surface(w, model.cameras([[azimuth, elevation]], zoom))

    def mesh(seed, other, mix, truncation):
        solid = model.mesh(w_between(model, seed, other, mix, truncation))
        if solid is None:
            raise refusal(gr, 'The SDF does not cross zero here: this identity has no surface. Try another seed.')
        with request_file(f'stylesdf_seed{seed}.glb') as path:
            save_mesh(path, solid)
            yield turning_view(solid), str(path)

    def video(seed, other, mix, truncation, shows, frames, with_surface, progress=gr.Progress()):  # noqa: B008
        w = model.w_of([seed, other], truncation) if shows == WALK else w_between(model, seed, other, mix, truncation)
        with request_file(f'stylesdf_seed{seed}.mp4') as path:
            for done in model.video_steps(path, w, truncation, frames, with_surface):
                progress((done, frames), desc='rendering', unit='frames')
                if done < frames:
                    yield gr.skip()  # where the viewer has left, Gradio ends the request here
            yield str(path)

    return Munch(picture=picture, surface=surface, mesh=mesh, video=video)


# ---------------------------------------------------------------------------------------------- the page

def build(model, saved=()):
    """The page (gradio.Blocks) of a LoadedModel. saved: SavedLatents that it offers."""
    gr = import_gradio()
    with gr.Blocks(title='StyleSDF', analytics_enabled=False, delete_cache=(CACHE_SECONDS // 6, CACHE_SECONDS)) as page:
        gr.Markdown(f'# StyleSDF\nImages and surfaces of {model.opt.experiment.expname} from any side. Each seed is an '
                    'identity.')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                fields = identity_fields(gr, model)
            with gr.Column(scale=3, elem_classes='pictures'), gr.Row():
                fields.update(picture_fields(gr))
        with gr.Row():
            fields.update(file_fields(gr))
        add_photo_part(gr, Room(model, saved), Munch(slider=slider, guard=guard, one_of=one_of, refusal=refusal,
                                                     request_file=request_file))
        connect(gr, page, fields, requests_to(model, gr))
    refuse_too_few_values(gr, page)
    return page.queue(max_size=WAITING)


def refuse_too_few_values(gr, page):
    """Let a request through the API with too few values end like any other wrong one, without a traceback."""
    validate = page.validate_inputs

    def validate_or_refuse(function, values):
        try:
            validate(function, values)
        except ValueError:
            raise refusal(gr, f'Give {len(function.inputs)} values, not {len(values)}.') from None

    page.validate_inputs = validate_or_refuse


def identity_fields(gr, model):
    """The fields that choose an identity and a view: a Munch."""
    fields = Munch()
    with gr.Row():
        fields.seed = seed_field(gr, 'Seed', SEEDS[0])
        fields.other = seed_field(gr, 'Second seed', SEEDS[1])
    fields.mix = slider(gr, 0, 1, 0, step=0.01, label='On the way to the second seed')
    fields.truncation = slider(gr, 0, 1, min(1., model.opt.inference.truncation_ratio), step=0.01, label='Truncation',
                               info='0: the mean of all, 1: the full variety')
    fields.azimuth = slider(gr, -45, 45, 0, step=1, label='Azimuth (degrees)')
    fields.elevation = slider(gr, -30, 30, 0, step=1, label='Elevation (degrees)')
    fields.zoom = slider(gr, 0.75, 3, 1, step=0.05, label='Zoom')
    fields.new_seed = gr.Button('Another identity', variant='primary')
    return fields


def seed_field(gr, label, value):
    """A field for a seed."""
    field = gr.Number(value, label=label, precision=0, minimum=0, maximum=MAX_SEED, min_width=100)
    return guard(gr, field, number_between(0, MAX_SEED, whole=True),
                 f'{label}: give a whole number from 0 to {MAX_SEED}.')


def slider(gr, low, high, value, label, whole=False, **settings):
    """A slider whose value is checked."""
    return guard(gr, gr.Slider(low, high, value, label=label, **settings), number_between(low, high, whole),
                 f'{label}: give a {"whole " * whole}number from {low} to {high}.')


def picture_fields(gr):
    """Where the image and the shaded surface appear: a Munch."""
    image, shaded = (gr.Image(label=label, format='png', elem_classes='picture', height=420,
                              buttons=['download', 'fullscreen']) for label in ('Image', 'Surface'))
    return Munch(image=image, shaded=shaded)


def file_fields(gr):
    """The buttons for a mesh and a video, and where these appear: a Munch."""
    fields = Munch()
    with gr.Column():
        fields.make_mesh = gr.Button('Surface in 3D')
        fields.solid = gr.HTML(label='Surface: drag to turn it', show_label=True, container=True, min_height=420)
        fields.mesh_file = gr.File(label='Mesh (GLB, with colors)')
    with gr.Column():
        fields.make_video = gr.Button('Video')
        fields.clip = gr.Video(label='Video', autoplay=True, loop=True, height=420)
        fields.shows = guard(gr, gr.Radio([AROUND, WALK], value=AROUND, label='The video shows'),
                             one_of(AROUND, WALK), f'The video shows: give "{AROUND}" or "{WALK}".')
        fields.frames = slider(gr, 2, MAX_FRAMES, 40, step=1, label='Frames', whole=True)
        fields.with_surface = guard(gr, gr.Checkbox(label='with the surface beside it'), one_of(True, False),
                                    'With the surface beside it: give true or false.')
    return fields


def connect(gr, page, fields, requests):
    """Let the fields' events call the requests."""
    identity = [fields.seed, fields.other, fields.mix, fields.truncation]
    view = [fields.azimuth, fields.elevation, fields.zoom]
    for show, output in ((requests.picture, fields.image), (requests.surface, fields.shaded)):
        # While a slider is dragged only its last place is computed, not every one on the way.
        gr.on([page.load, *(field.change for field in identity + view)], show, identity + view, output,
              trigger_mode='always_last', show_progress='hidden', concurrency_limit=AT_ONCE,
              concurrency_id='pictures')
    fields.make_mesh.click(requests.mesh, identity, [fields.solid, fields.mesh_file], concurrency_limit=1,
                           concurrency_id='meshes')
    # A video takes long: the meshes do not wait for it.
    fields.make_video.click(requests.video, [*identity, fields.shows, fields.frames, fields.with_surface], fields.clip,
                            concurrency_limit=1, concurrency_id='videos')
    fields.new_seed.click(None, None, fields.seed, js=f'() => Math.floor(Math.random() * {MAX_SEED})')
