"""What a release is made of, as a CycloneDX bill of materials with a model card (ML-BOM).

The library writes everything but the model card, which it does not know; the whole is what the
schema of CycloneDX 1.6 demands.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from edgeshrink.artifact import Artifact, FileEntry, IoSpec, file_entry
from edgeshrink.errors import ToolchainError

BOM: Final = "bom.cdx.json"
SPEC_VERSION: Final = "1.6"
_NAMESPACE: Final = uuid.UUID("7c0a1df7-6b0c-5d43-9d55-6b6ae0c2a5d1")  # of serial numbers


def bill_of_materials(
    artifact: Artifact, files: Mapping[str, FileEntry], facts: Mapping[str, Any], version: str
) -> bytes:
    """Return the bill of materials of a release; the same release gives the same bytes.

    Args:
        artifact: What the release is made of.
        files: Digest and size by path, of all files that are known so far.
        facts: What is signed for people: its `scores`, `figures` and `metric` go into the card.
        version: Of the release.

    Raises:
        ToolchainError: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as err:
        fix = "python -m pip install 'edgeshrink[fleet]'"
        raise ToolchainError("cyclonedx-python-lib", "is not installed", fix) from err
    reference = f"model:{artifact.name}@{version}"
    model = Component(
        name=artifact.name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        description=f"for {artifact.target}, engine {artifact.engine}",
        properties=[
            Property(name=f"edgeshrink:{key}", value=value)
            for key, value in (
                ("target", artifact.target),
                ("engine", artifact.engine),
                ("quantization", artifact.quantization),
            )
        ],
    )
    parts = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
            properties=[Property(name="edgeshrink:bytes", value=str(entry.n_bytes))],
        )
        for name, entry in sorted(files.items())
    ]
    tools = [
        Component(
            name=tool,
            version=number,
            type=ComponentType.LIBRARY,
            bom_ref=f"tool:{tool}",
            purl=PackageURL(type="pypi", name=tool, version=number),
        )
        for tool, number in sorted(artifact.versions.items())
    ]
    bom = Bom(components=parts)
    bom.metadata.component = model
    bom.metadata.tools.components.update(tools)
    bom.register_dependency(model, parts)
    content: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library dates and numbers each document anew; a release's is known by what it is of.
    content["metadata"].pop("timestamp", None)
    seed = json.dumps(
        [reference, artifact.target, sorted(f"{k}:{v.sha256}" for k, v in files.items())]
    )
    content["serialNumber"] = uuid.uuid5(_NAMESPACE, file_entry(seed.encode()).sha256).urn
    content["metadata"]["component"]["modelCard"] = _model_card(artifact, facts)
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def _model_card(artifact: Artifact, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model card: CycloneDX 1.6, `modelCard`."""
    metric = artifact.metric.get("name", "score")
    measured = [
        {"type": metric, "value": f"{score:.6g}", "slice": f"test split, {of}"}
        for of, score in sorted(artifact.scores.items())
    ]
    measured += [_figure(name, figure) for name, figure in sorted(facts.get("figures", {}).items())]
    card: dict[str, Any] = {
        "modelParameters": {
            "inputs": [{"format": _format(spec)} for spec in artifact.inputs],
            "outputs": [{"format": _format(spec)} for spec in artifact.outputs],
        },
        "considerations": {
            "technicalLimitations": [
                "Scores are those of the data that the task brought: on other data they may be "
                "others.",
                "A figure that is modelled lies in its band; it was not measured on a device.",
            ]
        },
    }
    if measured:
        card["quantitativeAnalysis"] = {"performanceMetrics": measured}
    return card


def _figure(name: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "type": f"{name} ({figure['how']})",
        "value": f"{figure['value']:.6g} {figure['unit']}",
    }
    if figure["low"] != figure["high"]:
        told["confidenceInterval"] = {
            "lowerBound": f"{figure['low']:.6g}",
            "upperBound": f"{figure['high']:.6g}",
        }
    return told


def _format(spec: IoSpec) -> str:
    return f"{spec.name}: {spec.dtype} {list(spec.shape)}"
