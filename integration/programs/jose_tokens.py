"""Makes keys and tokens by jwcrypto, good ones and attacks.

Usage: jose_tokens.py DIRECTORY PORT. The keys are written to DIRECTORY, the good tokens lead to PORT on 127.0.0.1. Each line of
the output is a key's file, the name of a token, what it is to be answered with and the token itself, with tabs between them: the
answer is 101, or why it is refused, as the log tells.
"""

import base64
import datetime
import hashlib
import hmac
import itertools
import json
import os
import sys
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jwcrypto import jwe, jwk, jws

DIRECTORY, PORT = sys.argv[1], int(sys.argv[2])
NOW = time.time()
CLAIMS = {"host": "127.0.0.1", "port": PORT}

# What the log says.
NO_TOKEN = "it is no signed or encrypted token"
HEADER = "its header is no JSON object"
CRITICAL = "its header has 'crit'"
COMPRESSED = "it is compressed"
UNENCODED = "its payload is not encoded"
OTHER_KEY = "it names another key"
ALGORITHM = "its algorithm is not one for this key"
CONTENT = "its content is encrypted in a way that is not known"
PUBLIC_KEY = "it is encrypted, and the key is only a public one"
SIGNATURE = "its signature is wrong"
ENCRYPTION = "it cannot be decrypted with this key"
UNSIGNED = "it is encrypted with a public key only, and not signed"
DEEP = "it has more than two layers"
BAD_CLAIMS = "its claims are no JSON object"
NOT_YET = "it is not good yet"
EXPIRED = "it has expired"
BAD_PORT = "its port is not from 1 to 65535"

numbers = itertools.count(1)


