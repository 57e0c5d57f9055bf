"""What auth plugins build on, for those that do so where the original is not installed."""

import base64
import hmac


class BasePlugin:
    """Lets everybody in."""

    def __init__(self, src=None):
        self.source = src

    def authenticate(self, headers, target_host, target_port):
        pass


class AuthenticationError(Exception):
    """Somebody is not let in."""

    def __init__(self, log_msg=None, response_code=403, response_headers={}, response_msg=None):
        self.code = response_code
        self.headers = response_headers
        self.msg = response_msg
        super().__init__("%s %s" % (response_code, response_msg if log_msg is None else log_msg))


class InvalidOriginError(AuthenticationError):
    """The page that wants to connect comes from elsewhere."""

    def __init__(self, expected, actual):
        self.expected_origin = expected
        self.actual_origin = actual
        message = "Invalid Origin Header: Expected one of %s, got '%s'" % (expected, actual)
        super().__init__(log_msg=message, response_msg="Invalid Origin")


class BasicHTTPAuth:
    """A user and a password: `user:password`."""

    def __init__(self, src=None):
        self.src = src

    def authenticate(self, headers, target_host, target_port):
        value = headers.get("Authorization")
        if not value:
            self.demand_auth()
        scheme, _, code = value.partition(" ")
        if scheme.lower() != "basic":
            self.auth_error()
        try:
            given = base64.b64decode(code.strip(), validate=True)
        except ValueError:
            self.auth_error()
        try:
            given = given.decode("utf-8")
        except UnicodeDecodeError:
            given = given.decode("latin-1")
        username, colon, password = given.partition(":")
        if not colon:
            self.auth_error()
        if not self.validate_creds(username, password):
            self.demand_auth()

    def validate_creds(self, username, password):
        if not self.src:
            return False
        given = "%s:%s" % (username, password)
        return hmac.compare_digest(given.encode("utf-8"), self.src.encode("utf-8", "surrogateescape"))

    def auth_error(self):
        raise AuthenticationError(response_code=403)

    def demand_auth(self):
        challenge = {"WWW-Authenticate": 'Basic realm="Websockify"'}
        raise AuthenticationError(response_code=401, response_headers=challenge)


class ExpectOrigin:
    """Origins of pages, with blanks between them."""

    def __init__(self, src=None):
        self.source = src.split() if src else []

    def authenticate(self, headers, target_host, target_port):
        origin = headers.get("Origin")
        if origin is None or origin not in self.source:
            raise InvalidOriginError(expected=self.source, actual=origin)


class ClientCertCNAuth:
    """Common names of client certificates, with blanks between them."""

    def __init__(self, src=None):
        self.source = src.split() if src else []

    def authenticate(self, headers, target_host, target_port):
        if headers.get("SSL_CLIENT_S_DN_CN") not in self.source:
            raise AuthenticationError(response_code=403)
