"""compose.yaml carried out on this machine, with the runner for an engine: started, clicked, measured, stopped."""
import http.client
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import monitoring
from .compose import Compose
from .files import ports
from .machine import Machine
from .report import Report

# What nothing stands for here, and why.
ELSEWHERE = {
    "arroyo": "its image is not to be had without Docker",
    "deploy": "there is no Arroyo",
    "prometheus": "`check files` reads its configuration with promtool",
    "grafana": "`check files` reads its files",
    "redis-exporter": "its image is not to be had without Docker",
    "clickhouse": "ClickHouse's engine by dev/clickhouse, or --clickhouse, stands for it",
}
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
CLICK = "/api/v1/click/imp_{}?ad_id=ad_9&campaign_id=cmp_7"
REPORT = "/api/v1/reports/clicks?campaign_id=cmp_7&groupBy=ad_id"
# A click is on a report within 10 s of reaching the log; the rest is for a busy machine.
REPORT_SECONDS = 120
# Kafka's client counts every statistics_every, 5 s.
METRICS_SECONDS = 60
# What a metric is named by at its end: a unit, what is counted, or a state that is 1 or 0. Counters end in _total.
MEASURED = re.compile(
    r"tally_\w+_(seconds|bytes|records|rows|clicks|minutes|requests|appends_in_flight|partitions(_without_leader)?|up|failed|waiting)"
)
# Lines of a start.
FIRST_LINES = 10


def check(compose: Compose, given, report: Report) -> None:
    for program, package in (("nginx", "nginx-light"), ("redis-server", "redis-server"), ("java", "openjdk-17-jre-headless")):
        if not (shutil.which(program) or Path("/usr/sbin", program).exists()):
            return report.skip(f"everything: no {program} here (Debian: {package})")
    with tempfile.TemporaryDirectory(prefix="tally-docker-") as folder:
        # nginx' workers are another user.
        Path(folder).chmod(0o755)
        machine = Machine(compose, Path(folder), given.bin.resolve(), report)
        try:
            carry_out(machine, given)
        finally:
            machine.kill_all()


def carry_out(machine: Machine, given) -> None:
    compose, report = machine.compose, machine.report
    for name, why in ELSEWHERE.items():
        print(f"not started: {name}: {why}")
    servers = {"kafka": ("9092", given.kafka), "seen": ("6379", given.redis), "claims": ("6379", given.claims)}
    for name, (port, to) in servers.items():
        machine.move(name, port, to)
    for name in compose.ours:
        for port in ports(compose, name):
            machine.move(name, port)
    for port in ("8080", "8081", "8082", "8089"):
        machine.move("proxy", port)
    if not clickhouse(machine, given.clickhouse):
        return

    names = set(compose.services) - set(ELSEWHERE)
    order = compose.ordered(names)
    for name in order:
        if name in servers and servers[name][1]:
            if not machine.healthy(name):
                return
        elif not machine.start(name):
            return
    counts(machine)
    measures(machine)
    survives(machine)
    for name in reversed(order):
        if name in machine.running:
            machine.stop(name)
    for name in order:
        if name in compose.ours:
            logs(machine, name)


def clickhouse(machine: Machine, url: str | None) -> bool:
    if url:
        machine.move("clickhouse", "8123", url.removeprefix("http://").rstrip("/"))
    else:
        here = machine.move("clickhouse", "8123")
        program = str(machine.compose.root / "dev/clickhouse")
        command = [program, "run", "--port", here.rpartition(":")[2], "--dir", str(machine.folder / "clickhouse")]
        log = open(machine.folder / "clickhouse.log", "ab")
        machine.running["clickhouse"] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return machine.healthy("clickhouse")


