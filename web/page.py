"""Write the page of results: one self-contained index.html with a model's pictures, videos and surfaces in 3D.

    python -m web.page evaluations/cats_demo/final_model

--page of generate_shapes_and_images.py and render_video.py does the same after the run. The page shows what is in the
folder, of whichever runs, so it can be made again at any time.
"""
from options import Parser, explained, not_empty
from utils import run_command


def read_flags():
    """The command line."""
    parser = Parser(prog='web.page', description=__doc__.split('\n')[0], default_config_files=[])
    parser.add_argument('folder', type=explained(not_empty),
                        help="a model's folder of results, such as evaluations/EXPNAME/final_model")
    return parser.parse_args()


def main(flags):
    from web.results_page import write_page  # PyTorch takes seconds to import, which --help need not wait for
    print(f'Page: {write_page(flags.folder)}')


if __name__ == '__main__':
    run_command('web.page', read_flags)
