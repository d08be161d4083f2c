"""`datasette vec demo` from nothing to its first answers."""

import subprocess
import sys
import time
from pathlib import Path

from .targets import finish, report


def main() -> None:
    command = [sys.executable, "-m", "datasette", "vec", "demo", "--no-serve", str(Path(sys.argv[1], "demo.db"))]
    started = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took = time.perf_counter() - started
    print("\n".join(output.splitlines()[:2]).replace(sys.argv[1], ""))
    report("the demo answers after", took, "s", at_most=300)
    report("of three sample searches are answered", output.count("  1. "), at_least=3)
    finish()


if __name__ == "__main__":
    main()
