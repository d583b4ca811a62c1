"""What the interop scripts share: one line per check, and an exit code."""

import subprocess
import sys

failed = []


def check(name, holds, detail):
    """Prints one line; a check that does not hold fails the script at its end."""
    print(f"{'ok' if holds else 'FAILED'}  {name}: {detail}", flush=True)
    if not holds:
        failed.append(name)


def run(*command):
    """Runs a program of ours; its standard output, and its words if it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def finish():
    """Exit code 1 if any check failed."""
    if failed:
        sys.exit(f"{len(failed)} checks failed: {', '.join(failed)}")
