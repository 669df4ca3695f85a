"""utils.py: files that appear whole or not at all, memory that is kept."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import atomic_path

KEPT = '''
import torch, utils
def resident():  # MiB
    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2 ** 20
utils.keep_freed_memory()
before = resident()
torch.ones(1 << 26)  # 256 MiB, freed at once
print(resident() - before)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc, and is for glibc')
@pytest.mark.parametrize('environment, kept', [({}, True), ({'MALLOC_MMAP_MAX_': '65536'}, False)])
def test_freed_memory_is_kept_unless_the_user_decides(environment, kept):
    result = subprocess.run([sys.executable, '-c', KEPT], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                            env=os.environ | environment, check=True)
    assert (float(result.stdout) > 200) == kept


def test_a_failed_file_leaves_nothing_and_is_named_as_the_user_knows_it(tmp_path):
    path = tmp_path / 'mesh.obj'
    path.write_text('before')
    for named in (None, 'temporary', 'other.txt'):
        with pytest.raises(OSError) as failed, atomic_path(path) as temporary:
            temporary.write_text('half')
            raise OSError(errno.ENOSPC, 'full', str(temporary) if named == 'temporary' else named)
        assert failed.value.filename == ('other.txt' if named == 'other.txt' else str(path))
    assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as temporary:
        temporary.write_text('after')
    assert path.read_text() == 'after' and list(tmp_path.iterdir()) == [path]
