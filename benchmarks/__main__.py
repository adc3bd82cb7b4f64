"""`make bench`: every benchmark that takes a few minutes or less, one after another, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

QUICK = ("capture", "requests", "journey", "start", "storm")


def main() -> int:
    """Run those that are named, or all quick ones."""
    names = sys.argv[1:] or QUICK
    for name in names:
        print(f"\n== python -m benchmarks.{name}", flush=True)
        if code := subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
