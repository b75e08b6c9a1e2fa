"""Where a release comes from: an in-toto statement (v1) with SLSA provenance (v1).

It says what the artifact says of its build, and is vouched for by those who sign the release: that
is build level 1 of SLSA, no more. See https://in-toto.io/Statement/v1 and
https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from edgeshrink.artifact import Artifact, FileEntry, file_entry

PROVENANCE: Final = "provenance.json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILT: Final = "urn:edgeshrink:build:v1"  # `edgeshrink build` made the model
GIVEN: Final = "urn:edgeshrink:given:v1"  # somebody brought a model file
RECIPE: Final = "recipe.toml"


def recipe_digest(artifact: Artifact) -> str:
    """Return the SHA-256 of the recipe: of its file, or else of its canonical JSON."""
    if RECIPE in artifact.files:
        return artifact.files[RECIPE].sha256
    return file_entry(json.dumps(artifact.recipe, sort_keys=True).encode()).sha256


def provenance(artifact: Artifact, files: Mapping[str, FileEntry], *, is_built: bool) -> bytes:
    """Return the statement about `files`, all of a release but the statement itself.

    Args:
        artifact: What the release is made of.
        files: Digest and size by path.
        is_built: Whether edgeshrink made the model; False: it was brought as a file.
    """
    parameters: dict[str, Any] = {"name": artifact.name, "target": artifact.target}
    dependencies: list[dict[str, Any]] = [
        {"uri": f"pkg:pypi/{tool}@{version.replace('+', '%2B')}", "name": tool}
        for tool, version in sorted(artifact.versions.items())
    ]
    if is_built:
        parameters |= {
            "engine": artifact.engine,
            "recipe": dict(artifact.recipe),
            "seed": artifact.seed,
        }
        recipe = {"name": RECIPE, "digest": {"sha256": recipe_digest(artifact)}}
        dependencies.insert(0, recipe)
    version = artifact.versions.get("edgeshrink", "unknown")
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": entry.sha256}}
            for name, entry in sorted(files.items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILT if is_built else GIVEN,
                "externalParameters": parameters,
                "internalParameters": {},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {
                    "id": f"pkg:pypi/edgeshrink@{version.replace('+', '%2B')}",
                    "version": {"edgeshrink": version},
                },
                "metadata": {},
            },
        },
    }
    return json.dumps(statement, indent=1, sort_keys=True).encode() + b"\n"
