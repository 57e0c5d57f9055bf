"""Plugins as third parties write them for the Python original."""

import os
import sys
import threading

from websockify.auth_plugins import AuthenticationError, BasePlugin as AuthPlugin, BasicHTTPAuth, ExpectOrigin, InvalidOriginError
from websockify.token_plugins import BasePlugin, BaseTokenAPI, JSONTokenApi, TokenFile, UnixDomainSocketDirectory

print("websockify comes from", "somewhere" if hasattr(sys.modules["websockify"], "__file__") else "nowhere")


def targets(source):
    """Reads `token=host:port,token=host:port`."""
    pairs = [pair.split("=") for pair in source.split(",")]
    return {token: target.rsplit(":", 1) for token, target in pairs}


class Plain:
    """Builds on nothing."""

    def __init__(self, source):
        self.targets = targets(source)

    def lookup(self, token):
        target = self.targets.get(token)
        return None if target is None else tuple(target)


class Numbers(BasePlugin):
    """Gives ports as numbers."""

    def lookup(self, token):
        host, port = targets(self.source)[token]
        print("token plugin in", os.getpid())
        return host, int(port)


class Upper(TokenFile):
    def lookup(self, token):
        return super().lookup(token.upper())


class Service(BaseTokenAPI):
    def process_result(self, resp):
        host, port = resp.text.strip().split("|")
        return host, port


class Json(JSONTokenApi):
    pass


class Sockets(UnixDomainSocketDirectory):
    def lookup(self, token):
        return super().lookup(token + ".sock")


class Outer:
    class Inner(Plain):
        pass


class Unmakable(BasePlugin):
    def __init__(self, src):
        raise ValueError("cannot do anything with %s" % src)


class Empty:
    """Can be asked nothing."""

    def __init__(self, src):
        self.lookup = "word"


def function(src):
    """Is no class, and must not be called."""
    print("called with", src)


class Once(BasePlugin):
    """There can be one of it only."""

    made = False

    def __init__(self, src):
        super().__init__(src)
        if Once.made:
            raise OSError("there is one already")
        Once.made = True

    def lookup(self, token):
        threading.Event().wait(0.01)
        return targets(self.source)["good"]


class Scratch(BasePlugin):
    """Was never meant to be asked two things at a time."""

    def lookup(self, token):
        self.port = token
        threading.Event().wait(0.01)
        return "127.0.0.1", self.port


everybody = threading.Barrier(8)


class Together(BasePlugin):
    """Answers eight at a time."""

    def lookup(self, token):
        everybody.wait()
        return targets(self.source)["good"]


class Troubled(BasePlugin):
    """Does what the token says, which may be nothing good."""

    def lookup(self, token):
        word = token.partition("-")[0]
        return getattr(self, word)(token)

    def good(self, token):
        return targets(self.source)["good"]

    def key(self, token):
        return {}[token]

    def quoted(self, token):
        raise RuntimeError("no\nsuch thing as %r" % token)

    def exit(self, token):
        sys.exit(token)

    def interrupt(self, token):
        raise KeyboardInterrupt

    def gone(self, token):
        os._exit(7)

    def few(self, token):
        return ("127.0.0.1",)

    def word(self, token):
        return "127.0.0.1", "http"

    def none(self, token):
        return "127.0.0.1", None

    def part(self, token):
        raise RuntimeError("cannot log in with " + self.source.rpartition("=")[2].partition(":")[2])

    def log(self, token):
        import logging
        try:
            raise ValueError("no " + token)
        except ValueError:
            logging.getLogger("mine").exception("cannot find %s of %s", token, self.source)

    def hang(self, token):
        threading.Event().wait()

    def chatter(self, token):
        print("chatter to stdout")
        os.system("echo chatter of a child")
        os.write(1, b"chatter to 1\n")
        import logging
        logging.getLogger("mine").warning("chatter to the log")
        print("chatter\x1b[31m to stderr", file=sys.stderr)
        return self.good(token)

    def read(self, token):
        return self.good(token) if sys.stdin.read() == "" and os.read(0, 1) == b"" else None

    def away(self, token):
        os.chdir("/")
        import http.cookies
        return self.good(token)

    def close(self, token):
        sys.stdout.close()
        os.close(1)
        sys.stderr.close()
        return self.good(token)

    def thread(self, token):
        answer = []
        thread = threading.Thread(target=lambda: answer.append(self.good(token)))
        thread.start()
        thread.join()
        return answer[0]


class Users(BasicHTTPAuth):
    def validate_creds(self, username, password):
        return username == password[::-1]


class Origins(ExpectOrigin):
    pass


class Headers(AuthPlugin):
    """Looks at headers in all the ways there are."""

    def authenticate(self, headers, target_host, target_port):
        print("auth plugin in", os.getpid())
        if headers.get("x-user") != "jo" or "X-User" not in headers or headers["X-USER"] != "jo":
            raise AuthenticationError("nobody", 418, {"X-Why": "because"}, "You are not Jo")
        assert headers["nothing"] is None and headers.get("nothing", 7) == 7 and "nothing" not in headers
        assert headers.get_all("X-Many") == ["1", "2"]
        assert ("X-User", "jo") in headers.items() and "Sec-WebSocket-Key" in headers.keys()
        assert headers.get("X-Odd") == "\xc3\xbc", headers.get("X-Odd")
        assert not [name for name in headers.keys() if "SSL" in name.upper()], headers.items()


class Target(AuthPlugin):
    """Tells what it was told."""

    def authenticate(self, headers, target_host, target_port):
        raise AuthenticationError(response_msg="%r %r %r" % (self.source, target_host, target_port))


class Told(AuthPlugin):
    """Lets in who goes where it says, when it is told of that as it says."""

    def authenticate(self, headers, target_host, target_port):
        if self.source != "%r %r" % (target_host, target_port):
            raise AuthenticationError(response_code=404)


class Reliant(AuthPlugin):
    """Relies on a target."""

    def authenticate(self, headers, target_host, target_port):
        if target_host.startswith("10.") or headers.get("X-User") != "jo":
            raise AuthenticationError("nobody with %s" % headers.get("Cookie"), 401)


class Certificate(AuthPlugin):
    def authenticate(self, headers, target_host, target_port):
        raise AuthenticationError(response_msg="you are %s" % headers.get("SSL_CLIENT_S_DN_CN"))


class Wayward(AuthPlugin):
    """Lets nobody in, for the reason that the user is."""

    def authenticate(self, headers, target_host, target_port):
        reason = headers.get("X-User")
        if reason == "exit":
            sys.exit(0)
        if reason == "smuggle":
            headers = {"X-A": "b\r\nSet-Cookie: c=d", "Content-Length": "0", "X-Good": 7}
            raise AuthenticationError(response_headers=headers, response_msg="a\r\n\r\nb")
        if reason == "success":
            raise AuthenticationError(response_code=200)
        if reason == "origin":
            raise InvalidOriginError(expected="a", actual="b")
        if reason == "mine":
            error = Exception("mine")
            error.response_code, error.response_msg = 451, "mine"
            raise error
        raise ValueError("who is %s with %s?" % (reason, headers.get("Authorization")))
