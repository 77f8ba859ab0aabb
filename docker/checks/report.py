"""What was checked, and what came of it."""
import subprocess
import sys


class Report:
    def __init__(self, required: bool):
        # Whether what cannot be checked here is a failure.
        self.required = required
        self.passed = self.failed = self.skipped = 0

    def expect(self, holds: object, what: str) -> bool:
        """Counts a check; `what` says what is wrong when it does not hold."""
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"wrong: {what}", file=sys.stderr)
        return bool(holds)

    def skip(self, what: str) -> None:
        print(f"skipped: {what}")
        self.skipped += 1
        if self.required:
            self.expect(False, f"TALLY_SERVICES=required, but skipped: {what}")

    def run(self, command: list[str], what: str, **more) -> bool:
        """A tool that judges by its exit code."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
        said = (done.stdout + done.stderr).strip()
        return self.expect(done.returncode == 0, f"{what}: {' '.join(map(str, command))} ended with {done.returncode}\n{said}")

    def end(self) -> int:
        print(f"docker: {self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 0
