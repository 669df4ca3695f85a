"""The page with sliders that app.py serves, built with Gradio: its fields, and what it asks of a loaded model.

Its events are also an API by the names of the functions: picture, surface, mesh, video. What comes in is checked by one
function, `checked`.
"""
import math
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import trimesh
from munch import Munch
from trimesh.viewer import scene_to_html

from surfaces.files import for_gltf, save_mesh
from utils import UserError

MAX_SEED = 2 ** 31 - 1  # that a browser's numbers hold without loss
AT_ONCE = 2             # pictures computed at the same time, and beside them one mesh or video
WAITING = 64            # requests in the queue; further ones are told to come back
CACHE_SECONDS = 3600    # how long results can be downloaded
AROUND, WALK = 'one identity from around', 'the way to the second seed and back'
CSS = '''
.picture img { width: 100%; height: 100%; object-fit: contain; }
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


# ---------------------------------------------------------------------------------------------- requests

def w_between(model, seed, other, mix, psi):
    """(1,style_dim) latents w, `mix` in [0, 1] of the way from one seed's to the other's; straight lines in w."""
    first, last = model.w_of([seed, other], psi)
    return first.lerp(last, mix)[None]


def file_of_request(name, write):
    """Yield the path of a file that write(path) has made. Gradio copies what is yielded, and then it is removed."""
    with tempfile.TemporaryDirectory(prefix='stylesdf-') as folder:
        path = Path(folder) / name
        write(path)
        yield str(path)


def turning_view(mesh):
    """HTML of a frame in which a mesh can be turned (trimesh's viewer; gradio.Model3D 6.31 often stays empty)."""
    gray = for_gltf(mesh, baseColorFactor=(0.5, 0.5, 0.5, 1.))  # the viewer's lights are strong
    html = scene_to_html(trimesh.Scene(gray), escape_quotes=True)
    return f'<iframe title="Surface in 3D" srcdoc="{html}" style="width: 100%; height: 400px; border: 0"></iframe>'


def requests_to(model, gr):
    """The functions that the page's events call: a Munch of picture, surface, mesh and video."""
    refusal = partial(gr.Error, print_exception=False)  # shown on the page; no traceback in the terminal

    def checked(*values):
        """The values of the fields, all of them finite numbers; else a refusal."""
        if not all(value is not None and math.isfinite(value) for value in values):
            raise refusal('A field is empty: give a whole number as seed.')
        return values

    def picture(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = w_between(model, *checked(seed, other, mix, truncation))
        return model.picture(w, model.cameras([[azimuth, elevation]], zoom), truncation)

    def surface(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = w_between(model, *checked(seed, other, mix, truncation))
        return model.surface(w, model.cameras([[azimuth, elevation]], zoom))

    def mesh(seed, other, mix, truncation):
        solid = model.mesh(w_between(model, *checked(seed, other, mix, truncation)))
        if solid is None:
            raise refusal('The SDF does not cross zero here: this identity has no surface. Try another seed.')
        for path in file_of_request(f'stylesdf_seed{seed}.glb', lambda path: save_mesh(path, solid)):
            yield turning_view(solid), path

    def video(seed, other, mix, truncation, shows, frames, with_surface, progress=gr.Progress()):  # noqa: B008
        checked(seed, other, mix, truncation)
        w = model.w_of([seed, other], truncation) if shows == WALK else w_between(model, seed, other, mix, truncation)
        yield from file_of_request(f'stylesdf_seed{seed}.mp4', lambda path: model.video(
            path, w, truncation, frames, with_surface, lambda steps: progress.tqdm(steps, desc='rendering')))

    return Munch(picture=picture, surface=surface, mesh=mesh, video=video)


# ---------------------------------------------------------------------------------------------- the page

def build(model):
    """The page (gradio.Blocks) of a LoadedModel."""
    gr = import_gradio()
    with gr.Blocks(title='StyleSDF', analytics_enabled=False, delete_cache=(CACHE_SECONDS // 6, CACHE_SECONDS)) as page:
        gr.Markdown(f'# StyleSDF\nImages and surfaces of {model.opt.experiment.expname} from any side. Each seed is an '
                    'identity.')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                fields = identity_fields(gr, model)
            with gr.Column(scale=3), gr.Row():
                fields.update(picture_fields(gr))
        with gr.Row():
            fields.update(file_fields(gr))
        connect(gr, page, fields, requests_to(model, gr))
    return page.queue(max_size=WAITING)


def identity_fields(gr, model):
    """The fields that choose an identity and a view: a Munch."""
    fields = Munch()
    with gr.Row():
        fields.seed = seed_field(gr, 'Seed', 0)
        fields.other = seed_field(gr, 'Second seed', 2)
    fields.mix = gr.Slider(0, 1, 0, step=0.01, label='On the way to the second seed')
    fields.truncation = gr.Slider(0, 1, min(1., model.opt.inference.truncation_ratio), step=0.01, label='Truncation',
                                  info='0: the mean of all, 1: the full variety')
    fields.azimuth = gr.Slider(-45, 45, 0, step=1, label='Azimuth (degrees)')
    fields.elevation = gr.Slider(-30, 30, 0, step=1, label='Elevation (degrees)')
    fields.zoom = gr.Slider(0.75, 3, 1, step=0.05, label='Zoom')
    fields.new_seed = gr.Button('Another identity', variant='primary')
    return fields


def seed_field(gr, label, value):
    """A field for a seed."""
    return gr.Number(value, label=label, precision=0, minimum=0, maximum=MAX_SEED, min_width=100)


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
        fields.shows = gr.Radio([AROUND, WALK], value=AROUND, label='The video shows')
        fields.frames = gr.Slider(10, 120, 40, step=1, label='Frames')
        fields.with_surface = gr.Checkbox(label='with the surface beside it')
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
    slow = {'concurrency_limit': 1, 'concurrency_id': 'files'}
    fields.make_mesh.click(requests.mesh, identity, [fields.solid, fields.mesh_file], **slow)
    fields.make_video.click(requests.video, [*identity, fields.shows, fields.frames, fields.with_surface], fields.clip,
                            **slow)
    fields.new_seed.click(None, None, fields.seed, js=f'() => Math.floor(Math.random() * {MAX_SEED})')
