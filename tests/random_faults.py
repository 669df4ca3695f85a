"""Tiny trainings under random faults must end in the weights of an undisturbed run.

    python tests/random_faults.py --minutes 120 --seed 1

Round after round a training is begun, hit by a fault at a random moment, and started again with --continue_training
until it has finished. In even rounds its shape stays (2 processes with a batch of 4), and all that its last checkpoint
holds must be that of an undisturbed run, bit for bit. In odd rounds each start has another shape; then everything is
computed in double precision, so that only the rounding of sums differs, and a wrong image or random number would show.

A process must also end within a minute after a fault that ends it, without a traceback, and leave no temporary files.
The first thing that is not so ends the program with exit code 1 and leaves the folder to look at. It takes Linux; a
full disk takes root's rights, and jumps of the clock a C compiler. Faults that cannot be had here are told and left
out.
"""
import argparse
import collections
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from tiny_training import STAGES, differences, finish, flags, make_data, newest, start

import options
from training import logs

STEPS = 120           # of a training, beside its sphere
SHAPES = {            # (processes, --batch), by stage: all have the same images a step
    'volume_renderer': ((2, 4), (1, 8), (4, 2)),
    'full_pipeline': ((2, 8), (1, 16), (4, 4))}
COMMON = ('--save_every 3 --keep_checkpoints 3 --sphere_iters 20 --log_every 5 --sample_every 25 --lr_g 1e-4 '
          '--chunk 4 --iter')
DISK = 12 << 20       # bytes of the disk that becomes full
PATIENCE = 15.        # seconds without a sign of life after which a process counts as lost: 45 usually
LIMIT = 150           # seconds within which processes must have ended, on a loaded machine
STOPPING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT
# Exit codes that processes may have. Before there is anything to save a signal ends them in the system's own way.
ENDINGS = {0, 2, -signal.SIGKILL} | {128 + number for number in STOPPING} | {-number for number in STOPPING}

