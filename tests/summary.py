#!/usr/bin/env python3
"""Counts the tests of result folders: ctest and pytest together, each GoogleTest case by itself.

ctest takes a program whose tests were all skipped for a passed one; here each skipped test is printed with its reason.
Ends with the line "N passed, N failed, N skipped"; the exit code is 1 when one failed or none ran.
usage: tests/summary.py FOLDER...
"""

import collections
import glob
import os
import sys
import xml.etree.ElementTree as ElementTree


def cases(path):
    """(name, outcome, reason) of each test in a JUnit file, GoogleTest's or pytest's."""
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, "failed", ""
        elif skipped is not None or case.get("status") == "notrun":
            reason = (skipped.get("message") or skipped.text or "") if skipped is not None else "disabled"
            yield name, "skipped", " ".join(reason.split())
        else:
            yield name, "passed", ""


def programs(folder):
    """The tests behind ctest: the cases of each program that wrote its own results, or the program as one test."""
    path = os.path.join(folder, "ctest.xml")
    if not os.path.exists(path):
        return
    for program in ElementTree.parse(path).getroot().iter("testcase"):
        name, status = program.get("name"), program.get("status")
        details = os.path.join(folder, "gtest", name + ".xml")
        found = list(cases(details)) if os.path.exists(details) else []
        for case, outcome, reason in found:
            yield f"{name}: {case}", outcome, reason
        told = any(outcome == "failed" for _, outcome, _ in found)
        if status == "fail" and not told:
            yield name, "failed", ""  # crashed, ran out of time, or has no results of its own
        elif not found:
            yield name, "passed" if status == "run" else "skipped", ""


def main(folders):
    counts = collections.Counter()
    for folder in folders:
        tests = list(programs(folder))
        for path in sorted(glob.glob(os.path.join(folder, "*.xml"))):
            if os.path.basename(path) != "ctest.xml":
                tests += cases(path)
        for name, outcome, reason in tests:
            counts[outcome] += 1
            if outcome != "passed":
                print(f"{outcome}: {name}{': ' + reason if reason else ''}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
