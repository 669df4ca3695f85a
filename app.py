"""A page with sliders on which a model is explored: pictures, the surface, meshes, a walk between two seeds, videos,
and photos of one's own, which are found in the model, turned and edited.

    python app.py                        the bundled demo model, at http://127.0.0.1:7860
    python app.py --expname ffhq1024x1024 --device cuda --share

It needs Gradio (pip install -r requirements-app.txt). Several people may use it at once: they share nothing but the
model, which never changes, and more requests than can be served wait in a queue.
"""
import options

if __name__ == '__main__':
    options.run('app', __doc__)

import os
import tempfile
import threading
from urllib.request import getproxies

from inference.latents import read_all
from inference.loaded_model import load
from utils import UserError, shortened
from web.explorer import CSS, build, import_gradio
from web.own_photo import UPLOAD_BYTES


def ask_this_machine_directly():
    """Except this machine from the proxies of the environment, through which Gradio would ask for its own page."""
    excepted = [os.environ[name] for name in ('no_proxy', 'NO_PROXY') if os.environ.get(name)]
    if '*' not in excepted:  # which counts only where it stands alone
        os.environ['no_proxy'] = os.environ['NO_PROXY'] = ','.join([*excepted, '127.0.0.1', 'localhost'])


def launch(page, opt):
    """Serve a page; returns its address on this machine and the public one. Raises UserError where that cannot be."""
    ask_this_machine_directly()
    try:
        return page.launch(
            server_port=opt.app.port, share=opt.app.share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
            css=CSS, footer_links=['api', 'gradio', 'settings'], max_file_size=UPLOAD_BYTES)[1:]
    except OSError:
        raise UserError(f'--port {opt.app.port} cannot be used; choose another, or stop what uses it.') from None
    except Exception as error:  # Gradio and its HTTP library raise many kinds
        proxies = ', '.join(f'{kind}_proxy' for kind in getproxies() if kind != 'no')
        if not proxies:
            raise
        raise UserError(f'Gradio cannot ask for its own page because of a proxy ({proxies}: {shortened(error)}); mend '
                        'that setting of the environment or remove it, or add the address of this machine to no_proxy.'
                        ) from None


def main(opt):
    import_gradio()
    model = load(opt)
    # What Gradio keeps for downloads goes with the process.
    with tempfile.TemporaryDirectory(prefix='stylesdf-app-') as cache:
        os.environ['GRADIO_TEMP_DIR'] = cache
        page = build(model, read_all(opt.inference.latents, model.generator, model.opt))
        try:
            address, public = launch(page, opt)
            print(f'{model.path} on {model.device}: open {public or address} (Ctrl-C stops it)', flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)