# Run first in each process.
BEFORE = f"""
from training import heartbeat
heartbeat.PATIENCE = {PATIENCE}
"""
DOUBLE = BEFORE + """
import contextlib
import model, torch, train_full_pipeline
from training import run
torch.set_default_dtype(torch.float64)
model.PRECISIONS['fp32'] = torch.float64
make = run.make_loader
def doubled(*arguments):
    with contextlib.closing(make(*arguments)) as batches:
        for images in batches:
            yield images.double()
run.make_loader = doubled
"""
# The program of torchrun's processes. Importing this file takes seconds, before the training answers signals itself.
WORKER = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
"""


class Wrong(Exception):
    """Something did not go as it must."""


class Group(NamedTuple):
    """The processes of one start, and torchrun if it has started them."""
    workers: list   # tiny_training.start's, or none
    agent: object   # subprocess.Popen, or None
    folder: Path    # in which all of them work
    restarts: int = 0  # that torchrun makes
    logged: int = 0    # bytes in log0.txt at the start

    def processes(self):
        """The numbers of the processes that train or load images, also of those whose parent is gone."""
        found = []
        for place in Path('/proc').glob('[0-9]*/cwd'):
            with contextlib.suppress(OSError):  # ended meanwhile, or the system's own
                if os.readlink(place) == str(self.folder):
                    found.append(int(place.parent.name))
        return sorted(set(found) - {self.agent.pid if self.agent else 0})

    def trainers(self):
        """Those of the processes that train."""
        if self.workers:
            return sorted({worker.pid for worker in self.workers} & set(self.processes()))
        return [process for process in self.processes() if parent_of(process) == self.agent.pid]

    def joined(self):
        """Whether the processes have found each other: then the first one says what it goes on from, if anything."""
        said = (self.folder / 'log0.txt').read_bytes()[self.logged:]
        return b'Going on from' in said or b'No checkpoint to continue from' in said

    def running(self):
        return bool((self.agent and self.agent.poll() is None) or any(worker.is_alive() for worker in self.workers)
                    or self.processes())

    def codes(self):
        return [self.agent.returncode] if self.agent else [worker.exitcode for worker in self.workers]


class Round:
    """One round: a training, its faults, and what came out. counts: of faults, by kind, added to."""

    def __init__(self, number, seed, folder, data, renderer, counts):
        self.rng = random.Random(f'{seed} {number}')
        self.stage = ('volume_renderer', 'full_pipeline')[number // 2 % 2]
        self.shapes = SHAPES[self.stage] if number % 2 else SHAPES[self.stage][:1]
        self.before = DOUBLE if number % 2 else BEFORE
        self.folder, self.clock, self.counts, self.starts = folder / f'round{number}', folder / 'clock', counts, 0
        text = f'--renderer_ckpt {renderer} {COMMON} {STEPS} --seed {self.rng.randrange(10 ** 6)}'
        self.arguments = flags(data, text)
        self.run_folder = self.folder / 'faults'
        self.checkpoints = self.run_folder / 'checkpoint' / 'debug' / self.stage
        self.disk = None

    # -- starting

    def begin(self, folder, shape, *more, by_torchrun=False, workers=0):
        """Start the training with one shape; returns its Group."""
        size, batch = shape
        arguments = [*self.arguments, '--continue_training', *f'--batch {batch} --num_workers {workers}'.split(), *more]
        if by_torchrun:
            restarts = self.rng.choice((0, 2))
            with open(folder / 'torchrun.txt', 'ab') as log:
                agent = subprocess.Popen(
                    [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(size),
                     '--max_restarts', str(restarts), '--no_python', sys.executable, '-c', WORKER, __file__,
                     *arguments], cwd=folder, stdout=log, stderr=log,
                    env=os.environ | {'RANDOM_FAULTS': f'{self.stage}\n{self.before}'}, start_new_session=True)
            return Group([], agent, folder, restarts)
        port, log = free_port(), folder / 'log0.txt'
        log.touch()
        logged = log.stat().st_size
        return Group([start(self.stage, folder, arguments, rank=rank, size=size, port=port, before=self.before)
                      for rank in range(size)], None, folder, logged=logged)

    def undisturbed(self):
        """The newest checkpoint of a run without faults, in the first shape."""
        folder = self.folder / 'undisturbed'
        group = self.begin(folder, self.shapes[0])
        self.wait(group, 20 * LIMIT)
        if set(group.codes()) != {0}:
            raise Wrong(f'the undisturbed run ended with {group.codes()}')
        return newest(folder, self.stage)[1]

    def wait(self, group, seconds=LIMIT):
        """Wait until all processes have ended; raises Wrong if they do not."""
        end = time.monotonic() + seconds
        while group.running():
            if group.workers and not group.joined() and any(worker.exitcode for worker in group.workers):
                time.sleep(1)  # a process that is lost before all have joined: torchrun ends the others then
                for process in group.processes():
                    send(process, signal.SIGTERM)
            if time.monotonic() > end:
                raise Wrong(f'still running {seconds} seconds after {self.last}: {group.processes()}')
            time.sleep(0.05)
        for worker in group.workers:
            worker.join()

    # -- the faults; each is done to a running Group, and may end it

    def kill_one(self, group):
        return self.signal_some(group, signal.SIGKILL, 1)

    def kill_all(self, group):
        """As a loss of power does it."""
        if group.agent:
            group.agent.kill()
        while group.running():
            for process in group.processes():
                send(process, signal.SIGKILL)
            time.sleep(0.05)
        return True

    def stop_one(self, group):
        return self.signal_some(group, self.rng.choice(STOPPING), 1)

    def stop_all(self, group):
        return self.signal_some(group, self.rng.choice(STOPPING), 100)

    def signal_some(self, group, number, most):
        """Send a signal to at most so many processes. Returns whether the group must end: not if only processes that
        load images are lost, which are replaced, nor if torchrun starts the group again."""
        while group.running() and len(group.trainers()) < max(1, len(group.workers)):
            time.sleep(0.02)  # they have only just begun
        found = group.processes()
        hit = self.rng.sample(found, min(most, len(found)))
        must_end = bool(set(hit) & set(group.trainers())) and not group.restarts
        for process in hit:
            send(process, number)
        return must_end

    def freeze_one(self, group):
        """For some seconds: up to PATIENCE nothing may happen, after it the others end."""
        found = group.processes()
        if found:
            frozen = self.rng.choice(found)
            send(frozen, signal.SIGSTOP)
            time.sleep(self.rng.choice((1, 4, PATIENCE + 8)))
            send(frozen, signal.SIGCONT)

    def kill_torchrun(self, group):
        group.agent.kill()
        return True

    def fill_disk(self, group):
        """For some seconds, while it trains on."""
        ballast = self.checkpoints.parent / 'ballast'
        with contextlib.suppress(OSError), open(ballast, 'wb') as file:
            while True:
                file.write(bytes(4096))
        time.sleep(self.rng.uniform(0.5, 8))
        ballast.unlink()

    def jump_clock(self, group):
        set_clock(self.clock, self.rng.choice((-86400, -60, 60, 3600, 40 * 86400)))
        time.sleep(self.rng.uniform(1, 4))

    def cut_newest(self, group):
        """The disk has lost the end of the newest checkpoint, and the training is killed."""
        self.kill_all(group)
        paths = sorted(self.checkpoints.glob('models_*.pt'))
        if len(paths) > 1 and not self.finished():  # nothing would make the last one again
            with open(paths[-1], 'r+b') as file:
                file.truncate(self.rng.randrange(os.path.getsize(paths[-1])))
        return True

    def start_twice(self, group):
        """A second run of the same name, which must be refused while the first one runs."""
        second = self.begin(self.folder / 'second', self.shapes[0], '--checkpoints_dir',
                            str(self.checkpoints.parents[1]))
        self.wait(second)
        ended, said = second.codes()[0], (self.folder / 'second' / 'log0.txt').read_text()
        if group.running() and steps_done(self.checkpoints) < STEPS and ended == 0:
            raise Wrong(f'a second run was not refused: {said[-1000:]}')

    # -- a round

    def kinds(self):
        """{name: method} of the faults that can be had here."""
        names = ['kill_one', 'kill_all', 'stop_one', 'stop_all', 'freeze_one', 'cut_newest', 'start_twice']
        names += ['fill_disk'] * (self.disk is not None) + ['jump_clock'] * ('LD_PRELOAD' in os.environ)
        return {name: getattr(self, name) for name in names}

    def run(self, end):
        """All starts of a round until the training has finished, or until `end`. Returns whether it has finished."""
        set_clock(self.clock, 0)
        for folder in (self.run_folder, self.folder / 'second', self.folder / 'undisturbed'):
            folder.mkdir(parents=True, exist_ok=True)
        self.last, whole = 'its beginning', self.undisturbed()
        with self.small_disk():
            while time.monotonic() < end:
                self.starts, by_torchrun = self.starts + 1, self.rng.random() < 0.25
                group = self.begin(self.run_folder, self.rng.choice(self.shapes), by_torchrun=by_torchrun,
                                   workers=self.rng.choice((0, 0, 1)))
                try:
                    self.disturb(group)
                    self.wait(group)
                finally:
                    self.end(group)
                self.check_end(group)
                if self.finished():
                    self.compare(whole)
                    return True
        return False

    def disturb(self, group):
        """Do faults to a group until it has ended: of one, of several, or because it has finished."""
        self.sleep(group, self.rng.expovariate(1 / (15 if group.agent else 5)))
        while group.running():
            kinds = self.kinds() | ({'kill_torchrun': self.kill_torchrun} if group.agent else {})
            self.last = self.rng.choice(sorted(kinds))
            self.counts[self.last] += 1
            if kinds[self.last](group):
                self.wait(group)
            self.sleep(group, self.rng.expovariate(1 / 6))

    def sleep(self, group, seconds):
        """Sleep, but not longer than the group runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and group.running():
            time.sleep(0.05)

    def end(self, group):
        """No process outlives a start, whatever happened."""
        if group.agent:
            group.agent.kill()
            group.agent.wait()
        for process in group.processes():
            send(process, signal.SIGCONT)
            send(process, signal.SIGKILL)
        for worker in group.workers:
            worker.join()

    def check_end(self, group):
        """The exit codes and what was said."""
        if not group.agent and not set(group.codes()) <= ENDINGS:
            raise Wrong(f'exit codes {group.codes()} after {self.last}')
        for where, lines in self.logs().items():
            for i, line in enumerate(lines):
                # Not ours: torchrun's own, that of a worker which was about to start when its process ended, and that
                # of a signal which came while Python itself was starting.
                if line.startswith('Traceback') and not re.search('<frozen |forkserver', lines[i + 1]):
                    raise Wrong(f'a traceback in {where} after {self.last}')

    def logs(self):
        """{path: lines} of the logs."""
        return {path: path.read_text().splitlines() + [''] for path in self.run_folder.glob('*.txt')}

    def finished(self):
        return any(line.startswith(f'Finished {STEPS} steps') for lines in self.logs().values() for line in lines)

    def compare(self, whole):
        """Raise Wrong where the last checkpoint is not that of the undisturbed run."""
        found = newest(self.run_folder, self.stage)[1]
        if leftovers := list(self.checkpoints.glob('.models_*')):
            raise Wrong(f'left behind: {leftovers}')
        if len(self.shapes) == 1:
            if places := differences(whole, found):
                raise Wrong(f'the weights differ in {len(places)} places: {places[:5]}')
            self.said = 'equal bit for bit'
            return
        largest = max((tensor - found[key][name]).abs().max().item() / tensor.abs().max().clamp(min=1e-3).item()
                      for key in ('g', 'd', 'g_ema') for name, tensor in whole[key].items())
        if largest > 1e-5 or whole['images'] != found['images']:
            raise Wrong(f'the weights differ by {largest:.1e}')
        self.said = f'equal to {largest:.1e} (in double precision; {len(self.shapes)} shapes)'

    @contextlib.contextmanager
    def small_disk(self):
        """The folder of checkpoints is a disk of its own, which can become full."""
        place = self.run_folder / 'checkpoint'
        place.mkdir()
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={DISK}', 'tmpfs', place], capture_output=True)
        (place / 'debug').mkdir()
        self.disk = place if done.returncode == 0 else None
        try:
            yield
        finally:
            if self.disk:
                shutil.copytree(place, self.run_folder / 'checkpoint_copy')
                subprocess.run(['umount', '-l', place], check=True)


