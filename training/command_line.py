"""The flags of the commands that mend a part of a trained model (distillation.py), read before PyTorch is imported."""
import argparse
from pathlib import Path

import options


def read_flags(description, steps, model='a checkpoint with a field and its mapping', **more):
    """The flags of such a command; steps: the usual number of them; model: what it begins with; more: arguments of
    argparse for further flags, by name."""
    parser = options.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help=model)
    parser.add_argument('--out', type=Path, required=True, help='the file to write')
    parser.add_argument('--steps', type=options.explained(options.at_least(1)), default=steps,
                        help=f'{steps}, if not given; Ctrl-C writes what has been learned so far')
    for name, arguments in more.items():
        parser.add_argument(f'--{name}', **arguments)
    return parser.parse_args()
