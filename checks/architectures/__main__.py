"""The command: tries what has no result yet, keeps the results, and writes the table of all of them.

Exits with 1 if anything that was asked for is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import transformers

from .isolated import isolated
from .kinds import KINDS
from .results import RESULTS, Row, add, outcome, read, tidy, versions
from .table import table
from .verdict import METHODS, examine


def main() -> int:
    args = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    chosen = [(k, n) for k in args.kinds or KINDS for n in KINDS[k] if not args.only or n in args.only]
    kept = read(args.out)
    for kind, name in chosen:
        row = kept.get((kind, name), {})
        if row.get("versions") != versions() or args.again:
            row = {}
        missing = [m for m in args.methods if m not in row.get("methods", {})]
        if missing and "fails" not in row:
            add(args.out, _tried(kind, name, missing, args.seconds, row))
    tidy(args.out)
    rows = read(args.out)
    wrong = _report([rows[key] for key in chosen])
    if args.table:
        try:
            args.table.write_text(table(rows), encoding="utf-8")
        except ValueError as error:
            raise SystemExit(f"No table was written: {error}") from None
    return int(wrong)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m checks.architectures", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; left out, all of them")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these architectures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--table", type=Path, help="where to write the table of all results, docs/architectures.md")
    parser.add_argument("--seconds", type=float, default=120, help="how long an architecture may take")
    parser.add_argument("--again", action="store_true", help="also what has a result of the same versions")
    args = parser.parse_args()
    known = {name for kind in args.kinds or KINDS for name in KINDS.get(kind, ())}
    if unknown := [*(set(args.kinds) - set(KINDS)), *(set(args.only or ()) - known)]:
        parser.error(f"not known: {', '.join(unknown)}")
    return args


def _tried(kind: str, name: str, methods: list[str], seconds: float, kept: Row) -> Row:
    """The row of an architecture, tried in a process of its own, with what ``kept`` has of other methods."""
    started = time.monotonic()
    found, why = isolated(partial(examine, kind, name, methods), seconds)
    bare, *verdicts = found or [{"fails": why}]
    row = {"kind": kind, "name": name, **bare, "versions": versions()}
    if "fails" not in row:
        row["methods"] = kept.get("methods", {}) | {m: v for verdict in verdicts for m, v in verdict.items()}
        for method in methods:
            row["methods"].setdefault(method, {"outcome": "wrong", "findings": [{"what": "no end", "detail": why}]})
    row["seconds"] = round(kept.get("seconds", 0) + time.monotonic() - started, 1)
    print(f"{kind} {name}: {outcome(row)} ({row['seconds']} s)", flush=True)
    return row


def _report(rows: list[Row]) -> bool:
    """Say what is wrong, and how many are what. Returns whether anything is wrong."""
    for row in rows:
        found: dict[str, list[str]] = {}
        for method, tried in row.get("methods", {}).items():
            for finding in tried.get("findings", ()):
                said = ", ".join(str(finding[part]) for part in ("what", "layer", "detail") if part in finding)
                found.setdefault(said, []).append(method)
        for said, methods in found.items():
            print(f"{row['kind']} {row['name']} ({', '.join(methods)}): {said}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        counts = Counter(outcome(row) for row in rows if row["kind"] == kind)
        print(f"{kind}:", ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    return any(outcome(row) == "wrong" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
