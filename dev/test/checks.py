"""What the Python tests share: checks that are counted, TEST=text, which selects tests by their names, STOP=1, which ends with the
first failure, and the closing line."""
import os
import sys
import traceback

passed = failed = 0


def check(condition, what):
    global passed, failed
    if condition:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {what}", flush=True)
        if os.environ.get("STOP"):
            sys.exit(report())
    return condition


def tests_of(names):
    """The tests among a module's globals(), in their order."""
    return [test for name, test in list(names.items()) if name.startswith("test_") and callable(test)]


def run(test, *arguments, **named):
    """Runs a test if its name contains the text in TEST. What it raises is a failure; the other tests go on."""
    if os.environ.get("TEST", "") not in test.__name__:
        return
    try:
        test(*arguments, **named)
    except Exception:
        check(False, f"{test.__name__}: {traceback.format_exc()}")


def report():
    """The closing line; -> exit code. No check at all is a failure."""
    print(f"{passed} passed, {failed + (passed + failed == 0)} failed")
    return 1 if failed or not passed else 0
