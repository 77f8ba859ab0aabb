"""compose.yaml, read as Compose reads it, as far as this one goes."""
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

# $NAME and ${NAME}, ${NAME:-default}, ${NAME:?what to set}; $$ is a dollar.
VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?::([-?])([^}]*))?\})")
OUR_IMAGE = "tally:local"


@dataclass
class Used:
    """A variable of the environment that compose.yaml reads."""

    defaults: set[str] = field(default_factory=set)
    required: bool = False


@dataclass
class Compose:
    folder: Path
    # With variables filled in.
    services: dict[str, dict]
    volumes: dict
    networks: dict
    variables: dict[str, Used]
    env_example: dict[str, str]

    @property
    def root(self) -> Path:
        return self.folder.parent

    @property
    def ours(self) -> dict[str, dict]:
        """Services that run our programs."""
        return {name: service for name, service in self.services.items() if service.get("image") == OUR_IMAGE}

    @classmethod
    def load(cls, folder: Path) -> "Compose":
        text = (folder / "compose.yaml").read_text()
        example = dict(
            line.split("=", 1)
            for line in (folder / ".env.example").read_text().splitlines()
            if line.strip() and not line.lstrip().startswith("#")
        )
        variables: dict[str, Used] = {}
        # As with Compose, the environment wins.
        values = {name: os.environ.get(name) or value for name, value in example.items()}
        document = interpolate(yaml.safe_load(text), values, variables)
        return cls(
            folder=folder,
            services=document["services"],
            volumes=document.get("volumes") or {},
            networks=document.get("networks") or {},
            variables=variables,
            env_example=example,
        )

    def dependencies(self, name: str) -> dict[str, str]:
        """Services that must be there first, and how far."""
        given = self.services[name].get("depends_on", {})
        if isinstance(given, list):
            return {other: "service_started" for other in given}
        return {other: condition["condition"] for other, condition in given.items()}

    def ordered(self, names: set[str]) -> list[str]:
        """The same names, each after those that it depends on."""
        order: list[str] = []

        def visit(name: str, above: tuple[str, ...] = ()) -> None:
            if name in above:
                raise ValueError(f"depends_on goes in a circle: {' → '.join([*above, name])}")
            if name in order or name not in names:
                return
            for other in self.dependencies(name):
                visit(other, (*above, name))
            order.append(name)

        for name in self.services:
            visit(name)
        return order

    def address(self, name: str) -> str | None:
        networks = self.services[name].get("networks", {})
        return (networks.get("default") or {}).get("ipv4_address") if isinstance(networks, dict) else None


def interpolate(value: object, values: dict[str, str], used: dict[str, Used]) -> object:
    def fill(found: re.Match) -> str:
        dollar, bare, name, kind, more = found.groups()
        if dollar:
            return "$"
        name = name or bare
        use = used.setdefault(name, Used())
        use.required |= kind == "?"
        if kind == "-":
            use.defaults.add(more)
        # Secrets that must be set are empty in the example; any value does here.
        return values.get(name) or {"-": more, "?": f"example-{name.lower()}-0123456789"}.get(kind, "")

    if isinstance(value, dict):
        return {key: interpolate(below, values, used) for key, below in value.items()}
    if isinstance(value, list):
        return [interpolate(below, values, used) for below in value]
    return VARIABLE.sub(fill, value) if isinstance(value, str) else value


def seconds(text: str) -> float:
    """Compose's durations: 5s, 1m, 1m30s."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"duration {text!r}: written as 5s or 1m30s")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)
