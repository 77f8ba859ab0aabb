"""Prometheus' files by promtool, Grafana's by their shape, and the metrics that both name against the source."""
import json
import re
import shutil
import tempfile
from pathlib import Path

import yaml

from .compose import Compose
from .files import ports
from .report import Report

# What others export, as far as it is used here: Prometheus itself, redis_exporter, ClickHouse.
OTHERS = {
    "up", "ALERTS", "redis_up", "redis_aof_last_write_status", "redis_memory_used_bytes",
    "ClickHouseAsyncMetrics_DiskAvailable_default", "ClickHouseAsyncMetrics_DiskTotal_default",
}
# Ports where others tell Prometheus of themselves.
OTHERS_PORTS = {"arroyo": "5114", "clickhouse": "9363", "seen": "6379", "claims": "6379"}
# Words of PromQL that stand where a metric could.
WORDS = {"by", "on", "and", "or", "unless", "without", "ignoring", "time", "group_left", "group_right"}


def check(compose: Compose, report: Report) -> None:
    promtool = shutil.which("promtool")
    prometheus(compose, promtool, report)
    known = exported(compose.root)
    expressions = alerts(compose, report) + dashboards(compose, promtool, report)
    for where, expression in expressions:
        for metric in metrics(expression):
            of = {metric, *(metric.removesuffix(end) for end in ("_total", "_bucket", "_count", "_sum"))}
            report.expect(metric in OTHERS or of & known, f"{where}: nobody exports {metric}")
    datasources(compose, report)


def exported(root: Path) -> set[str]:
    """Metrics of our own: every name that a source file outside tests registers. Counters stand there without `_total`."""
    names: set[str] = set()
    for path in root.glob("*/src/**/*.rs"):
        source = path.read_text().split("#[cfg(test)]")[0]
        names.update(name.removesuffix("_total") for name in re.findall(r'"(tally_[a-z0-9_]+)"', source))
    return names


def metrics(expression: str) -> set[str]:
    """The metrics that an expression of PromQL names."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    # A name before a bracket is a function.
    names = re.findall(r"(?<![\w.$])([a-zA-Z_:][\w:]*)(?!\w)(?!\s*\()", bare)
    return {name for name in names if name not in WORDS}


def targets(compose: Compose) -> list[str]:
    """Where Prometheus asks, as `service:port`."""
    config = yaml.safe_load((compose.folder / "prometheus.yml").read_text())
    return [target for job in config["scrape_configs"] for part in job["static_configs"] for target in part["targets"]]


def prometheus(compose: Compose, promtool: str | None, report: Report) -> None:
    scraped = {}
    for target in targets(compose):
        host, _, port = target.partition(":")
        scraped[host] = port
        if report.expect(host in compose.services, f"prometheus.yml: {host} is no service"):
            there = port in ports(compose, host) or OTHERS_PORTS.get(host) == port
            report.expect(there, f"prometheus.yml: nothing is exported on {target}")
    for name, service in compose.ours.items():
        report.expect(service.get("restart") == "no" or name in scraped, f"prometheus.yml: does not read {name}")
    if not promtool:
        return report.skip("promtool on prometheus.yml and alerts.yml: no promtool here (Debian: prometheus)")
    report.run([promtool, "check", "config", "prometheus.yml"], "prometheus.yml", cwd=compose.folder)
    report.run([promtool, "test", "rules", "alerts.test.yml"], "alerts.yml", cwd=compose.folder)


def alerts(compose: Compose, report: Report) -> list[tuple[str, str]]:
    rules = [rule for group in yaml.safe_load((compose.folder / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    jobs = {job["job_name"] for job in yaml.safe_load((compose.folder / "prometheus.yml").read_text())["scrape_configs"]}
    for rule in rules:
        name = rule["alert"]
        report.expect(rule["labels"]["severity"] in ("page", "ticket"), f"alerts.yml: {name}: severity {rule['labels']}")
        wanted = {"summary", "description"}
        report.expect(set(rule["annotations"]) == wanted, f"alerts.yml: {name}: needs {sorted(wanted)}")
        for given in re.findall(r'job=~?"([^"]*)"', rule["expr"]):
            report.expect(set(given.split("|")) <= jobs, f"alerts.yml: {name}: no job {given} in prometheus.yml")
    return [(f"alerts.yml: {rule['alert']}", rule["expr"]) for rule in rules]


def dashboards(compose: Compose, promtool: str | None, report: Report) -> list[tuple[str, str]]:
    found = []
    for path in sorted((compose.folder / "grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        report.expect(dashboard.get("uid") and dashboard.get("title") and dashboard.get("schemaVersion"), f"{path.name}: no dashboard")
        ids, taken = set(), set()
        for panel in dashboard["panels"]:
            where = f"{path.name}: {panel['title']}"
            report.expect(panel["id"] not in ids, f"{where}: its id {panel['id']} is another panel's")
            ids.add(panel["id"])
            at = panel["gridPos"]
            report.expect(at["x"] + at["w"] <= 24, f"{where}: wider than the page")
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            report.expect(not cells & taken, f"{where}: lies over another panel")
            taken |= cells
            report.expect(panel.get("targets") and panel.get("description"), f"{where}: has no query or says nothing of itself")
            report.expect(panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}, f"{where}: another datasource")
            refs = [target["refId"] for target in panel["targets"]]
            report.expect(len(refs) == len(set(refs)), f"{where}: two queries have one refId")
            found += [(where, target["expr"]) for target in panel["targets"]]
    report.expect(found, "grafana/dashboards has no dashboard")
    if promtool:
        # Recording rules take any expression, and promtool reads those.
        rules = [{"record": f"panel:{number}", "expr": filled(text)} for number, (_, text) in enumerate(found)]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
            file.flush()
            report.run([promtool, "check", "rules", "--lint=none", file.name], "queries of the dashboard")
    return found


def filled(expression: str) -> str:
    """With Grafana's own variables, as it fills them in."""
    return expression.replace("$__rate_interval", "1m")


def datasources(compose: Compose, report: Report) -> None:
    provisioning = compose.folder / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    report.expect(source["uid"] == "prometheus" and source["url"] == "http://prometheus:9090", f"grafana's datasource is {source}")
    (provider,) = yaml.safe_load((provisioning / "dashboards/tally.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in compose.services["grafana"]["volumes"])
    folder = provider["options"]["path"]
    report.expect(mounts.get("./grafana/dashboards") == folder, f"grafana looks for dashboards in {folder}, where none are mounted")
