"""Runs a client's own unittest suite and prints what became of each test, as JSON.

Usage: run_unittest.py DIRECTORY PACKAGE, where DIRECTORY holds PACKAGE with a test_suite().
"""

import importlib
import json
import sys
import unittest


class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.all = {}

    def note(self, test, outcome, why=""):
        # A failure in one part of a test stays a failure of the test.
        if self.all.get(test.id(), ["ok"])[0] == "ok":
            self.all[test.id()] = [outcome, why]

    def addSuccess(self, test):
        self.note(test, "ok")

    def addError(self, test, err):
        self.note(test, "failed", self._exc_info_to_string(err, test)[-600:])

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test, reason):
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        self.note(test, "ok")

    def addUnexpectedSuccess(self, test):
        self.note(test, "failed", "succeeded against expectation")


sys.path.insert(0, sys.argv[1])
outcomes = Outcomes()
importlib.import_module(sys.argv[2]).test_suite().run(outcomes)
print(json.dumps(outcomes.all))
