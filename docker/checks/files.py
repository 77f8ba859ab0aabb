"""compose.yaml, the Dockerfile and nginx.conf against each other and against what they name."""
import http.client
import ipaddress
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

from .compose import Compose, seconds
from .report import Report

# Keys of a service that this file uses. Another one may be right, and then belongs here; a misspelt one does nothing.
SERVICE_KEYS = {
    "image", "build", "restart", "stop_grace_period", "read_only", "tmpfs", "cap_drop", "security_opt", "command", "environment",
    "volumes", "depends_on", "healthcheck", "profiles", "ports", "ulimits", "extra_hosts", "networks",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
# Read by every process of ours, beside the keys of its file (serving/src/process.rs).
EVERY_PROCESS = {"TALLY_LOG", "TALLY_LOG_FORMAT"}
# nginx.conf knows services by these; on this machine it is tested against loopback.
UPSTREAM = re.compile(r"^\s*server\s+([\w.-]+):(\d+)", re.MULTILINE)


def check(compose: Compose, report: Report) -> None:
    for name in compose.services:
        service(compose, name, report)
    variables(compose, report)
    addresses(compose, report)
    dockerfile(compose, report)
    nginx(compose, report)
    by_compose_itself(compose, report)


def service(compose: Compose, name: str, report: Report) -> None:
    given = compose.services[name]
    unknown = set(given) - SERVICE_KEYS
    report.expect(not unknown, f"{name}: unknown keys {sorted(unknown)}")
    image = given.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    report.expect(tag and tag != "latest", f"{name}: image {image!r} has no pinned tag")
    report.expect("restart" in given, f"{name}: says nothing of restart")
    local = all(str(port).startswith("127.0.0.1:") for port in given.get("ports", []))
    report.expect(local, f"{name}: a port is not published on loopback alone")
    once = given.get("restart") == "no"
    report.expect(once or "healthcheck" in given or name == "redis-exporter", f"{name}: has no health check")
    health = given.get("healthcheck")
    if health:
        report.expect(set(health) <= {"test", "interval", "timeout", "retries", "start_period"}, f"{name}: health check {health}")
        for key in ("interval", "timeout"):
            report.expect(key in health and seconds(health[key]) > 0, f"{name}: health check without {key}")
    for other, condition in compose.dependencies(name).items():
        if not report.expect(other in compose.services, f"{name}: depends on {other!r}, which is no service"):
            continue
        report.expect(condition in CONDITIONS, f"{name}: depends on {other} by {condition!r}, not one of {sorted(CONDITIONS)}")
        theirs = compose.services[other]
        healthy, completed = condition == "service_healthy", condition == "service_completed_successfully"
        report.expect(not healthy or "healthcheck" in theirs, f"{name}: waits for the health of {other}, which has no check")
        report.expect(not completed or theirs.get("restart") == "no", f"{name}: waits for the end of {other}, which restarts")
        profiles = set(theirs.get("profiles", []))
        report.expect(
            not profiles or set(given.get("profiles", [])) & profiles == set(given.get("profiles", [])) != set(),
            f"{name}: depends on {other}, which runs in profiles {sorted(profiles)} only",
        )
    for volume in given.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith((".", "/")):
            report.expect((compose.folder / source).exists(), f"{name}: mounts {source}, which does not exist")
        else:
            report.expect(source in compose.volumes, f"{name}: mounts volume {source!r}, which is not declared")
    if name in compose.ours:
        settings(compose, name, report)


def keys(path: Path) -> dict[tuple[str, ...], object]:
    """The keys of a commented configuration file with their defaults; None for those that stand in comments only."""
    text = path.read_text()
    found: dict[tuple[str, ...], object] = {}
    table: tuple[str, ...] = ()
    for line in text.splitlines():
        if head := re.match(r"\[(\w+(?:\.\w+)*)\]", line):
            table = tuple(head[1].split("."))
        elif line.startswith("#"):
            for key in re.findall(r"\b([a-z_]+) = ", line):
                found[(*table, key)] = None

    def walk(value: dict, above: tuple[str, ...]) -> None:
        for key, below in value.items():
            if isinstance(below, dict):
                walk(below, (*above, key))
            else:
                found[(*above, key)] = below

    walk(tomllib.loads(text), ())
    return found


def as_toml(text: str) -> object:
    """A variable's text as serving/src/config.rs reads it: a TOML value if it is one, else a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def settings(compose: Compose, name: str, report: Report) -> None:
    """Every variable of a process of ours is a key of its configuration file, of the right type."""
    command = compose.services[name]["command"]
    config = Path(command[command.index("--config") + 1]) if "--config" in command else None
    if not report.expect(config and config.parent == Path("/etc/tally"), f"{name}: {command} has no --config in /etc/tally"):
        return
    path = compose.folder / config.name
    if not report.expect(path.exists(), f"{name}: --config {config}, but there is no docker/{config.name}"):
        return
    known, prefix = keys(path), f"TALLY_{config.stem.upper()}_"
    for variable, text in compose.services[name]["environment"].items():
        if variable in EVERY_PROCESS:
            continue
        if not report.expect(variable.startswith(prefix), f"{name}: {variable} is not read by it: {prefix}…"):
            continue
        key = tuple(variable.removeprefix(prefix).lower().split("__"))
        if not report.expect(key in known, f"{name}: {variable}: docker/{config.name} has no key {'.'.join(key)}"):
            continue
        default, value = known[key], as_toml(text)
        same = default is None or type(default) is type(value)
        report.expect(same, f"{name}: {variable} is {text!r}, and docker/{config.name} has {default!r}, which is of another type")


def variables(compose: Compose, report: Report) -> None:
    for name, use in compose.variables.items():
        report.expect(name in compose.env_example, f"${{{name}}} of compose.yaml is not in .env.example")
        report.expect(use.required or use.defaults, f"${{{name}}} has neither a default nor a word on what to set")
        secret = re.search("PASSWORD|KEY|SECRET|TOKEN", name)
        report.expect(not secret or not any(use.defaults), f"${{{name}}} is a secret and has a default")
        report.expect(not secret or not compose.env_example.get(name), f"{name} is a secret and has a value in .env.example")
    for name in compose.env_example:
        # Compose itself reads those.
        report.expect(name in compose.variables or name.startswith("COMPOSE_"), f"{name} of .env.example is used by nothing")
    profiles = {profile for service in compose.services.values() for profile in service.get("profiles", [])}
    active = compose.env_example.get("COMPOSE_PROFILES")
    report.expect(active in profiles, f"COMPOSE_PROFILES={active} of .env.example is not one of {sorted(profiles)}")


def addresses(compose: Compose, report: Report) -> None:
    """The fixed addresses are those that the proxy knows, the redirects trust it, and no other container gets one."""
    pool = compose.networks["default"]["ipam"]["config"][0]
    subnet, moving = ipaddress.ip_network(pool["subnet"]), ipaddress.ip_network(pool["ip_range"])
    fixed = {name: address for name in compose.services if (address := compose.address(name))}
    report.expect(len(set(fixed.values())) == len(fixed), f"two services have one address: {fixed}")
    for name, address in fixed.items():
        address = ipaddress.ip_address(address)
        report.expect(address in subnet and address not in moving, f"{name}: {address} is not in {subnet} outside {moving}")
    known = dict(entry.split(":") for entry in compose.services["proxy"]["extra_hosts"])
    for name, address in known.items():
        report.expect(fixed.get(name) == address, f"proxy: extra_hosts says {name} is {address}, it is {fixed.get(name)}")
    for name, service in compose.ours.items():
        trusted = service["environment"].get("TALLY_REDIRECT_TRUSTED_PROXIES")
        if trusted is not None:
            report.expect(as_toml(trusted) == [fixed["proxy"]], f"{name}: trusts {trusted}, and the proxy is {fixed['proxy']}")


def ports(compose: Compose, name: str) -> set[str]:
    """What a process of ours is told to listen on."""
    of = compose.services[name].get("environment", {}).values()
    return {value.rpartition(":")[2] for value in of if isinstance(value, str) and value.startswith("0.0.0.0:")}


def dockerfile(compose: Compose, report: Report) -> None:
    text = (compose.folder / "Dockerfile").read_text().replace("\\\n", " ")
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        report.expect(":" in image and not image.endswith(":latest"), f"Dockerfile: FROM {image} is not pinned")
    cargo = tomllib.loads((compose.root / "Cargo.toml").read_text())
    rust = cargo["workspace"]["package"]["rust-version"]
    report.expect(f"FROM rust:{rust}" in text, f"Dockerfile: not built with rust {rust}, as Cargo.toml asks")
    report.expect("cargo build --release --locked" in text, "Dockerfile: the build does not say --release --locked")
    report.expect("cargo build --profile shipped --locked" in text, "Dockerfile: the redirect is not built as shipped")
    last = text[text.rindex("FROM ") :]
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    report.expect(users and users[-1] not in ("root", "0"), "Dockerfile: the last image runs as root")
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        copied.update(sources)
        for source in sources:
            report.expect((compose.root / source).exists(), f"Dockerfile: COPY {source}, which does not exist")
    programs = set(re.findall(r"target/(?:release|shipped)/([\w-]+)", text))
    for name, service in compose.ours.items():
        program = service["command"][0]
        report.expect(program in programs, f"{name}: {program} is not in the image: {sorted(programs)}")
        for word in service["command"]:
            if word.startswith("/etc/tally/"):
                report.expect(f"docker/{Path(word).name}" in copied, f"{name}: {word} is not copied into the image")
        build = service["build"]
        report.expect((compose.folder / build["context"] / build["dockerfile"]).is_file(), f"{name}: no {build['dockerfile']}")


def nginx(compose: Compose, report: Report) -> None:
    text = (compose.folder / "nginx.conf").read_text()
    known = {entry.split(":")[0] for entry in compose.services["proxy"]["extra_hosts"]}
    for host, port in UPSTREAM.findall(text):
        report.expect(host in known, f"nginx.conf: {host} is not in the proxy's extra_hosts")
        report.expect(host in compose.services and port in ports(compose, host), f"nginx.conf: nothing listens on {host}:{port}")
    listens = set(re.findall(r"listen (\d+);", text))
    published = {port.rpartition(":")[2] for port in compose.services["proxy"]["ports"]}
    report.expect(listens == published, f"nginx.conf listens on {sorted(listens)}, compose.yaml publishes {sorted(published)}")
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program:
        return report.skip("nginx -t on nginx.conf: no nginx here (Debian: nginx-light)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(on_loopback(text, Path(folder), {}))
        if report.run([program, "-t", "-q", "-c", str(path)], "nginx.conf"):
            tells_no_address(program, text, Path(folder), report)


def tells_no_address(program: str, text: str, folder: Path, report: Report) -> None:
    """What nginx writes about a request whose redirects are all gone: not who made it."""
    from .machine import free_port  # which takes on_loopback from here

    mine = {port: f"127.0.0.1:{free_port()}" for port in re.findall(r"listen (?:127\.0\.0\.1:)?(\d+);", text)}
    gone = {f"{host}:{port}": f"127.0.0.1:{free_port()}" for host, port in UPSTREAM.findall(text)}
    path = folder / "running.conf"
    path.write_text(on_loopback(text, folder, mine | gone))
    process = subprocess.Popen([program, "-c", str(path), "-g", "daemon off;"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        status, until = 0, time.monotonic() + 30
        while not status and time.monotonic() < until:
            connection = http.client.HTTPConnection(mine["8080"], timeout=30)
            try:
                connection.request("GET", "/api/v1/click/imp_1?ad_id=ad_9")
                status = connection.getresponse().status
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        report.expect(status == 502, f"nginx.conf: without a redirect a click is answered {status}, not 502")
    finally:
        process.terminate()
        process.wait(timeout=30)
    said = (folder / "error.log").read_text()
    report.expect("client:" not in said, f"nginx.conf: the address of a client is written: {said[:500]}")


def on_loopback(text: str, folder: Path, taken: dict[str, str]) -> str:
    """nginx.conf with services, its own ports (by `taken`) and its files moved to this machine."""

    def upstream(found: re.Match) -> str:
        there = f"{found[1]}:{found[2]}"
        return found[0].replace(there, taken.get(there, f"127.0.0.1:{found[2]}"))

    def listen(found: re.Match) -> str:
        return f"listen {taken.get(found[1], f'127.0.0.1:{found[1]}')};"

    text = UPSTREAM.sub(upstream, text)
    text = re.sub(r"listen (?:127\.0\.0\.1:)?(\d+);", listen, text)
    return text.replace("/tmp/", f"{folder}/").replace("/dev/stderr", f"{folder}/error.log")


def by_compose_itself(compose: Compose, report: Report) -> None:
    """Compose's own parser needs no engine."""
    command = None
    for candidate in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(candidate[0]) and subprocess.run([*candidate, "version"], capture_output=True).returncode == 0:
            command = candidate
            break
    if not command:
        return report.skip("Compose's own parser on compose.yaml: neither docker compose nor docker-compose here (Debian: docker-compose)")
    with tempfile.TemporaryDirectory() as folder:
        env = Path(folder) / "env"
        env.write_text("".join(f"{name}={value or 'x' * 16}\n" for name, value in compose.env_example.items()))
        path = str(compose.folder / "compose.yaml")
        report.run([*command, "--env-file", str(env), "-f", path, "config", "-q"], "compose.yaml")
        # A secret that is not set must stop it.
        env.write_text("")
        done = subprocess.run([*command, "--env-file", str(env), "-f", path, "config", "-q"], capture_output=True, text=True)
        report.expect(done.returncode != 0 and "docker/.env" in done.stderr, "compose.yaml: goes on without its secrets")


def commands(compose: Compose, folder: Path | None, report: Report) -> None:
    """Every command is one that the program knows, by its own --help."""
    if not folder:
        return report.skip("commands of compose.yaml: no --bin")
    for name, service in compose.ours.items():
        program, *words = service["command"]
        subcommand = [word for word in words if not word.startswith("-")][:1] if program == "tally" else []
        path = folder / program
        if not report.expect(path.is_file(), f"{name}: no {path}"):
            continue
        done = subprocess.run([path, *subcommand, "--help"], capture_output=True, text=True, timeout=30)
        if not report.expect(done.returncode == 0, f"{name}: {program} {' '.join(subcommand)} --help: {done.stderr.strip()}"):
            continue
        for flag in (word for word in words if word.startswith("--")):
            report.expect(re.search(rf"^\s+(-\w, )?{flag}\b", done.stdout, re.MULTILINE), f"{name}: {program} knows no {flag}")

