"""usage: bill.py BILL LICENCES PACKAGE < `cargo metadata`: what the compute image is made of.

PACKAGE is the folder, called NAME-VERSION, of an unpacked package of Debian's that is in it too.
"""

import json
import pathlib
import sys
import urllib.parse


def linked(metadata, name):
    """The packages that a build of package `name` links in, build and test tools left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    todo = [key for key, package in packages.items() if package["name"] == name]
    seen = set()
    while todo:
        key = todo.pop()
        if key in seen:
            continue
        seen.add(key)
        for dep in nodes[key]["deps"]:
            kinds = {kind["kind"] for kind in dep["dep_kinds"]}
            is_macro = any("proc-macro" in target["kind"] for target in packages[dep["pkg"]]["targets"])
            if None in kinds and not is_macro:
                todo.append(dep["pkg"])
    return sorted((packages[key] for key in seen), key=lambda package: (package["name"], package["version"]))


def main():
    bill, licences, debian = map(pathlib.Path, sys.argv[1:])
    [copyright] = debian.glob("usr/share/doc/*/copyright")
    name = copyright.parent.name
    version = debian.name.removeprefix(f"{name}-")
    packages = linked(json.load(sys.stdin), "peapod")
    components = [
        {
            "type": "library",
            "name": package["name"],
            "version": package["version"],
            "purl": f"pkg:cargo/{package['name']}@{package['version']}",
            "licenses": [{"expression": package["license"]}],
        }
        for package in packages
        if package["source"]
    ]
    components.append(
        {
            "type": "firmware",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{urllib.parse.quote(version)}",
            "licenses": [{"license": {"name": "Debian's copyright file, in compute.licences"}}],
        }
    )
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}
    bill.write_text(json.dumps(document, indent=1) + "\n")
    with licences.open("w") as out:
        for package in packages:
            out.write(f"=== {package['name']} {package['version']}: {package['license']}\n")
            folder = pathlib.Path(package["manifest_path"]).parent
            for file in sorted(folder.iterdir()):
                if file.is_file() and file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")):
                    out.write(file.read_text(errors="replace") + "\n")
        out.write(f"=== {name} {version}\n{copyright.read_text()}\n")


main()
