"""The flags of the commands that mend a part of a trained model (distillation.py), read before PyTorch is imported."""
import argparse
import os
from pathlib import Path

import options
from utils import UserError, writable_folder

LONGEST_NAME = 240  # bytes; file systems take 255, and a file is written under a longer name at first


def read_flags(description, steps, model='a checkpoint with a field and its mapping', **more):
    """The flags of such a command; steps: the usual number of them; model: what it begins with; more: arguments of
    argparse for further flags, by name. Raises UserError, also where --out cannot be a new file."""
    parser = options.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help=model)
    parser.add_argument('--out', type=Path, required=True, help='the file to write; there must be none yet')
    parser.add_argument('--steps', type=options.explained(options.at_least(1)), default=steps,
                        help=f'{steps}, if not given; Ctrl-C writes what has been learned so far')
    for name, arguments in more.items():
        parser.add_argument(f'--{name}', **arguments)
    flags = parser.parse_args()
    writable_folder(flags.out.parent, '--out')
    if len(os.fsencode(flags.out.name)) > LONGEST_NAME:
        raise UserError(f'--out {flags.out} is too long a name; give one of at most {LONGEST_NAME} bytes.')
    if os.path.lexists(flags.out):
        raise UserError(f'--out {flags.out} exists already; give another name, or move it away.')
    return flags
