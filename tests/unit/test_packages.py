"""Releases for other updaters. Oracles: rauc, swupdate, openssl, pycose, a TLV parser."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess

import numpy as np
import pytest

from edgeshrink.artifact import Artifact, IoSpec, file_entry
from edgeshrink.cli.main import main
from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.fleet.packages.cose import sign_manifest
from edgeshrink.fleet.packages.keys import PASSPHRASE_VARIABLE, read_key
from edgeshrink.fleet.packages.mcuboot import Slot, sign_image
from edgeshrink.fleet.packages.rauc import manifest, raucb
from edgeshrink.fleet.packages.swupdate import Bundle, cpio, describe, swu

pytest.importorskip("imgtool", reason="needs the extra [pack]")

FACTS = {"name": "keywords", "counter": 7, "sha256": bytes(range(32)), "io": [{"shape": [1, 49]}]}


def openssl(*words: object) -> bytes:
    return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Keys and a certificate as a person makes them, with openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("keys")
    curve = "ec_paramgen_curve:P-256"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", folder / "p256.pem")
    openssl("genpkey", "-algorithm", "ED25519", "-out", folder / "ed25519.pem")
    openssl("ec", "-in", folder / "p256.pem", "-aes256", "-passout", "pass:sesame",
            "-out", folder / "locked.pem")  # fmt: skip
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 3650, "-subj", "/CN=maker",
            "-addext", "extendedKeyUsage=emailProtection",
            "-addext", "keyUsage=critical,digitalSignature",
            "-keyout", folder / "rsa.pem", "-out", folder / "rsa.crt")  # fmt: skip
    return folder


def bundle(archive: bytes = b"x" * 5000) -> Bundle:
    return Bundle(
        name="keywords", version="1.3.0", compatible="rpi4", archive_name="artifact.tar",
        archive=archive, folder="/var/lib/models/keywords",
    )  # fmt: skip


def tar_of(text: bytes) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("model.tflite")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


# ---- MCUboot


def tlvs(image: bytes) -> tuple[dict[str, int], bytes, dict[int, bytes], dict[int, bytes]]:
    """Return header, signed part, protected and other TLVs (MCUboot, docs/design.md)."""
    magic, _, n_header, n_protected, n_image, _, major, minor, patch, _ = struct.unpack_from(
        "<IIHHIIBBHI", image
    )
    header = {"magic": magic, "header": n_header, "major": major, "minor": minor, "patch": patch}
    place, found = n_header + n_image, []
    for expected in (0x6908, 0x6907):
        kind, n_bytes = struct.unpack_from("<HH", image, place)
        assert kind == expected
        entries, at = {}, place + 4
        while at < place + n_bytes:
            tag, length = struct.unpack_from("<HH", image, at)
            entries[tag] = image[at + 4 : at + 4 + length]
            at += 4 + length
        found.append(entries)
        place += n_bytes
    assert place == len(image)
    return header, image[: n_header + n_image + n_protected], found[0], found[1]


@pytest.mark.parametrize("name", ["p256.pem", "ed25519.pem", "rsa.pem"])
def test_an_image_is_signed_as_the_bootloader_checks_it(made, name):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    binary = np.random.default_rng(0).bytes(10_001)
    key = read_key(made / name)
    signed = sign_image(
        binary, key, version="1.3.7-rc1", security_counter=9, slot=Slot(), name="app.bin"
    )
    header, covered, protected, others = tlvs(signed.data)
    assert header == {"magic": 0x96F3B83D, "header": 0x200, "major": 1, "minor": 3, "patch": 7}
    assert signed.data[0x200 : 0x200 + len(binary)] == binary
    assert protected == {0x50: struct.pack("<I", 9)}
    digest = hashlib.sha256(covered).digest()
    assert others[0x10] == digest == bytes.fromhex(signed.digest)
    public = key.private.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(others[0x22], covered, ec.ECDSA(hashes.SHA256()))
    elif isinstance(public, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        public.verify(others[0x20], covered, pss, hashes.SHA256())
    else:
        public.verify(others[0x24], digest)


def test_an_encrypted_key_takes_its_passphrase_from_the_environment(made, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "sesame")
    key = read_key(made / "locked.pem")
    sign_image(b"code", key, version="1.0.0", security_counter=0, slot=Slot(), name="app.bin")
    assert read_key(made / "p256.pem").passphrase is None


def test_a_passphrase_that_is_missing_or_wrong_is_said(made, monkeypatch):
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=PASSPHRASE_VARIABLE):
        read_key(made / "locked.pem")
    with pytest.raises(ConfigError, match="passphrase is another"):
        read_key(made / "locked.pem", "mellon")


@pytest.mark.parametrize(
    ("binary", "match"),
    [(b"", "empty"), (b"\x7fELF....", "ELF"), (b":10010000214601360121470136007EFE09D2190140\n",
     "Intel HEX"), (bytes(0x60000), "slot")],
)  # fmt: skip
def test_what_is_no_image_is_refused(made, binary, match):
    key = read_key(made / "p256.pem")
    with pytest.raises(ConfigError, match=match):
        sign_image(binary, key, version="1.0.0", security_counter=0, slot=Slot(), name="a.bin")


@pytest.mark.parametrize(
    "sizes", [{"header_bytes": 16}, {"slot_bytes": 0x200}, {"align": 3}, {"slot_bytes": -1}]
)
def test_a_slot_that_makes_no_sense_is_refused(sizes):
    with pytest.raises(ConfigError, match="--"):
        Slot(**sizes)


@pytest.mark.parametrize("version", ["1.3", "x", "1.3.0.0", "-1.0.0"])
def test_a_version_that_is_not_semantic_is_refused(made, version):
    with pytest.raises(ConfigError, match="--version"):
        sign_image(b"code", read_key(made / "p256.pem"), version=version, security_counter=0,
                   slot=Slot(), name="a.bin")  # fmt: skip


def test_the_same_key_and_code_give_the_same_digest(made):
    key = read_key(made / "p256.pem")
    a, b = (
        sign_image(b"code", key, version="1.0.0", security_counter=1, slot=Slot(), name="a.bin")
        for _ in range(2)
    )
    assert a.digest == b.digest


# ---- COSE


@pytest.mark.parametrize("name", ["p256.pem", "ed25519.pem"])
def test_another_library_verifies_the_manifest(made, name):
    import cbor2
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from pycose.keys import EC2Key, OKPKey
    from pycose.keys.curves import P256, Ed25519
    from pycose.messages import Sign1Message

    key = read_key(made / name)
    message = Sign1Message.decode(sign_manifest(FACTS, key))
    public = key.private.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        message.key = EC2Key(crv=P256, x=point.x.to_bytes(32, "big"), y=point.y.to_bytes(32, "big"))
    else:
        message.key = OKPKey(crv=Ed25519, x=public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    assert message.verify_signature()
    assert cbor2.loads(message.payload) == FACTS
    message.payload = cbor2.dumps(FACTS | {"counter": 8}, canonical=True)
    assert not message.verify_signature()


def test_an_rsa_key_signs_no_manifest(made):
    with pytest.raises(ConfigError, match=r"rsa\.pem"):
        sign_manifest(FACTS, read_key(made / "rsa.pem"))


# ---- SWUpdate


def test_cpio_reads_what_is_written(tmp_path):
    if shutil.which("cpio") is None:
        pytest.skip("needs cpio")
    members = [("a", b"12345"), ("sw-description.sig", bytes(range(256)) * 7), ("empty", b"")]
    subprocess.run(["cpio", "-i", "--quiet"], input=cpio(members), cwd=tmp_path, check=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict(members)


def test_openssl_verifies_the_description(made, tmp_path):
    from edgeshrink.fleet.packages.swupdate import sign_cms

    text, signature = tmp_path / "text", tmp_path / "signature"
    text.write_text(describe(bundle()))
    signature.write_bytes(sign_cms(text.read_bytes(), read_key(made / "rsa.pem"), made / "rsa.crt"))
    command = ["cms", "-verify", "-binary", "-inform", "DER", "-in", signature, "-content", text,
               "-CAfile", made / "rsa.crt"]  # fmt: skip
    assert openssl(*command) == text.read_bytes()


@pytest.mark.skipif(shutil.which("swupdate") is None, reason="needs swupdate (apt-get install)")
@pytest.mark.parametrize("damage", [None, "archive", "description"])
def test_swupdate_accepts_the_bundle_and_no_damaged_one(made, tmp_path, damage):
    data = swu(bundle(tar_of(b"model" * 999)), read_key(made / "rsa.pem"), made / "rsa.crt")
    if damage == "archive":
        data = data.replace(b"modelmodel", b"modelMODEL", 1)
    elif damage == "description":  # the same bytes in another order have the same cpio checksum
        data = data.replace(b'version = "1.3.0"', b'version = "1.0.3"', 1)
    (tmp_path / "x.swu").write_bytes(data)
    (tmp_path / "hwrevision").write_text("rpi4 rpi4\n")
    done = subprocess.run(
        ["swupdate", "-c", "-v", "-i", tmp_path / "x.swu", "-k", made / "rsa.crt",
         "-H", "board:rpi4"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    # Its exit code and its last lines race with one another; what it says of a file does not.
    refusals = {"archive": "HASH mismatch", "description": "ignature"}
    errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
    if damage is None:
        assert not errors
        assert "Verified OK" in done.stdout
        assert "Found installer for stream artifact.tar" in done.stdout
    else:
        assert any(refusals[damage] in line for line in errors), done.stdout


def test_a_key_that_is_not_the_certificates_is_refused(made):
    with pytest.raises(ConfigError, match="does not belong"):
        swu(bundle(), read_key(made / "p256.pem"), made / "rsa.crt")


@pytest.mark.parametrize("name", ['x";', "x\ny", "{", "ü"])
def test_a_name_can_not_break_out_of_a_description(name):
    bad = Bundle(**(vars(bundle()) | {"name": name}))
    with pytest.raises(ConfigError, match="name"):
        describe(bad)
    with pytest.raises(ConfigError, match="name"):
        manifest(bad, "models")


# ---- RAUC


@pytest.mark.skipif(shutil.which("rauc") is None, reason="needs rauc (apt-get install)")
def test_rauc_accepts_the_bundle_and_no_damaged_one(made, tmp_path):
    if shutil.which("mksquashfs") is None:
        pytest.skip("needs squashfs-tools")
    content = bundle(tar_of(np.random.default_rng(0).bytes(9999)))
    good = raucb(content, read_key(made / "rsa.pem"), made / "rsa.crt", slot="models")
    for is_good, data in ((True, good), (False, good[:-900] + b"\0" * 8 + good[-892:])):
        (tmp_path / "x.raucb").write_bytes(data)
        done = subprocess.run(
            ["rauc", "info", "--keyring", made / "rsa.crt", tmp_path / "x.raucb"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == is_good, done.stdout + done.stderr
        if is_good:
            assert "artifact.tar" in done.stdout
            assert "1.3.0" in done.stdout


def test_rauc_that_is_missing_names_the_package(made, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match="apt-get install rauc"):
        raucb(bundle(), read_key(made / "rsa.pem"), made / "rsa.crt", slot="models")


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_named(tmp_path, content):
    (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"k\.pem"):
        read_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match=r"none\.pem"):
        read_key(tmp_path / "none.pem")


# ---- the command


@pytest.fixture
def artifact(tmp_path):
    """An artifact as a build for a microcontroller leaves it, its files small."""
    figure = {"value": 15608, "unit": "B", "how": "measured", "low": 15608, "high": 15608}
    contents = {
        "model.tflite": b"model" * 99, "golden.npz": b"golden",
        "profile.json": json.dumps({"figures": {"flash_bytes": figure}}).encode(),
    }  # fmt: skip
    folder = tmp_path / "built"
    spec = IoSpec(name="x", shape=(1, 49, 10, 1), dtype="int8", scale=0.5, zero_point=-3)
    made = Artifact(
        folder=folder, name="keywords", target="rp2040", engine="c", quantization="one",
        inputs=(spec,), outputs=(spec,), structure="single",
        metric={"name": "accuracy", "direction": "maximize"}, scores={"float": 0.9, "c": 0.89},
        recipe={}, versions={"edgeshrink": "0.1.0"}, seed=0,
        files={name: file_entry(data) for name, data in contents.items()},
    )  # fmt: skip
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "artifact.json").write_text(json.dumps(made.to_json()))
    return folder


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    return end.value.code or 0, shown.out, shown.err


def test_a_microcontrollers_release_is_an_image_and_its_manifest(made, artifact, tmp_path, capsys):
    import cbor2

    (tmp_path / "app.bin").write_bytes(b"\1\2\3" * 1000)
    code, shown, _ = call(
        capsys, "pack", artifact, "--format", "mcuboot", "--image", tmp_path / "app.bin", "--key",
        made / "p256.pem", "--version", "1.3.0", "--counter", 4, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert "MCUBOOT_SIGN_EC256" in shown
    image = (tmp_path / "out" / "keywords-1.3.0-rp2040.signed.bin").read_bytes()
    message = cbor2.loads((tmp_path / "out" / "keywords-1.3.0-rp2040.cose").read_bytes())
    said = cbor2.loads(message.value[2])
    assert said["image"]["sha256"] == hashlib.sha256(image).digest()
    assert said["image"]["mcuboot_digest"] == tlvs(image)[3][0x10]
    assert (said["counter"], said["scores"]["c"]) == (4, 0.89)
    assert said["figures"]["flash_bytes"]["how"] == "measured"
    assert said["golden_sha256"] == hashlib.sha256(b"golden").digest()
    expected = {"name": "x", "shape": [1, 49, 10, 1], "dtype": "int8", "scale": 0.5}
    assert said["inputs"] == [expected | {"zero_point": -3}]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--format", "mcuboot", "--counter", "1"], "--image"),
        (["--format", "mcuboot", "--image", "none.bin"], "--counter"),
        (["--format", "mcuboot", "--image", "none.bin", "--counter", "1"], "none.bin"),
        (["--format", "mcuboot", "--cert", "c.pem"], "--cert"),
        (["--format", "swupdate"], "--cert"),
        (["--format", "swupdate", "--counter", "1"], "--counter"),
        (["--format", "mcuboot", "--image", "x", "--counter", "1", "--slot-size", "big"], "big"),
        (["--format", "rauc", "--cert", "none.crt", "--version", "1"], "--version"),
    ],
)
def test_options_that_make_no_sense_are_named(made, artifact, tmp_path, capsys, words, match):
    key = ["--key", made / "rsa.pem"]
    version = [] if "--version" in words else ["--version", "1.0.0"]
    code, _, err = call(capsys, "pack", artifact, *key, *version, *words, "--out", tmp_path / "out")
    assert code == 2
    assert match in err
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_written_and_its_settings_are_printed(made, artifact, tmp_path, capsys):
    code, shown, _ = call(
        capsys, "pack", artifact, "--format", "swupdate", "--cert", made / "rsa.crt", "--key",
        made / "rsa.pem", "--version", "1.3.0", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0
    (entry,) = json.loads(shown)["files"]
    assert entry["bytes"] == (tmp_path / "out" / "keywords-1.3.0-rp2040.swu").stat().st_size
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["keywords-1.3.0-rp2040.swu"]
