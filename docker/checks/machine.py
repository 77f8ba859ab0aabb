"""The containers of compose.yaml as processes of this machine: same commands, environment and health checks, on loopback."""
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from .compose import Compose, seconds
from .files import on_loopback
from .report import Report

# Other work on this machine may slow a start down; Docker's own patience is for a machine of its own.
PATIENCE_SECONDS = 120
ONCE_SECONDS = 180


class Machine:
    def __init__(self, compose: Compose, folder: Path, programs: Path, report: Report):
        self.compose, self.folder, self.programs, self.report = compose, folder, programs, report
        # "service:port" of compose.yaml → "127.0.0.1:port" here.
        self.moved: dict[str, str] = {}
        self.running: dict[str, subprocess.Popen] = {}

    def move(self, name: str, port: str, to: str | None = None) -> str:
        """Where a port of a service is here: at `to`, or on a free port."""
        if f"{name}:{port}" not in self.moved:
            self.moved[f"{name}:{port}"] = to or f"127.0.0.1:{free_port()}"
        return self.moved[f"{name}:{port}"]

    def text(self, name: str, text: str) -> str:
        """A word of the command, environment or health check of a service, as it is here."""
        text = text.replace("/etc/tally/", f"{self.compose.folder}/").replace("/var/lib/", f"{self.folder}/{name}/")
        for there, here in self.moved.items():
            service, port = there.split(":")
            text = re.sub(rf"(?<![\w.-]){re.escape(service)}:{port}(?!\d)", here, text)
            if service == name:
                # Its own address: on all interfaces or on loopback, as bash writes it, or a bare port.
                text = re.sub(rf"(?<!\d)(0\.0\.0\.0|127\.0\.0\.1)?([:/])({port})(?!\d)", local(here), text)
                text = here.rpartition(":")[2] if text == port else text
        return text.replace(self.compose.address("proxy") or "proxy", "127.0.0.1")

    def environment(self, name: str) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "XDG_CACHE_HOME", "JAVA_HOME") if key in os.environ}
        given = self.compose.services[name].get("environment", {})
        return kept | {key: self.text(name, value) for key, value in given.items()}

    def command(self, name: str) -> list[str]:
        """What is started. Images of others say where their programs and files are; so is said here where they are."""
        folder = self.folder / name
        folder.mkdir(mode=0o755, exist_ok=True)
        if name == "kafka":
            return self.kafka(folder)
        words = self.compose.services[name]["command"]
        if name == "proxy":
            path = folder / "nginx.conf"
            mine = {port: here for there, here in self.moved.items() if there.startswith("proxy:") for port in [there.split(":")[1]]}
            path.write_text(on_loopback((self.compose.folder / "nginx.conf").read_text(), folder, self.moved | mine))
            program = shutil.which("nginx") or "/usr/sbin/nginx"
            return [program, *(str(path) if word == "/etc/nginx/tally.conf" else word for word in words[1:])]
        if name in self.compose.ours:
            return [str(self.programs / words[0]), *(self.text(name, word) for word in words[1:])]
        # redis-server: its port and its folder are its image's.
        host, port = self.move(name, "6379").split(":")
        return [words[0], "--bind", host, "--port", port, *(str(folder) if word == "/data" else word for word in words[1:])]

    def kafka(self, folder: Path) -> list[str]:
        """Apache's image makes properties of the variables: KAFKA_LOG_DIRS is log.dirs."""
        port = self.move("kafka", "9092").rpartition(":")[2]
        self.move("kafka", "9093")
        properties = []
        for variable, text in self.compose.services["kafka"]["environment"].items():
            key = variable.removeprefix("KAFKA_").lower().replace("_", ".")
            value = self.text("kafka", text).replace(f"{self.folder}/kafka/kafka/data", f"{folder}/data")
            properties.append(f"{key}={value}")
        program = str(self.compose.root / "dev/kafka")
        return [program, "run", "--port", port, "--dir", str(folder), "--heap", "512m", "--", *properties]

    def start(self, name: str) -> bool:
        """Starts a service after those that it depends on, and waits until it is as far as Compose would wait for."""
        service = self.compose.services[name]
        log = open(self.folder / f"{name}.log", "ab")
        # What ours say to people is no log line.
        out = open(self.folder / f"{name}.out", "ab") if name in self.compose.ours else log
        process = subprocess.Popen(
            self.command(name), env=self.environment(name), cwd=self.compose.root, stdin=subprocess.DEVNULL, stdout=out, stderr=log
        )
        self.running[name] = process
        if service.get("restart") == "no":
            return self.ended_well(name, ONCE_SECONDS)
        return self.healthy(name)

    def ended_well(self, name: str, wait: float) -> bool:
        process = self.running.pop(name)
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return self.report.expect(False, f"{name}: did not end within {wait:.0f} s\n{self.said(name)}")
        return self.report.expect(code == 0, f"{name}: ended with {code}\n{self.said(name)}")

    def healthy(self, name: str) -> bool:
        check = self.compose.services[name]["healthcheck"]
        kind, *words = check["test"]
        assert kind == "CMD", f"{name}: health check of kind {kind}"
        words = [str(self.compose.folder / "healthcheck") if word == "healthcheck" else self.text(name, word) for word in words]
        if not shutil.which(words[0]):
            self.report.skip(f"health check of {name}: no {words[0]} here")
            return True
        until = time.monotonic() + PATIENCE_SECONDS + seconds(check.get("start_period", "0s"))
        while True:
            answer = "no answer in time"
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=max(10, seconds(check["timeout"])))
                if done.returncode == 0:
                    self.report.passed += 1
                    return True
                answer = done.stdout + done.stderr
            except subprocess.TimeoutExpired:
                pass
            process = self.running.get(name)
            if process and process.poll() is not None:
                return self.report.expect(False, f"{name}: ended with {process.returncode}\n{self.said(name)}")
            if time.monotonic() > until:
                return self.report.expect(False, f"{name}: {' '.join(words)} does not succeed: {answer.strip()}\n{self.said(name)}")
            time.sleep(0.2)

    def stop(self, name: str) -> None:
        """As Docker does: TERM, and stop_grace_period to end in. It must end by itself and well."""
        process = self.running[name]
        if not self.report.expect(process.poll() is None, f"{name}: ended by itself with {process.poll()}\n{self.said(name)}"):
            del self.running[name]
            return
        process.send_signal(signal.SIGTERM)
        grace = seconds(self.compose.services[name].get("stop_grace_period", "10s"))
        if name in self.compose.ours:
            self.ended_well(name, grace)
            return
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self.running[name]

    def kill_all(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    def said(self, name: str) -> str:
        lines = [line for path in sorted(self.folder.glob(f"{name}.*")) for line in path.read_text(errors="replace").splitlines()[-20:]]
        return "\n".join(f"    {line[:1000]}" for line in lines)


def local(here: str):
    host, port = here.split(":")

    def replaced(found: re.Match) -> str:
        # `PLAINTEXT://:9092` listens everywhere; here it must not.
        given, separator, _ = found.groups()
        return f"{host}{separator}{port}" if given or separator == ":" else found[0]

    return replaced


def free_port() -> int:
    """On loopback, below the ports that the kernel gives to clients; no two calls give the same."""
    for _ in range(12_000):
        free_port.next = 20_000 + (free_port.next - 20_000 + 1) % 12_000
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", free_port.next))
                return free_port.next
            except OSError:
                continue
    raise OSError("no free port from 20000 to 31999")


free_port.next = 20_000 + os.getpid() * 997 % 12_000
