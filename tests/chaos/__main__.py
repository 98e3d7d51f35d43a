"""Let everything go wrong, on stock and on ours; print what became of it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

from demo.__main__ import surroundings

from chaos.faults import FAULTS
from chaos.report import complaints, table
from chaos.scenario import Result

ENGINES = ["stock", "ours", "dj_stock", "dj_ours"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s chaos --", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all of it")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: all")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all")
    parser.add_argument("--output", type=Path, default=Path(), help="where figures go")
    options = parser.parse_args()
    faults, engines = options.fault or list(FAULTS), options.engine or ENGINES
    seconds = options.minutes * 60 / len(faults) / len(engines)

    print(f"{date.today()}: {surroundings()}.\n", flush=True)
    results: list[Result] = []
    failed = []
    for fault in faults:
        for engine in engines:
            result = run(fault, engine, seconds)
            if result is None:
                print(f"{fault} on {engine}: it did not come to an end", flush=True)
                failed.append(f"{fault} on {engine} did not come to an end")
                continue
            results.append(result)
            print(table([result], header=len(results) == 1), flush=True)
    wrong = [each for result in results for each in complaints(result)]
    wrong += [each for each in failed if "ours" in each]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "chaos.txt").write_text(
        f"{date.today()}: {surroundings()}.\n\n{table(results, header=True)}\n"
    )
    (options.output / "chaos.json").write_text(json.dumps([asdict(r) for r in results]))
    print("\n".join(["", *(wrong or ["Of ours, only what may fail has failed."])]))
    return 1 if wrong else 0


def run(fault: str, engine: str, seconds: float) -> Result | None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "result.json")
        subprocess.run(
            [sys.executable, "-m", "chaos.scenario", fault, engine, str(seconds), file],
            check=False,
        )
        return Result(**json.loads(file.read_text())) if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
