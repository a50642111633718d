#!/usr/bin/env python3
"""Asks one auditor for known vulnerabilities and says what it found, and what it could not ask.

usage: scripts/advisories.py python|rust COMMAND...   (the command writes JSON)
Exit status: 0 all packages were looked up and are clean, 1 a vulnerability is known, 2 at least one
package was not looked up. Must never take silence for a clean answer.
"""

import json
import subprocess
import sys


def of_python(report: dict) -> tuple[list[str], int, int]:
    """(vulnerabilities, packages looked up, packages not looked up) of pip-audit."""
    packages = report["dependencies"]
    skipped = [each for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {vulnerability['id']}"
        for each in packages
        for vulnerability in each.get("vulns", ())
    ]
    return found, len(packages) - len(skipped), len(skipped)


def of_rust(report: dict) -> tuple[list[str], int, int]:
    """The same of cargo-audit, which asks for all packages or for none."""
    found = [
        f"{each['package']['name']} {each['package']['version']}: {each['advisory']['id']}"
        for each in report["vulnerabilities"]["list"]
    ]
    return found, report["lockfile"]["dependency-count"], 0


def main() -> int:
    language, *command = sys.argv[1:]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)  # noqa: S603
        report = json.loads(done.stdout)
        found, asked, unknown = {"python": of_python, "rust": of_rust}[language](report)
    except (OSError, subprocess.TimeoutExpired):
        print(f"audit: {language}: NOT ASKED: {' '.join(command[:2])} is not installed")
        return 2
    except (ValueError, KeyError):
        if "no such command" in done.stderr:
            print(f"audit: {language}: NOT ASKED: {' '.join(command[:2])} is not installed")
            return 2
        why = (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
        print(f"audit: {language}: NOT ASKED: the advisory database is not reachable ({why})")
        return 2
    for each in found:
        print(f"audit: {language}: VULNERABLE: {each}", file=sys.stderr)
    if found:
        return 1
    if unknown:
        why = "the advisory database has no answer"
        print(f"audit: {language}: NOT ASKED for {unknown} of {unknown + asked} packages: {why}")
        return 2
    print(f"audit: {language}: {asked} packages looked up, no vulnerability is known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