def send(process, number):
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def parent_of(process):
    """The number of a process's parent, or None where it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[1])


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def steps_done(folder):
    lines = logs.read_stats(folder / 'stats.jsonl')
    return lines[-1]['iteration'] if lines else 0


# The clock of all processes is wrong by the seconds in a file. (libfaketime breaks Python's time.sleep.)
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t wrong_by(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(getenv("WRONG_BY"), O_RDONLY);
        void *place = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        close(file);
        if (place == MAP_FAILED) return 0;
        seconds = place;
    }
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += wrong_by();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += wrong_by();
    return failed;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
"""


def clock_library(folder):
    """Compile CLOCK; returns the path of the library, or None without a compiler."""
    (folder / 'clock.c').write_text(CLOCK)
    set_clock(folder / 'clock', 0)
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler:
        subprocess.run([compiler, '-O1', '-shared', '-fPIC', '-o', folder / 'clock.so', folder / 'clock.c'], check=True)
        return folder / 'clock.so'


def set_clock(path, seconds):
    """Let the clock be wrong by so many seconds from now on."""
    with open(path, 'r+b' if path.exists() else 'wb') as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def rounds(folder, seed, end, counts):
    """Play rounds until `end`, and print what came of each. counts: of faults, added to. Raises Wrong."""
    data = make_data(folder)
    finish(start('volume_renderer', folder, flags(data, '--iter 1')))
    renderer = folder / 'pretrained_renderer' / 'debug_vol_renderer.pt'
    for number in itertools.count():
        round_ = Round(number, seed, folder, data, renderer, counts)
        if not round_.run(end):
            print(f'round {number}: out of time after {round_.starts} starts', flush=True)
            return
        print(f'round {number}: {round_.stage}, {round_.starts} starts, {round_.said}; {sum(counts.values())} faults '
              'so far', flush=True)
        shutil.rmtree(round_.folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    given, started, counts = parser.parse_args(), time.monotonic(), collections.Counter()
    folder = Path(tempfile.mkdtemp(prefix='random_faults_'))
    print(f'seed {given.seed}, in {folder}', flush=True)
    if library := clock_library(folder):
        os.environ.update(LD_PRELOAD=str(library), WRONG_BY=str(folder / 'clock'))
    else:
        print('no C compiler: the clock does not jump')
    try:
        rounds(folder, given.seed, started + 60 * given.minutes, counts)
    except Wrong as error:
        print(f'WRONG: {error}')
        sys.exit(1)
    finally:
        print(f'{sum(counts.values())} faults in {(time.monotonic() - started) / 60:.0f} minutes: {dict(counts)}')
    shutil.rmtree(folder)


if __name__ == '__main__':
    if 'RANDOM_FAULTS' in os.environ:  # a process of torchrun
        stage, before = os.environ['RANDOM_FAULTS'].split('\n', 1)
        torch.set_num_threads(1)
        logs.plot_progress = mock.Mock()
        exec(before, {})
        options.run(STAGES[stage], '')
    else:
        main()
