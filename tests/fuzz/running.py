"""Running a property on random inputs: some seconds with fixed ones in the tests, or as long as one likes.

    python tests/fuzz/test_fuzz_photos.py --minutes 10      from the project's folder; prints how many inputs were tried

A property is a function of hypothesis's arguments. It raises where it finds a fault.
"""
import argparse
import sys
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def fixed(examples, **strategies):
    """Decorator: the property as a test with `examples` inputs that are always the same."""
    def decorate(check):
        return settings(max_examples=examples, derandomize=True, database=None, deadline=None,
                        suppress_health_check=list(HealthCheck))(given(**strategies)(check))
    return decorate


def explore(checks, first_seed, end):
    """Try {name: (check, strategies)} in turn with other inputs each time until `end` (time.time()).

    Prints each finding once. Returns (number of inputs by name, number of findings).
    """
    counts, findings, round_ = dict.fromkeys(checks, 0), set(), first_seed
    while time.time() < end:
        for name, (check, strategies) in checks.items():
            run = settings(max_examples=200, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
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
                failures.append(type(error))
                raise
    return counted


def main(checks):
    """The development mode of a file of properties."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    flags = parser.parse_args()
    counts, findings = explore(checks, flags.seed, time.time() + 60 * flags.minutes)
    print(f'{sum(counts.values())} inputs in {flags.minutes:g} minutes from seed {flags.seed}: {counts}; '
          f'{findings} findings')
    sys.exit(1 if findings else 0)
