"""Makes sets of real user agents from what packages ship: python3 sets.py FOLDER

FOLDER holds node_modules (crawler-user-agents, user-agents, top-user-agents, uap-core) and pip (the packages
device-detector and fake-useragent, installed with --target). Writes FOLDER/sets/NAME.tsv, lines of `class TAB agent`,
and FOLDER/sets/uap-core.json. Browsers alone are people: agents of HTTP libraries and apps' own calls are left out.
"""

import glob
import json
import os
import re
import sys
from collections import Counter, defaultdict

import yaml

folder = sys.argv[1]
node, pip, sets = (os.path.join(folder, name) for name in ("node_modules", "pip", "sets"))
os.makedirs(sets, exist_ok=True)
NO_BROWSER = re.compile(r"Dalvik/|CFNetwork/|^okhttp|^Microsoft Office ")


def write(name, rows):
    agents = {}
    for agent, kind in rows:
        agent = agent.strip().strip('"')
        if agent and not re.search(r"[\t\n]", agent) and not (name.startswith("people") and NO_BROWSER.search(agent)):
            agents.setdefault(agent, kind)
    with open(os.path.join(sets, name + ".tsv"), "w") as out:
        out.writelines(f"{kind}\t{agent}\n" for agent, kind in agents.items())
    print(f"{name}: {len(agents)}")


def load(path):
    with open(path) as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.endswith("l") else json.load(file)


crawlers = load(f"{node}/crawler-user-agents/crawler-user-agents.json")
write("bots-list", [(agent, "-") for c in crawlers for agent in c.get("instances", [])])

fixtures = f"{pip}/device_detector/tests/fixtures/upstream"
write("bots-matomo", [(bot["user_agent"], "-") for bot in load(f"{fixtures}/bots.yml")])

KINDS = {"smartphone": "mobile", "phablet": "mobile", "feature phone": "mobile", "tablet": "tablet", "desktop": "desktop", "tv": "tv"}
rows = []
for path in sorted(glob.glob(f"{fixtures}/*.yml")):
    if re.match(r"bots|clienthints|podcasting|feed_reader|peripheral", os.path.basename(path)):
        continue
    for entry in load(path):
        if (entry.get("client") or {}).get("type") == "browser" and not entry.get("headers"):
            kind = (entry.get("device") or {}).get("type")
            rows.append((entry["user_agent"], KINDS.get(kind, "other") if kind else "?"))
write("people-matomo", rows)

seen = defaultdict(Counter)
for visit in load(f"{node}/user-agents/dist/user-agents.json"):
    seen[visit["userAgent"]][visit["deviceCategory"]] += 1
rows = [(agent, kinds.most_common(1)[0][0]) for agent, kinds in seen.items()]
with open(f"{pip}/fake_useragent/data/browsers.jsonl") as file:
    rows += [(visit["useragent"], visit["type"]) for visit in map(json.loads, file)]
for kind in ("desktop", "mobile"):
    rows += [(agent, kind) for agent in load(f"{node}/top-user-agents/src/{kind}.json")]
write("people-now", rows)

for path in glob.glob(os.path.expanduser("~/.cargo/registry/src/*/isbot-0.1.3/fixtures/browsers.txt")):
    with open(path) as file:
        write("people-2022", [(agent, "?") for agent in file])

with open(os.path.join(sets, "uap-core.json"), "w") as out:
    json.dump(load(f"{node}/uap-core/regexes.yaml"), out)