def show(key, name, answer, token):
    print(key, name, answer, token, sep="\t")


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def write(name, data):
    with open(os.path.join(DIRECTORY, name), "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return name


def claims(**more):
    # No two tokens are the same, so that none can be taken for another one.
    return json.dumps({**CLAIMS, "jti": str(next(numbers)), **more})


def sign(key, alg, payload=None, **header):
    token = jws.JWS((payload or claims()).encode())
    token.allowed_algs = [alg]
    token.add_signature(key, alg, json.dumps({"alg": alg, **header}))
    return token.serialize(compact=True)


def encrypt(key, alg, enc, payload, **header):
    header = {"alg": alg, "enc": enc, **header}
    allowed = jwe.default_allowed_algs + ["RSA1_5"]
    return jwe.JWE(payload, json.dumps(header), recipient=key, algs=allowed).serialize(compact=True)


def by_mac(secret, payload=None, header=b'{"alg":"HS256"}'):
    """A token by HMAC, whatever its header says."""
    payload = claims() if payload is None else payload
    payload = payload if isinstance(payload, bytes) else payload.encode()
    signed = encode(header) + "." + encode(payload)
    return signed + "." + encode(hmac.digest(secret, signed.encode(), hashlib.sha256))


def unsigned(name="none"):
    header = json.dumps({"alg": name}).encode()
    return f"{encode(header)}.{encode(claims().encode())}."


def changed(token, part, change):
    """A token with one of its parts changed, as bytes."""
    parts = token.split(".")
    parts[part] = encode(change(decode(parts[part])))
    return ".".join(parts)


CONTENTS = {
    "A128GCM": 16,
    "A192GCM": 24,
    "A256GCM": 32,
    "A128CBC-HS256": 32,
    "A192CBC-HS384": 48,
    "A256CBC-HS512": 64,
}


def secrets():
    """Secrets of each length: as the original takes them, base64url."""
    macs = {32: ["HS256"], 48: ["HS256", "HS384"], 64: ["HS256", "HS384", "HS512"]}
    for length in 16, 24, 32, 48, 64:
        text = encode(os.urandom(length))
        key = jwk.JWK(kty="oct", k=text)
        file = write(f"secret-{length}", text)
        for alg in macs.get(length, []):
            show(file, alg, 101, sign(key, alg))
            show(
                file,
                f"{alg} changed",
                SIGNATURE,
                changed(sign(key, alg), 2, lambda mac: mac[:-1] + bytes([mac[-1] ^ 1])),
            )
        for enc in [enc for enc, needed in CONTENTS.items() if needed == length]:
            show(file, f"dir {enc}", 101, encrypt(key, "dir", enc, claims()))
            if length in macs:
                show(file, f"dir {enc} signed", 101, encrypt(key, "dir", enc, sign(key, macs[length][-1])))
        if length in (16, 32):
            for enc in CONTENTS:
                show(file, f"A{length * 8}KW {enc}", 101, encrypt(key, f"A{length * 8}KW", enc, claims()))
        if length == 24:
            show(file, "A192KW", ALGORITHM, encrypt(key, "A192KW", "A128GCM", claims()))
    # The same with the end of a line; and a text that is meant as it is, as other programs take it.
    text = encode(os.urandom(32))
    key = jwk.JWK(kty="oct", k=text)
    file = write("secret-line", text + "\n")
    show(file, "without the end of the line", 101, sign(key, "HS256"))
    show(file, "with it", 101, by_mac(text.encode() + b"\n"))
    show(file, "as text", 101, by_mac(text.encode()))
    show(file, "by nothing", SIGNATURE, by_mac(b""))
    show(file, "by a part of it", SIGNATURE, by_mac(text[:-1].encode()))
    text = "correct horse battery staple correct horse battery staple again"
    file = write("secret-words", text)
    show(file, "as text", 101, by_mac(text.encode()))
    show(file, "as the original reads it", 101, sign(jwk.JWK(kty="oct", k=text), "HS256"))


def attacks():
    """Everything that does not depend on the kind of the key."""
    text = encode(os.urandom(32))
    secret = decode(text)
    key = jwk.JWK(kty="oct", k=text)
    file = write("secret", text)

    def say(name, answer, token):
        show(file, name, answer, token)

    for name in "none", "None", "NONE", "nOnE", "none ", "", "HS257", "hs256":
        header = json.dumps({"alg": name}).encode()
        say(f"alg {name!r}", ALGORITHM, unsigned(name))
        say(f"alg {name!r} signed", ALGORITHM, by_mac(secret, header=header))
    for other in "RS256", "PS256", "ES256", "EdDSA", "dir", "PBES2-HS256+A128KW":
        say(f"alg {other}", ALGORITHM, by_mac(secret, header=json.dumps({"alg": other}).encode()))
    for alg in "A256GCMKW", "PBES2-HS256+A128KW", "RSA-OAEP", "RSA1_5", "ECDH-ES", "A128KW+", "none":
        header = json.dumps({"alg": alg, "enc": "A256GCM"}).encode()
        parts = encrypt(key, "dir", "A256GCM", claims()).split(".")
        say(f"alg {alg} encrypted", ALGORITHM, ".".join([encode(header), *parts[1:]]))
    for header, answer in [
        (b"", HEADER),
        (b"{", HEADER),
        (b"null", HEADER),
        (b"[]", HEADER),
        (b"{}", HEADER),
        (b'{"alg":"HS256"', HEADER),
        (b'{"alg":"HS256"}}', HEADER),
        (b'{"alg":"HS256","x":"\xff"}', HEADER),
        (b'{"alg":"\\ud800"}', HEADER),
        (b'{"alg":1}', HEADER),
        (b'{"alg":"none","alg":"HS256"}', HEADER),
        (b'{"alg":"HS256","crit":["exp"],"exp":1}', CRITICAL),
        (b'{"alg":"HS256","crit":["b64"],"b64":false}', CRITICAL),
        (b'{"alg":"HS256","b64":false}', UNENCODED),
        (b'{"alg":"HS256","zip":"DEF"}', COMPRESSED),
        (b'{"alg":"HS256","x":' + b"[" * 1000 + b"]" * 1000 + b"}", 101),
        (b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}", HEADER),
    ]:
        say(f"header {header[:40]!r}", answer, by_mac(secret, header=header))
    for header in [
        b'{"typ":"JWT","alg":"HS256","kid":"../../../dev/null"}',
        b'{"alg":"HS256","jku":"http://127.0.0.1:1/","x5u":"http://127.0.0.1:1/"}',
        b'{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}',
    ]:
        say(f"header {header!r}", 101, by_mac(secret, header=header))
        say(f"header {header!r} by its own key", SIGNATURE, by_mac(bytes(3), header=header))
    say("zip", COMPRESSED, encrypt(key, "dir", "A256GCM", claims(), zip="DEF"))
    say("enc", CONTENT, by_mac(secret, header=b'{"alg":"dir","enc":"A256CBC"}') + ".AAAA.AAAA")

    good, other = sign(key, "HS256"), sign(key, "HS256")
    for name, token in [
        ("nothing", "."),
        ("a word", "token"),
        ("no signature", good.rpartition(".")[0]),
        ("one part more", good + "." + good.split(".")[1]),
        ("four dots more", good + "....."),
        ("padding", by_mac(secret, b"xx") + "="),
        ("cut within a byte", good[:-2]),
        ("not in its only form", good[:-1] + chr(ord(good[-1]) + 1)),
        ("blanks", good + "%20"),
        ("the end of a line", good + "%0A"),
        ("JSON", "%7B%22payload%22:%22e30%22%7D"),
        ("not base64url", "%E2%82%AC.%E2%82%AC.%E2%82%AC"),
    ]:
        say(name, NO_TOKEN, token)
    say("four dots", HEADER, "....")
    parts, others = good.split("."), other.split(".")
    say("another payload", SIGNATURE, ".".join([parts[0], others[1], parts[2]]))
    say("swapped parts", HEADER, ".".join([parts[1], parts[0], parts[2]]))
    say("an empty signature", SIGNATURE, ".".join([*parts[:2], ""]))
    say("half a signature", SIGNATURE, changed(good, 2, lambda mac: mac[:16]))
    say("a longer signature", SIGNATURE, changed(good, 2, lambda mac: mac + bytes(1)))

    for payload in [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"5900",
        b'{"host":"127.0.0.1"}',
        b'{"port":5900}',
        b'{"host":"127.0.0.1","port":5900',
        b'{"host":"\xff","port":5900}',
        b'{"host":"127.0.0.1","port":5900,"x":"\xff"}',
        b'{"host":1,"port":5900}',
        b'{"host":"127.0.0.1","port":true}',
        b'{"host":"127.0.0.1","port":5900.0}',
        b'{"host":"127.0.0.1","port":-1}',
        b'{"host":"127.0.0.1","port":1e999}',
        b'{"host":"127.0.0.1","port":5900,"port":5901}',
    ]:
        say(f"claims {payload!r}", BAD_CLAIMS, by_mac(secret, payload))
    for port in 0, 65536, 2**64 - 1, "0", "65536", "-1", "+1", "5900.0", "0x50", "":
        say(f"port {port!r}", BAD_PORT, by_mac(secret, claims(port=port)))
    say("port in a text", 101, by_mac(secret, claims(port=str(PORT))))
    for more, answer in [
        ({"nbf": NOW - 5, "exp": NOW + 600}, 101),
        ({"nbf": int(NOW) - 1, "exp": int(NOW) + 600, "iat": NOW + 600}, 101),
        ({"exp": 1e300}, 101),
        ({"nbf": NOW + 600}, NOT_YET),
        ({"nbf": NOW + 600.5}, NOT_YET),
        ({"exp": NOW}, EXPIRED),
        ({"exp": NOW - 0.5}, EXPIRED),
        ({"exp": 0}, EXPIRED),
        ({"exp": -1}, EXPIRED),
        ({"exp": None}, BAD_CLAIMS),
        ({"exp": str(NOW + 600)}, BAD_CLAIMS),
        ({"nbf": True}, BAD_CLAIMS),
    ]:
        say(f"time {more}", answer, by_mac(secret, claims(**more)))

    for enc in "A256GCM", "A128CBC-HS256":
        good = encrypt(key, "dir", enc, claims())
        inner = sign(key, "HS256")
        for name, change in [
            ("cut", lambda tag: tag[:-1]),
            ("cut to 12", lambda tag: tag[:12]),
            ("cut to 4", lambda tag: tag[:4]),
            ("empty", lambda tag: b""),
            ("longer", lambda tag: tag + bytes(16)),
            ("of zeros", lambda tag: bytes(len(tag))),
            ("with swapped halves", lambda tag: tag[8:] + tag[:8]),
            ("with a changed bit", lambda tag: tag[:-1] + bytes([tag[-1] ^ 1])),
        ]:
            say(f"{enc}: tag {name}", ENCRYPTION, changed(good, 4, change))
        for name, part, change in [
            ("ciphertext", 3, lambda data: bytes([data[0] ^ 1]) + data[1:]),
            ("empty ciphertext", 3, lambda data: b""),
            ("cut ciphertext", 3, lambda data: data[:-16]),
            ("vector", 2, lambda data: bytes([data[0] ^ 1]) + data[1:]),
            ("cut vector", 2, lambda data: data[:-1]),
            ("empty vector", 2, lambda data: b""),
            ("key", 1, lambda data: b"x"),
            ("header", 0, lambda data: data.replace(b"{", b"{ ")),
        ]:
            say(f"{enc}: {name} changed", ENCRYPTION, changed(good, part, change))
        twice = encrypt(key, "dir", enc, good)
        say(f"{enc}: twice", 101, twice)
        say(f"{enc}: twice and signed", DEEP, encrypt(key, "dir", enc, encrypt(key, "dir", enc, inner)))
        say(f"{enc}: three times", DEEP, encrypt(key, "dir", enc, twice))
        say(f"{enc}: with alg none inside", ALGORITHM, encrypt(key, "dir", enc, unsigned()))
        say(f"{enc}: signed by another key inside", SIGNATURE, encrypt(key, "dir", enc, by_mac(b"x" * 32)))
        say(f"{enc}: expired", EXPIRED, encrypt(key, "dir", enc, claims(exp=NOW - 1)))
        say(f"{enc}: nothing inside", NO_TOKEN, encrypt(key, "dir", enc, b""))
        say(f"{enc}: not UTF-8 inside", NO_TOKEN, encrypt(key, "dir", enc, b"\xff"))
        say(f"{enc}: signed, then encrypted in a signed one", BAD_CLAIMS, by_mac(secret, good))
    say("another key's", ENCRYPTION, encrypt(jwk.JWK.generate(kty="oct", size=256), "dir", "A256GCM", claims()))
    say(
        "a key that is too short",
        ENCRYPTION,
        encrypt(jwk.JWK.generate(kty="oct", size=128), "A128KW", "A256GCM", claims()),
    )

    say("60000 characters", 101, by_mac(secret, claims(x="x" * 44000)))
    say("60000 dots", NO_TOKEN, "." * 60000)
    say("60000 brackets", BAD_CLAIMS, by_mac(secret, "[" * 44000))

    file = write("named", key.export(as_dict=False).replace("{", '{"kid":"ours",', 1))
    show(file, "the key's name", 101, sign(key, "HS256", kid="ours"))
    show(file, "no name", 101, sign(key, "HS256"))
    show(file, "another name", OTHER_KEY, sign(key, "HS256", kid="theirs"))
    show(file, "a name in another case", OTHER_KEY, sign(key, "HS256", kid="OURS"))
    show(file, "another name, encrypted", OTHER_KEY, encrypt(key, "dir", "A256GCM", claims(), kid="theirs"))


def forms(name, key):
    """The forms of a private key and its public one, in files."""
    private = key.get_op_key("sign") if key["kty"] != "OKP" else key._get_private_key()
    public = private.public_key()
    pem, raw = serialization.Encoding.PEM, serialization.NoEncryption()
    spki = public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    pkcs8 = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, raw)
    files = [write(name, pkcs8), write(f"{name}-public", spki)]
    write(f"{name}.json", key.export_private())
    return files, pkcs8, spki


