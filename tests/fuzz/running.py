"""Running a property on random inputs: some seconds with fixed ones in the tests, or as long as one likes.

    python tests/fuzz/test_fuzz_photos.py --minutes 10      one fuzzer, for ten minutes
    python tests/fuzz/running.py --minutes 120              all of them in turn

Both print how many inputs were tried, the second after each round, and end with exit code 1 where a fault was found.

A property is a function of hypothesis's arguments. It raises where it finds a fault.
"""
import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows
    resource = None

from hypothesis import HealthCheck, Phase, given, seed, settings

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]

ADDRESSES = 12 << 30  # bytes that the process may address: a fault must not fill the machine's memory
EXAMPLES = 50  # of each property in a round


def fixed(examples, **strategies):
    """Decorator: the property as a test with `examples` inputs that are always the same."""
    def decorate(check):
        return settings(max_examples=examples, derandomize=True, database=None, deadline=None,
                        suppress_health_check=list(HealthCheck))(given(**strategies)(check))
    return decorate


def explore(checks, first_seed, end, after_round=lambda counts, findings: None):
    """Try {name: (check, strategies)} in turn with other inputs each time until `end` (time.time()).

    Prints each finding once. after_round: called with what is returned in the end: (number of inputs by name, number of
    findings).
    """
    counts, findings, round_ = dict.fromkeys(checks, 0), set(), first_seed
    while time.time() < end:
        for name, (check, strategies) in checks.items():
            run = settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
                           suppress_health_check=list(HealthCheck))(
                seed(round_)(given(**strategies)(_counted(check, counts, name, end))))
            try:
                run()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                if (key := (name, type(error).__name__, place.filename, place.lineno)) not in findings:
                    findings.add(key)
                    print(f'FOUND in {name}, seed {round_}: {error!r}', flush=True)
                    traceback.print_exc()
        round_ += 1
        after_round(counts, len(findings))
    return counts, len(findings)


def _counted(check, counts, name, end):
    """The property, counting its inputs. After `end` it does nothing, unless it has failed and is being shrunk."""
    failures = []

    def counted(**arguments):
        if time.time() < end or failures:
            counts[name] += 1
            try:
                check(**arguments)
            except BaseException as error:
                if not failures:  # a smaller input may take minutes to find
                    print(f'failing in {name}: {error!r}'[:1000], flush=True)
                failures.append(type(error))
                raise
    return counted


def main(checks, show_rounds=False):
    """The development mode of properties {name: (check, strategies)}."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    flags, started = parser.parse_args(), time.time()
    if resource:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    def told(counts, findings):
        if show_rounds:
            print(f'{(time.time() - started) / 60:.1f} minutes ({time.process_time() / 60:.1f} of a core): '
                  f'{sum(counts.values())} inputs, {findings} findings', flush=True)

    counts, findings = explore(checks, flags.seed, started + 60 * flags.minutes, told)
    print(f'{sum(counts.values())} inputs in {flags.minutes:g} minutes from seed {flags.seed}: {counts}; '
          f'{findings} findings')
    sys.exit(1 if findings else 0)


def all_checks():
    """The properties of all fuzzers in this folder, {'fuzzer: name': (check, strategies)}."""
    found = {}
    for path in sorted(FOLDER.glob('test_fuzz_*.py')):
        checks = importlib.import_module(path.stem).CHECKS
        found |= {f'{path.stem.removeprefix("test_fuzz_")}: {name}': check for name, check in checks.items()}
    return found


if __name__ == '__main__':
    main(all_checks(), show_rounds=True)
