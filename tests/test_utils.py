"""The helpers that no other test exercises."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
