"""A page with sliders on which a model is explored: pictures, the surface, meshes, a walk between two seeds, videos.

    python app.py                        the model in the box, at http://127.0.0.1:7860
    python app.py --expname ffhq1024x1024 --device cuda --share

It needs Gradio (pip install -r requirements-app.txt). Several people may use it at once: they share nothing but the
model, which never changes, and more requests than can be served wait in a queue.
"""
import interrupts  # noqa: F401

import math
import os
import tempfile
import threading
import warnings
from functools import partial
from pathlib import Path

import trimesh
from trimesh.viewer import scene_to_html

import options
from inference.loaded_model import load
from surfaces.files import for_gltf, save_mesh
from utils import UserError, run_command

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
    warnings.filterwarnings('ignore', 'A `<script>` tag')  # that of turning() is in a frame, where it runs
    return gradio


def latents_at(model, seed, other, mix, truncation):
    """(1,style_dim) latents w, `mix` in [0, 1] of the way from one seed's to the other's; straight lines in w."""
    first, last = model.latents([seed, other], truncation)
    return first.lerp(last, mix)[None]


def file_of_request(name, write):
    """Yield the path of a file that write(path) has made. Gradio copies what is yielded, and then it is removed."""
    with tempfile.TemporaryDirectory(prefix='stylesdf-') as folder:
        path = Path(folder) / name
        write(path)
        yield str(path)


def turning(mesh):
    """HTML of a frame in which a mesh can be turned (trimesh's viewer; gradio.Model3D 6.31 often stays empty)."""
    gray = for_gltf(mesh, baseColorFactor=(0.5, 0.5, 0.5, 1.))  # the viewer's lights are strong
    html = scene_to_html(trimesh.Scene(gray), escape_quotes=True)
    return f'<iframe title="Surface in 3D" srcdoc="{html}" style="width: 100%; height: 400px; border: 0"></iframe>'


def build(model):
    """The page (gradio.Blocks) of a LoadedModel. Its events are also an API: picture, surface, mesh, video."""
    gr = import_gradio()
    refused = partial(gr.Error, print_exception=False)  # shown on the page; no traceback in the terminal

    def latents(*values):
        """latents_at, from the page's fields."""
        if not all(value is not None and math.isfinite(value) for value in values):
            raise refused('A field is empty: give a whole number as seed.')
        return latents_at(model, *values)

    def picture(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = latents(seed, other, mix, truncation)
        return model.picture(w, model.cameras([[azimuth, elevation]], zoom), truncation)

    def surface(seed, other, mix, truncation, azimuth, elevation, zoom):
        w = latents(seed, other, mix, truncation)
        return model.surface(w, model.cameras([[azimuth, elevation]], zoom))

    def mesh(seed, other, mix, truncation):
        surface = model.mesh(latents(seed, other, mix, truncation))
        if surface is None:
            raise refused('The SDF does not cross zero here: this identity has no surface. Try another seed.')
        for path in file_of_request(f'stylesdf_seed{seed}.glb', lambda path: save_mesh(path, surface)):
            yield turning(surface), path

    def video(seed, other, mix, truncation, shows, frames, with_surface, progress=gr.Progress()):  # noqa: B008
        w = model.latents([seed, other], truncation) if shows == WALK else latents(seed, other, mix, truncation)
        yield from file_of_request(f'stylesdf_seed{seed}.mp4', lambda path: model.video(
            path, w, truncation, frames, with_surface, lambda steps: progress.tqdm(steps, desc='rendering')))

    with gr.Blocks(title='StyleSDF', analytics_enabled=False, delete_cache=(CACHE_SECONDS // 6, CACHE_SECONDS)) as page:
        gr.Markdown(f'# StyleSDF\nImages and surfaces of {model.opt.experiment.expname} from any side. Each seed is an '
                    'identity.')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                with gr.Row():
                    seed = seed_field(gr, 'Seed', 0)
                    other = seed_field(gr, 'Second seed', 2)
                mix = gr.Slider(0, 1, 0, step=0.01, label='On the way to the second seed')
                truncation = gr.Slider(0, 1, min(1., model.opt.inference.truncation_ratio), step=0.01,
                                       label='Truncation', info='0: the mean of all, 1: the full variety')
                azimuth = gr.Slider(-45, 45, 0, step=1, label='Azimuth (degrees)')
                elevation = gr.Slider(-30, 30, 0, step=1, label='Elevation (degrees)')
                zoom = gr.Slider(0.75, 3, 1, step=0.05, label='Zoom')
                new_seed = gr.Button('Another identity', variant='primary')
            with gr.Column(scale=3), gr.Row():
                image, shaded = (gr.Image(label=label, format='png', elem_classes='picture', height=420,
                                          buttons=['download', 'fullscreen']) for label in ('Image', 'Surface'))
        with gr.Row():
            with gr.Column():
                make_mesh = gr.Button('Surface in 3D')
                solid = gr.HTML(label='Surface: drag to turn it', show_label=True, container=True, min_height=420)
                mesh_file = gr.File(label='Mesh (GLB, with colors)')
            with gr.Column():
                make_video = gr.Button('Video')
                clip = gr.Video(label='Video', autoplay=True, loop=True, height=420)
                shows = gr.Radio([AROUND, WALK], value=AROUND, label='The video shows')
                frames = gr.Slider(10, 120, 40, step=1, label='Frames')
                with_surface = gr.Checkbox(label='with the surface beside it')

        identity, view = [seed, other, mix, truncation], [azimuth, elevation, zoom]
        for show, output in ((picture, image), (surface, shaded)):
            # While a slider is dragged only its last place is computed, not every one on the way.
            gr.on([page.load, *(field.change for field in identity + view)], show, identity + view, output,
                  trigger_mode='always_last', show_progress='hidden', concurrency_limit=AT_ONCE,
                  concurrency_id='pictures')
        slow = {'concurrency_limit': 1, 'concurrency_id': 'files'}
        make_mesh.click(mesh, identity, [solid, mesh_file], **slow)
        make_video.click(video, [*identity, shows, frames, with_surface], clip, **slow)
        new_seed.click(None, None, seed, js=f'() => Math.floor(Math.random() * {MAX_SEED})')
    return page.queue(max_size=WAITING)


def seed_field(gr, label, value):
    """A field for a seed."""
    return gr.Number(value, label=label, precision=0, minimum=0, maximum=MAX_SEED, min_width=100)


def main():
    opt = options.parse('app', __doc__)
    import_gradio()
    model = load(opt)
    # What Gradio keeps for downloads goes with the process.
    with tempfile.TemporaryDirectory(prefix='stylesdf-app-') as cache:
        os.environ['GRADIO_TEMP_DIR'] = cache
        page = build(model)
        try:
            _, address, public = page.launch(
                server_port=opt.app.port, share=opt.app.share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
                css=CSS, footer_links=['api', 'gradio', 'settings'])
        except OSError:
            raise UserError(f'--port {opt.app.port} cannot be used; choose another, or stop what uses it.') from None
        try:
            print(f'{model.path} on {model.device}: open {public or address} (Ctrl-C stops it)', flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


if __name__ == '__main__':
    run_command(main)
