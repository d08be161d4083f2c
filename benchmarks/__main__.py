"""Run every benchmark, each in a process of its own, and print what was measured against what it must reach."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = (
    "install",
    "demo",
    "start",
    "overhead",
    "scale",
    "latency",
    "agents",
    "pages",
    "gemini",
    "orm",
    "retrieval",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*BENCHMARKS, []], help="some of them; all by default")
    parser.add_argument("--data", type=Path, help="a directory with cranfield/, cisi/ and xquad_ru/")
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, load average {load}"
    )
    failed = []
    for name in options.only or BENCHMARKS:
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            data = [str(options.data)] if options.data and name in {"orm", "retrieval"} else []
            command = [sys.executable, "-m", f"benchmarks.{name}", directory, *data]
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    print(f"\n{'Missed: ' + ', '.join(failed) if failed else 'Every target was reached.'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
