"""What token plugins build on, for those that do so where the original is not installed."""

import json
import os
import stat


class BasePlugin:
    """Knows no token."""

    def __init__(self, src):
        self.source = src

    def lookup(self, token):
        return None


class ReadOnlyTokenFile(BasePlugin):
    """Lines `token: host:port` of a file, or of all files of a directory, read once."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._targets = None

    def _load_targets(self):
        targets = {}
        for path in _files(self.source):
            with open(path) as lines:
                for number, line in enumerate(lines, 1):
                    line = line.strip()
                    if not line or line.startswith("#"):
                        continue
                    token, separator, target = line.partition(": ")
                    host, colon, port = target.strip().rpartition(":")
                    if separator and colon:
                        targets[token] = [host, port]
                    else:
                        print("%s, line %d: it is not token: host:port" % (path, number))
        self._targets = targets

    def lookup(self, token):
        if self._targets is None:
            self._load_targets()
        return self._targets.get(token)


class TokenFile(ReadOnlyTokenFile):
    """The same, read again for each token."""

    def lookup(self, token):
        self._load_targets()
        return super().lookup(token)


class TokenFileName(BasePlugin):
    """A directory of files, of which each is named like its token and holds `host:port`."""

    def __init__(self, src):
        super().__init__(src)
        if not os.path.isdir(src):
            raise ValueError("it is not a directory")

    def lookup(self, token):
        path = os.path.join(self.source, os.path.basename(token))
        if "\0" in token or not os.path.isfile(path):
            return None
        with open(path) as file:
            return _target(file.read())


class BaseTokenAPI(BasePlugin):
    """An HTTP service whose URL has `%s` in the token's place, and whose answer is `host:port`."""

    def process_result(self, resp):
        return _target(resp.text)

    def lookup(self, token):
        from urllib.parse import quote

        response = _get(self.source % quote(token, safe=""))
        return self.process_result(response) if response.ok else None


class JSONTokenApi(BaseTokenAPI):
    """The same, with a JSON object for an answer."""

    def process_result(self, resp):
        answer = resp.json()
        return answer["host"], answer["port"]


class JWTTokenApi(BasePlugin):
    """Signed tokens, which may be encrypted as well; the source is a file with the key."""

    def lookup(self, token):
        try:
            from jwcrypto import jwk, jwt
        except ImportError:
            raise ImportError("JWTTokenApi needs the package jwcrypto for a class that builds on it")
        with open(self.source, "rb") as file:
            text = file.read()
        try:
            key = jwk.JWK.from_pem(text)
        except ValueError:
            from base64 import urlsafe_b64encode

            secret = urlsafe_b64encode(text.strip()).rstrip(b"=").decode()
            key = jwk.JWK(kty="oct", k=secret)
        opened = jwt.JWT(key=key, jwt=token)
        claims = opened.claims
        # Whoever has the public key can encrypt with it, so that alone proves nothing.
        if "enc" in json.loads(opened.header) and not (key["kty"] == "oct" and claims.startswith("{")):
            claims = jwt.JWT(key=key, jwt=claims, expected_type="JWS").claims
        claims = json.loads(claims)
        return claims["host"], claims["port"]


class TokenRedis(BasePlugin):
    """Keys of a Redis server: `host[:port[:db[:password[:namespace]]]]`; a value is `host:port`, or that as the host of an object."""

    def __init__(self, src):
        super().__init__(src)
        import shlex

        lexer = shlex.shlex(src, posix=True)
        lexer.whitespace = ":"
        lexer.whitespace_split = True
        lexer.commenters = ""
        # Parts may be empty, which a lexer would pass over.
        parts = list(lexer) if "::" not in src else src.split(":")
        server, port, database, password, namespace = (parts + [""] * 5)[:5]
        self._server = server
        self._port = int(port or 6379)
        self._db = int(database or 0)
        self._password = password or None
        self._namespace = namespace + ":" if namespace else ""

    def lookup(self, token):
        try:
            import redis
        except ImportError:
            raise ImportError("TokenRedis needs the package redis for a class that builds on it")
        client = redis.Redis(host=self._server, port=self._port, db=self._db, password=self._password)
        value = client.get(self._namespace + token)
        if value is None:
            return None
        text = value.decode()
        return _target(json.loads(text)["host"] if text.lstrip().startswith("{") else text)


class UnixDomainSocketDirectory(BasePlugin):
    """A directory of sockets, of which each is named like its token."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._dir_path = os.path.abspath(self.source)

    def lookup(self, token):
        path = os.path.realpath(os.path.join(self._dir_path, os.path.basename(token)))
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except (OSError, ValueError):
            return None
        return ("unix_socket", path) if is_socket else None


def _files(source):
    if not os.path.isdir(source):
        return [source]
    paths = [os.path.join(source, name) for name in sorted(os.listdir(source))]
    return [path for path in paths if os.path.isfile(path)]


def _target(text):
    host, _, port = text.strip().rpartition(":")
    return [host, port]


class _Response:
    """An answer of an HTTP service, with the names that the package requests has for its parts."""

    def __init__(self, answer):
        self.status_code = answer.getcode()
        self.reason = answer.reason
        self.url = answer.geturl()
        self.headers = answer.headers
        self.encoding = answer.headers.get_content_charset() or "utf-8"
        self.content = answer.read(1 << 20)
        self.ok = self.status_code < 400

    @property
    def text(self):
        return self.content.decode(self.encoding, "replace")

    def json(self):
        return json.loads(self.content.decode("utf-8"))

    def raise_for_status(self):
        if not self.ok:
            raise OSError("the service answered %s %s" % (self.status_code, self.reason))


def _get(url):
    from base64 import b64encode
    from urllib.error import HTTPError
    from urllib.parse import unquote, urlsplit
    from urllib.request import Request, urlopen

    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = Request(parts._replace(netloc=host).geturl())
    if at:
        credentials = b64encode(unquote(user).encode()).decode()
        request.add_header("Authorization", "Basic " + credentials)
    try:
        answer = urlopen(request, timeout=30)
    except HTTPError as error:
        answer = error
    with answer:
        return _Response(answer)
