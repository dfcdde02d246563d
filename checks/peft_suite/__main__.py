"""The command: runs PEFT's own tests with Bone in them, and tells what came of it.

Exits with 1 if a case fails that expected.toml does not explain, with 2 if the tests could not be run at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bone_peft.errors import BoneError

from .expected import expectations
from .outcomes import read_outcomes
from .running import run_pytest
from .source import peft_source
from .stand_ins import hub_of_stand_ins
from .suite import write_suite
from .summary import Summary


def main() -> int:
    args = _arguments()
    try:
        with TemporaryDirectory(prefix="peft-suite-") as scratch:
            summary = _run(args, Path(scratch))
    except BoneError as error:
        print(error, file=sys.stderr)
        return 2
    print(summary.text())
    if args.out:
        summary.write(args.out)
    return int(bool(summary.unexplained))


def _run(args: argparse.Namespace, scratch: Path) -> Summary:
    start = time.monotonic()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bone-peft"
    source = peft_source(args.source, cache, scratch / "source")
    suite = write_suite(source, args.keep or scratch / "suite")
    if args.only:
        suite.choose(args.only)
    record = run_pytest(suite, hub_of_stand_ins(cache), scratch / "record.jsonl", args.k, args.n)
    whole = not args.only and args.k == "bone"
    return Summary(read_outcomes(record), suite, expectations(), whole, time.monotonic() - start)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m checks.peft_suite", description=__doc__)
    parser.add_argument(
        "--source", type=Path, help="a checkout of PEFT, or its source as .tar.gz; left out, that of the installed PEFT"
    )
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("-k", default="bone", metavar="EXPR", help="which tests, as for pytest; left out, Bone's")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="how many processes")
    parser.add_argument("--only", metavar="FILE", help="one file of PEFT's tests")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder to keep the changed tests in")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