def get(address: str, path: str, headers: dict[str, str] = {}) -> tuple[int, http.client.HTTPMessage, str]:
    """Status, headers and body; status 0 and why, when nothing answers."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode(errors="replace")
    except OSError as error:
        return 0, http.client.HTTPMessage(), str(error)
    finally:
        connection.close()


def click(machine: Machine, impression: str) -> bool:
    # A client's own word on where it is must not get through; what the proxy says is believed.
    forged = {"X-Forwarded-For": "192.0.2.1", "X-Country": "XX"}
    status, headers, body = get(machine.moved["proxy:8080"], CLICK.format(impression), BROWSER | forged)
    good = status == 302 and headers.get("X-Click-Id") and headers.get("Location")
    return machine.report.expect(good, f"a click through the proxy is answered {status}: {body[:300]}")


def counts(machine: Machine) -> None:
    """Three clicks on two impressions, over both redirects, are two on the report."""
    for impression in ("docker_1", "docker_1", "docker_2"):
        click(machine, impression)
    status, _, body = get(machine.moved["proxy:8082"], "/ads/ad_9?click=1")
    machine.report.expect(status == 200, f"the sample page is answered {status}: {body[:300]}")
    until, clicks, said = time.monotonic() + REPORT_SECONDS, None, ""
    while clicks != 2 and time.monotonic() < until:
        time.sleep(0.5)
        status, _, said = get(machine.moved["proxy:8081"], REPORT)
        clicks = sum(row["clicks"] for row in json.loads(said)["rows"]) if status == 200 else None
    logs = "\n".join(machine.said(name) for name in ("runner", "loader") if name in machine.running)
    machine.report.expect(clicks == 2, f"the report says {clicks} clicks after {REPORT_SECONDS} s, not 2: {said[:500]}\n{logs}")


def measures(machine: Machine) -> None:
    """Every metric of ours that alerts and dashboard name is exported by a process that is asked where Prometheus asks."""
    compose = machine.compose
    quiet = Report(required=False)
    expressions = monitoring.alerts(compose, quiet) + monitoring.dashboards(compose, None, quiet)
    wanted = {metric for _, expression in expressions for metric in monitoring.metrics(expression) if metric.startswith("tally_")}
    found: set[str] = set()
    types: dict[str, str] = {}
    missing, until = wanted, time.monotonic() + METRICS_SECONDS
    while missing and time.monotonic() < until:
        for target in monitoring.targets(compose):
            if target in machine.moved and target.split(":")[0] in machine.running:
                _, _, page = get(machine.moved[target], "/metrics")
                found.update(line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#"))
                types.update(re.findall(r"^# TYPE (tally_\w+) (\w+)$", page, re.MULTILINE))
        missing = wanted - found
        time.sleep(0.5 if missing else 0)
    machine.report.expect(not missing, f"alerts and dashboard name what no process exports: {sorted(missing)}")
    for name, kind in types.items():
        named = f"{name}_total" in found if kind == "counter" else MEASURED.fullmatch(name)
        machine.report.expect(named, f"the name of {kind} {name} does not end with what it measures or counts")


def logs(machine: Machine, name: str) -> None:
    """Every line is JSON that says when, how grave and what; and what can be lost is said at the start."""
    lines, events = (machine.folder / f"{name}.log").read_text(errors="replace").splitlines(), []
    for line in lines:
        try:
            event = json.loads(line)
            events.append(tuple(event[key] for key in ("timestamp", "level", "message")))
        except (ValueError, KeyError, TypeError):
            machine.report.expect(False, f"{name}: this log line is no JSON with timestamp, level and message: {line[:1000]}")
            return
    machine.report.passed += 1
    service = machine.compose.services[name]
    if service["restart"] != "no" and any(key.endswith("__SINGLE_NODE") for key in service["environment"]):
        first = events[:FIRST_LINES]
        said = any(level == "WARN" and message.startswith("single_node: ") for _, level, message in first)
        machine.report.expect(said, f"{name}: says nothing of single_node at its start, but {first}")


def survives(machine: Machine) -> None:
    """With one redirect stopped the proxy passes it by."""
    machine.stop("redirect-1")
    for number in range(4):
        click(machine, f"docker_after_{number}")
