"""In the judge's root: every network-config of /opt/network by cloud-init and by the agent.

Prints what differs. A file's line `# differs: RENDERER...: WHY` says that these have to; in one release of
Debian only where its number stands before it, `# 12 differs:`.
"""

import json
import pathlib
import re
import subprocess

import yaml

KINDS = {
    "netplan": "etc/netplan/*",
    "networkd": "etc/systemd/network/*.network",
    "network-manager": "etc/NetworkManager/system-connections/*",
    "eni": "etc/network/interfaces*",
}
# What names a profile, or is said in another way to the same effect.
IDENTITY = {"connection.id", "connection.uuid", "user.org.freedesktop.NetworkManager.origin"}


def sections(text):
    """(section, {key: [values]}) of an INI file whose sections may come again."""
    found = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            found.append((line[1:-1], {}))
        else:
            key, value = line.split("=", 1)
            found[-1][1].setdefault(key, []).append(value)
    return found


def netplan(text):
    network = yaml.safe_load(text)["network"]
    for links in network.values():
        for link in links.values() if isinstance(links, dict) else []:
            for key, to in (("gateway4", "0.0.0.0/0"), ("gateway6", "::/0")):
                if key in link and network.get("written") != 2:
                    link.setdefault("routes", []).append({"to": to, "via": link.pop(key)})
            for route in link.get("routes", []):
                if route["to"] == "default":
                    route["to"] = "::/0" if ":" in route["via"] else "0.0.0.0/0"
            names = link.get("nameservers", {})
            link["nameservers"] = {key: names[key] for key in names if names[key]}
            for key in ("addresses", "routes"):
                link[key] = sorted(link.get(key, []), key=lambda item: json.dumps(item, sort_keys=True))
    return {json.dumps(network, sort_keys=True)}


def networkd(text):
    found = set()
    for section, keys in sections(text):
        if section == "Route":
            # Where no other is said, it goes everywhere.
            keys = {key: value for key, value in keys.items() if value not in (["0.0.0.0/0"], ["::/0"])}
            found.add("route " + json.dumps(keys, sort_keys=True))
        for key, values in keys.items() if section != "Route" else []:
            section = "Network" if key == "Address" else section
            found |= {f"{section}.{key}={value.lower()}" for value in values}
    return found


def keyfile(text):
    found = set()
    for section, keys in sections(text):
        for key, (value,) in keys.items():
            key = f"{section}.{key}"
            if key in IDENTITY or value == "disabled":
                continue
            # A number says nothing, nor does which UUID another profile has.
            line = re.sub(r"^(ipv[46]\.(?:route|address))\d+", r"\1", f"{key}={value}")
            line = re.sub(r"=[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "=UUID", line)
            found.add(re.sub(r"\.route=(?:0\.0\.0\.0|::)/0,([^,]*)$", r".gateway=\1", line))
    return found


def eni(text):
    """Stanzas, each with its lines; routes as `ip route` has them."""
    found, stanza = set(), ""
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        words = line.split()
        if not words or words[:2] in (["auto", "lo"], ["iface", "lo"]):
            stanza = "lo" if words else stanza
            continue
        if words[0] in ("auto", "iface"):
            stanza = " ".join(words[1:]) if words[0] == "iface" else stanza
            found.add(re.sub(r":\d+$", "", line))
            continue
        if words[0] == "pre-down" or stanza == "lo":
            continue
        found.add(f"{stanza}: {route(line)}")
    return found


def route(line):
    line = re.sub(r"^post-up route add (?:-A inet6 )?(?:-net |-host )?", "post-up ip route add ", line)
    line = line.replace(" gw ", " via ").replace(" dev $IFACE", "")
    return re.sub(r"^post-up ip route add default via (\S+) \|\| true$", r"gateway \1", line)


READ = {"netplan": netplan, "networkd": networkd, "network-manager": keyfile, "eni": eni}


def rendered(kind, folder):
    files = sorted(pathlib.Path(folder).glob(KINDS[kind]))
    files = [file for top in files for file in ([top] if top.is_file() else top.glob("*"))]
    return {(file.name, line) for file in files for line in READ[kind](file.read_text())}


def main():
    # Whom systemd-networkd's files belong to, where there is one.
    if subprocess.run(["id", "systemd-network"], capture_output=True).returncode:
        subprocess.run(["useradd", "--system", "systemd-network"], check=True)
    release = re.search(r'^VERSION_ID="(.*)"', pathlib.Path("/etc/os-release").read_text(), re.M)[1]
    count = 0
    for file in sorted(pathlib.Path("/opt/network").glob("*.yaml")):
        differs = re.findall(r"^# (?:(\d+) )?differs: ([^:]*)", file.read_text(), re.M)
        differs = {kind for of, kinds in differs if of in ("", release) for kind in kinds.split()}
        for kind in KINDS:
            theirs, ours = f"/out/{file.stem}/{kind}/theirs", f"/out/{file.stem}/{kind}/ours"
            convert = ["cloud-init", "devel", "net-convert", "-p", file, "-k", "yaml", "-D", "debian"]
            outcome = subprocess.run([*convert, "-O", kind, "-d", theirs], capture_output=True, text=True)
            own = subprocess.run(["/opt/agent", "render", file, kind, ours], capture_output=True, text=True)
            if own.returncode or outcome.returncode:
                print(f"{file.stem}: {kind}: {outcome.stderr[-300:]} {own.stderr}")
                continue
            theirs, ours = rendered(kind, theirs), rendered(kind, ours)
            count += 1
            if (theirs == ours) == (kind in differs):
                print(f"{file.stem}: {kind} {'differs no more' if theirs == ours else 'differs'}")
                for sign, lines in (("-", theirs - ours), ("+", ours - theirs)):
                    for name, line in sorted(lines):
                        print(f"    {sign} {name}: {line}")
    print(f"{count} compared")


main()
