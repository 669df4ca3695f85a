"""The command lines and config files of all commands: an option tree of sensible values, or one UserError.

See running.py for the development mode.
"""
import contextlib
import io
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
from hypothesis import strategies as st
from test_fuzz_checkpoints import bounded
from test_fuzz_photos import edited, edits

import options
from utils import UserError

COMMANDS = st.sampled_from(options.COMMANDS)
NAMES = st.sampled_from(sorted(options.FLAGS))
NUMBERS = st.one_of(st.integers().map(str), st.floats().map(str), st.sampled_from(
    ['nan', '-inf', 'inf', '1e400', '-1e400', '1e308', '9' * 5000, '-' + '9' * 400, '0x10', '1_000', '٣', '²', '1e9',
     '1e-320', '-0', '+5', '1.0', ' 8 ', 'True', 'None', '0', '1', '2', '8', '16', '64']))
LISTS = st.sampled_from(
    ['0-7,42', '0-', '0-99999999999', '5-3', '0-9999998', ',', '0,,1', '-1', 'fid,depth', 'fid,', 'inversion', 'fid,x',
     '20,0 -20,0', '-30:30:5,0', '0:1:9999,0:1:9999', '400,0', '20', '20,0,1', 'nan,0', '1:2:0,0', '3,8@4 5,9@2',
     '3,8@0', '3,8@', '99999999999999999999,1@1', 'shape2=+1.5,color1=-2', 'shape1=nan', 'shape1=1e400', 'shape1=',
     '=1', 'shape1=1,shape1=2', 'sh\x1bape=1', 'cuda:0', 'cuda:9999', 'CPU', 'meta', '[1, 2]', '[', '{a: 1}', 'a/b',
     '..', '../x', '/etc', 'a//b', 'C:x', 'é' * 150, 'n\nn', '\x1b[31m', '\udcff', '', ' ', '-', '--', '-1,2', '%s',
     '%(prog)s', '$HOME', '~', '"', "'", '#', '=', '\0', '\u202e', '\ufeff'])
VALUES = st.one_of(NUMBERS, LISTS, st.text(max_size=12))
WORDS = st.lists(st.one_of(
    st.tuples(NAMES.map('--{}'.format), VALUES), st.tuples(NAMES.map('--{}'.format)),
    st.tuples(NAMES, VALUES).map(lambda pair: (f'--{pair[0]}={pair[1]}',)), st.tuples(VALUES),
    st.tuples(st.sampled_from(['--help', '-h', '--help_all', '--', '--config', '--config=/', '--views', '--unknown',
                               '--siz', '--size=', '@file', '--local-rank', '--no_such=\x1b[31m']))), max_size=6).map(
                                   lambda groups: [word for group in groups for word in group])
LINES = st.one_of(
    st.tuples(NAMES, st.sampled_from(['=', ' = ', ':', ': ', ' ', '==', '']), VALUES).map(''.join),
    VALUES, st.sampled_from(['[section]', '---', '# x', '; x', 'config = x', 'help = true', 'size = 64 # x', 'size',
                             'no_sdf = yes', 'no_sdf = maybe', 'seeds = [0, 1]', 'views = ["20,0", "-20,0"]', '- a',
                             'seeds = [[[[', 'x' * 10 ** 5, 'local-rank = 1', 'a\x1bb = 1', '\x00\x00 = 1']))
FILES = st.lists(LINES, max_size=6).map('\n'.join)


def check_tree(opt, command):
    """All flags are there, with values that a checkpoint may hold, and none that is no number."""
    assert opt.command == command and {name for group in options.GROUPS for name in opt[group]} == set(options.FLAGS)
    for group in options.GROUPS:
        for name, value in opt[group].items():
            for part in value if isinstance(value, tuple) else (value,):
                assert not isinstance(part, float) or math.isfinite(part), name
                assert not isinstance(part, int) or abs(part) < 2 ** 63, name
    assert opt.experiment.expname.isprintable()


def check_parse(command, words):
    """An option tree, one sentence, or the help where it was asked for; nothing is said that a terminal would obey."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            check_tree(options.parse(command, 'What it does.', words), command)
        except UserError as error:
            assert str(error).isprintable() and 3 < len(str(error)) < 3000, repr(str(error))[:4000]
        except SystemExit as stop:
            assert not stop.code and any(word in ('--help', '-h', '--help_all') for word in words) and out.getvalue()
    assert not said.getvalue() and '\x1b' not in out.getvalue(), said.getvalue()


def check_config(command, text, changes, words):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'c.txt')
        path.write_bytes(edited(text.encode('utf-8', 'surrogatepass'), changes))
        with bounded(folder):
            check_parse(command, ['--config', str(path), *words])


CHECKS = {
    'flags': (check_parse, {'command': COMMANDS, 'words': WORDS}),
    'config files': (check_config, {'command': COMMANDS, 'text': FILES, 'words': st.one_of(st.just([]), WORDS),
                                    'changes': st.one_of(st.just([]), edits())}),
}

test_flags = running.fixed(60, **CHECKS['flags'][1])(check_parse)
test_config_files = running.fixed(60, **CHECKS['config files'][1])(check_config)

if __name__ == '__main__':
    running.main(CHECKS)