# Keys that nobody has given to the server. Those of the symmetric kind are none.
STRANGERS = {
    "none": None,
    "HS256": None,
    "RS256": jwk.JWK.generate(kty="RSA", size=2048),
    "ES256": jwk.JWK.generate(kty="EC", crv="P-256"),
    "ES384": jwk.JWK.generate(kty="EC", crv="P-384"),
    "ES512": jwk.JWK.generate(kty="EC", crv="P-521"),
    "ES256K": jwk.JWK.generate(kty="EC", crv="secp256k1"),
    "EdDSA": jwk.JWK.generate(kty="OKP", crv="Ed25519"),
}
STRANGERS["PS256"] = STRANGERS["RS256"]


def confusion(file, algs, texts):
    """Tokens by algorithms that are not for this key, and by a MAC with a text that everybody may know."""
    for alg, key in STRANGERS.items():
        answer = SIGNATURE if alg in algs else ALGORITHM
        if key:
            show(file, f"{alg} by another key", answer, sign(key, alg))
        else:
            show(file, alg, ALGORITHM, by_mac(b"", header=json.dumps({"alg": alg}).encode()))
    for text in texts:
        for variant in text, text.rstrip(b"\n"), text.replace(b"\n", b"\r\n"), b"".join(text.split(b"\n")[1:-2]):
            show(file, "HS256 by the key's file", ALGORITHM, by_mac(variant))
            header = json.dumps({"alg": algs[0]}).encode()
            show(file, f"a MAC called {algs[0]}", SIGNATURE, by_mac(variant, header=header))


def rsa_keys():
    key = jwk.JWK.generate(kty="RSA", size=2048)
    (private, public), pkcs8, spki = forms("rsa", key)
    algs = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    for file in private, public, "rsa.json":
        for alg in algs:
            show(file, alg, 101, sign(key, alg))
    confusion(private, algs, [pkcs8, spki])
    confusion(public, algs, [spki])
    signature = sign(key, "RS256").split(".")
    show(public, "RS256 as PS256", SIGNATURE, ".".join([encode(b'{"alg":"PS256"}'), *signature[1:]]))
    show(public, "a signature of 0", SIGNATURE, changed(sign(key, "RS256"), 2, lambda data: bytes(len(data))))
    show(
        public, "a signature of 1", SIGNATURE, changed(sign(key, "RS256"), 2, lambda data: bytes(len(data) - 1) + b"\1")
    )
    for alg in "RSA-OAEP", "RSA-OAEP-256":
        for enc in CONTENTS:
            show(private, f"{alg} {enc}", 101, encrypt(key, alg, enc, sign(key, "RS256")))
        show("rsa.json", alg, 101, encrypt(key, alg, "A256GCM", sign(key, "RS256")))
        show(private, f"{alg} without signature", UNSIGNED, encrypt(key, alg, "A256GCM", claims()))
        show(private, f"{alg} with a blank, without signature", UNSIGNED, encrypt(key, alg, "A256GCM", " " + claims()))
        show(
            private,
            f"{alg} twice without signature",
            UNSIGNED,
            encrypt(key, alg, "A256GCM", encrypt(key, alg, "A256GCM", claims())),
        )
        show(private, f"{alg} with a MAC by the public key", ALGORITHM, encrypt(key, alg, "A256GCM", by_mac(spki)))
        show(private, f"{alg} with alg none", ALGORITHM, encrypt(key, alg, "A256GCM", unsigned()))
        show(private, f"{alg} expired", EXPIRED, encrypt(key, alg, "A256GCM", sign(key, "PS256", claims(exp=NOW - 1))))
        show(
            private,
            f"{alg} for another key",
            ENCRYPTION,
            encrypt(STRANGERS["RS256"], alg, "A256GCM", sign(key, "RS256")),
        )
        show(
            private,
            f"{alg} with a changed key",
            ENCRYPTION,
            changed(encrypt(key, alg, "A256GCM", claims()), 1, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        )
        show(
            private,
            f"{alg} with a cut key",
            ENCRYPTION,
            changed(encrypt(key, alg, "A256GCM", claims()), 1, lambda data: data[:-1]),
        )
        show(
            private,
            f"{alg} without a key",
            ENCRYPTION,
            changed(encrypt(key, alg, "A256GCM", claims()), 1, lambda data: b""),
        )
        show(public, f"{alg} by the public key", PUBLIC_KEY, encrypt(key, alg, "A256GCM", sign(key, "RS256")))
    show(private, "RSA1_5", ALGORITHM, encrypt(key, "RSA1_5", "A256GCM", sign(key, "RS256")))
    show(private, "dir", ALGORITHM, encrypt(jwk.JWK.generate(kty="oct", size=256), "dir", "A256GCM", claims()))
    other = serialization.load_pem_public_key(spki)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    for length in 16, 31, 33, 190:
        header = encode(b'{"alg":"RSA-OAEP-256","enc":"A256GCM"}')
        wrapped = encode(other.encrypt(bytes(length), oaep))
        content = AESGCM(bytes(32)).encrypt(bytes(12), claims().encode(), header.encode())
        token = ".".join([header, wrapped, encode(bytes(12)), encode(content[:-16]), encode(content[-16:])])
        show(private, f"a content key of {length} bytes", ENCRYPTION, token)


def curve_keys():
    for curve, alg in ("P-256", "ES256"), ("P-384", "ES384"), ("P-521", "ES512"):
        key = jwk.JWK.generate(kty="EC", crv=curve)
        (private, public), pkcs8, spki = forms(alg.lower(), key)
        for file in private, public, f"{private}.json":
            show(file, alg, 101, sign(key, alg))
        confusion(private, [alg], [pkcs8, spki])
        confusion(public, [alg], [spki])
        for name, change in [
            ("of zeros", lambda data: bytes(len(data))),
            ("of ones", lambda data: (bytes(len(data) // 2 - 1) + b"\1") * 2),
            ("longer", lambda data: data + bytes(1)),
            ("empty", lambda data: b""),
            ("in DER", lambda data: b"\x30\x06\x02\x01\x01\x02\x01\x01"),
        ]:
            show(public, f"a signature {name}", SIGNATURE, changed(sign(key, alg), 2, change))
        for agreement in "ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A256KW":
            for enc in CONTENTS:
                show(private, f"{agreement} {enc}", 101, encrypt(key, agreement, enc, sign(key, alg)))
            show(
                f"{private}.json",
                agreement,
                101,
                encrypt(key, agreement, "A256GCM", sign(key, alg), apu="QQ", apv="Qm9i"),
            )
            show(private, f"{agreement} without signature", UNSIGNED, encrypt(key, agreement, "A256GCM", claims()))
            show(
                public, f"{agreement} by the public key", PUBLIC_KEY, encrypt(key, agreement, "A256GCM", sign(key, alg))
            )
            good = encrypt(key, agreement, "A128GCM", sign(key, alg))
            for name, change in epks(curve):
                show(private, f"{agreement} with {name}", ENCRYPTION, changed(good, 0, change))
        show(private, "ECDH-ES+A192KW", ALGORITHM, encrypt(key, "ECDH-ES+A192KW", "A192GCM", sign(key, alg)))


def epks(curve):
    """Public keys in headers that are no points of the curve."""

    def change(**members):
        def replace(header):
            header = json.loads(header)
            header["epk"].update(members)
            return json.dumps(header).encode()

        return replace

    def without(header):
        header = json.loads(header)
        del header["epk"]
        return json.dumps(header).encode()

    length = {"P-256": 32, "P-384": 48, "P-521": 66}[curve]
    other = "P-384" if curve != "P-384" else "P-256"
    theirs = {
        name: value
        for name, value in jwk.JWK.generate(kty="EC", crv=other).export_public(as_dict=True).items()
        if name != "kid"
    }
    return [
        ("a point that is not on the curve", change(y=encode(bytes(length - 1) + b"\1"))),
        ("the point 0, 0", change(x=encode(bytes(length)), y=encode(bytes(length)))),
        ("a point that is too large", change(x=encode(b"\xff" * length))),
        ("a short coordinate", change(x=encode(b"\1"))),
        ("no coordinate", change(x="")),
        ("the point of another curve", change(**theirs)),
        ("the point of another curve by our name", change(**{**theirs, "crv": curve})),
        ("the name of another curve", change(crv=other)),
        ("a key of another kind", change(kty="oct")),
        ("no key", without),
    ]


def edwards_keys():
    key = jwk.JWK.generate(kty="OKP", crv="Ed25519")
    (private, public), pkcs8, spki = forms("ed25519", key)
    for file in private, public, "ed25519.json":
        show(file, "EdDSA", 101, sign(key, "EdDSA"))
        show(
            file,
            "EdDSA changed",
            SIGNATURE,
            changed(sign(key, "EdDSA"), 2, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        )
        show(file, "EdDSA of zeros", SIGNATURE, changed(sign(key, "EdDSA"), 2, lambda data: bytes(64)))
    confusion(private, ["EdDSA"], [pkcs8, spki])
    confusion(public, ["EdDSA"], [spki])


def certificate():
    """A certificate instead of a key."""
    private = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1)
    builder = builder.not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(datetime.datetime(2021, 1, 1))
    pem = builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    file = write("certificate", pem)
    key = jwk.JWK.from_pyca(private)
    show(file, "PS256", 101, sign(key, "PS256"))
    confusion(file, ["RS256", "PS256"], [pem])


secrets()
attacks()
rsa_keys()
curve_keys()
edwards_keys()
certificate()
