"""Asks plugins that were written in Python for the original, on behalf of websockify, by the protocol of its other plugins.

A class may print, raise, exit, change directory, start threads and block: only its own answer suffers. Look-ups overlap, each in
a thread with plugins of its own, since these were never made to be used by two threads; what does not overlap happens in the main
thread. Runs by Python 3.6 and later, with nothing else.
"""

import sys

# The working directory comes back when all is imported that is needed here. Who wants only what is safe does not have it at all.
SAFE = getattr(sys.flags, "safe_path", False)
if not SAFE:
    del sys.path[0]

import collections
import importlib
import importlib.util
import json
import logging
import operator
import os
import queue
import re
import threading
import traceback
import types
from http.client import HTTPMessage
from urllib.parse import quote, unquote

# These are for what stands in for the original.
import base64
import hmac
import shlex
import urllib.error
import urllib.request

# How many look-ups may overlap.
MAX_WORKERS = 64
# What is called of the objects.
METHODS = {"token": "lookup", "auth": "authenticate"}
# The longest answer in bytes, and the longest text in it.
MAX_LINE = 64 * 1024
MAX_TEXT = 8 * 1024
# How much is told of a failure, and of one with all that led to it.
MAX_REASON = 1024
MAX_TRACEBACK = 16 * 1024
# How many secrets of a request are looked for in what is told, and how long they may be together. That takes time in which nobody
# else is served, and whoever asks decides how many there are: of a request that has more, nothing is told but the kind of failure.
MAX_SECRETS = 64
MAX_SECRET_TEXT = 16 * 1024
# By how many of its first characters a secret is sought before anything else is done with it.
HEAD = 24
# What is in it however it is written.
PLAIN = re.compile(r"(?<!%)(?<!%\w)[A-Za-z0-9]{3,}")


class Worker:
    """Asks plugins of its own, one question after the other."""

    def __init__(self, crew):
        self.crew = crew
        self.plugins = {}
        self.questions = queue.Queue()

    def join(self):
        """What a thread does."""
        if "asyncio" in sys.modules:
            # As in the main thread, there is a loop for whoever asks for one.
            sys.modules["asyncio"].set_event_loop(sys.modules["asyncio"].new_event_loop())
        try:
            for kind, make in self.crew.makers.items():
                self.plugins[kind] = make()
        except BaseException as error:
            report("cannot make another plugin, so look-ups wait for each other", error, [])
            self.crew.joined(None)
        else:
            self.crew.joined(self)
            self.work()

    def work(self):
        thread = threading.get_ident()
        while True:
            question = self.questions.get()
            UNDER_WAY[thread] = question
            answer = ask(self.plugins, question)
            del UNDER_WAY[thread]
            answer["id"] = question["id"]
            self.crew.tell(answer)
            self.crew.rest(self)


class Crew:
    """All workers. A question goes to one that is idle, in the main thread if possible, or waits for a new one."""

    def __init__(self, makers, answers):
        self.makers = makers
        self.answers = answers
        self.writing = threading.Lock()
        self.changed = threading.Condition()
        self.main = Worker(self)
        # The next one to be taken is the last.
        self.idle = [self.main]
        self.count = 1
        self.limit = MAX_WORKERS
        # How many of them are new and not ready yet, and the questions that wait for those: no more than there are.
        self.joining = 0
        self.waiting = collections.deque()

    def put(self, question):
        """Waits until somebody can take the question: more of them are not read before."""
        with self.changed:
            while not self.idle and len(self.waiting) >= self.joining and not self.hire():
                self.changed.wait()
            if self.idle:
                self.idle.pop().questions.put(question)
            else:
                self.waiting.append(question)

    def hire(self):
        if self.count >= self.limit:
            return False
        try:
            threading.Thread(target=Worker(self).join, daemon=True).start()
        except RuntimeError:
            self.limit = self.count
            return False
        self.count += 1
        self.joining += 1
        return True

    def joined(self, worker):
        with self.changed:
            self.joining -= 1
            if worker is None:
                self.count -= 1
                self.limit = self.count
        if worker is not None:
            self.rest(worker)

    def rest(self, worker):
        with self.changed:
            if self.waiting:
                worker.questions.put(self.waiting.popleft())
            else:
                self.idle.insert(len(self.idle) if worker is self.main else 0, worker)
            self.changed.notify()

    def tell(self, answer):
        with self.writing:
            write(self.answers, answer)


def main():
    sys.argv = ["websockify"]
    questions, answers = take_pipes()
    orders = json.loads(questions.readline().decode("utf-8"))
    set_up_logging(orders["verbose"])
    global VERBOSE
    VERBOSE = orders["verbose"]
    if not SAFE:
        sys.path.insert(0, os.getcwd())
    if not is_installed("websockify"):
        provide(orders["modules"])
    sources = {kind: source(orders[kind]) for kind in ("token", "auth") if orders[kind]}
    hide_sources(filter(None, sources.values()))
    crew = Crew({}, answers)
    for kind, text in sources.items():
        try:
            crew.makers[kind] = maker(orders[kind]["class"], text, METHODS[kind])
            crew.main.plugins[kind] = crew.makers[kind]()
        except Unusable as error:
            write(answers, {"failed": kind, "reason": str(error), "clear": True})
            os._exit(1)
        except BaseException as error:
            if VERBOSE:
                report("cannot load " + orders[kind]["class"], error, [])
            write(answers, {"failed": kind, "reason": in_short(error, [])})
            os._exit(1)
    write(answers, {"ready": True})
    threading.Thread(target=read, args=(questions, crew), daemon=True).start()
    crew.main.work()


def take_pipes():
    """Keeps the pipes of the protocol from all others: what they read is empty, and what they print goes to stderr."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.__stdout__ = open(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    # A small buffer: a question that is not here yet can still be taken back.
    return open(questions, "rb", 1024), answers


class Formatter(logging.Formatter):
    """Keeps secrets out of what classes log, and what they use does."""

    def format(self, record):
        own = UNDER_WAY.get(record.thread)
        secrets = set()
        for question in [own] if own else list(UNDER_WAY.values()):
            more = secrets_of(question)
            if more is None:
                return "%s: %s (a request under way has more secrets than can be kept out of it)" % (record.levelname, record.name)
            secrets |= more
        return without(secrets, super().format(record), MAX_TRACEBACK)


def set_up_logging(verbose):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.INFO)
    # It tells each path that it asks for.
    logging.getLogger("urllib3").setLevel(logging.INFO)


def hide_sources(sources):
    """Has sources and their parts, of which each may be a password, kept out of all that is told."""
    for source in sources:
        _, _, rest = source.rpartition("://")
        # The words of a path are no secrets, and are in what is told of files.
        parts = [] if source.startswith(("/", "./", "../")) else re.split(r"[:@/?&=\s]", rest)
        for secret in [source] + parts:
            SOURCES.update(spellings(secret) | spellings(unquote(secret)))


def is_installed(package):
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    # A directory that has nothing but the name is a namespace.
    return spec is not None and spec.origin not in (None, "namespace")


def provide(modules):
    """Makes modules from their sources, and the package that they are in."""
    for name, text in modules.items():
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(text, "<%s>" % name, "exec"), module.__dict__)
        package, _, last = name.rpartition(".")
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = []
        setattr(sys.modules[package], last, module)


def source(order):
    """What a class is made with: each character stands for a byte."""
    text = order["source"]
    return None if text is None else os.fsdecode(text.encode("latin-1"))


class Unusable(Exception):
    """What was found is no plugin."""


def maker(name, text, method):
    """What makes an object of a class."""
    found = find(name)
    # Whatever else can be called may do anything with the source, as os.system would.
    if not isinstance(found, type):
        raise Unusable("it is not a class")

    def make():
        plugin = found(text)
        if not callable(getattr(plugin, method, None)):
            raise Unusable("it has no method " + method)
        return plugin

    return make


def find(name):
    """The class of this name, which may be within another one."""
    parts = name.split(".")
    failure = None
    for length in range(max(len(parts) - 1, 1), 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # What it imports itself may be missing as well.
            if not (error.name and (module + ".").startswith(error.name + ".")):
                raise
            failure = failure or error
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and failure:
                raise failure
            found = getattr(found, part)
        return found
    raise failure


def read(questions, crew):
    """Passes on questions to their end, which is that of this process."""
    try:
        for line in questions:
            crew.put(json.loads(line.decode("utf-8")))
    finally:
        # What still runs has nobody to answer to.
        os._exit(0)


def ask(plugins, question):
    if "token" in question:
        return look_up(plugins["token"], question["token"])
    return authenticate(plugins["auth"], question)


def look_up(plugin, token):
    try:
        found = plugin.lookup(token)
        return {"target": None} if found is None else target(found)
    except BaseException as error:
        report("lookup failed", error, {token})
        return {"target": None}


def target(found):
    host, port = found
    if not isinstance(host, str):
        host = host.decode("utf-8")
    if isinstance(port, bytes):
        port = port.decode("utf-8")
    port = clean(port) if isinstance(port, str) else operator.index(port)
    return {"host": clean(host), "port": port}


def authenticate(plugin, question):
    try:
        plugin.authenticate(
            headers=message(question),
            target_host=question["target_host"],
            target_port=question["target_port"],
        )
        return {"allow": True}
    except BaseException as error:
        secrets = secrets_of(question)
        if not is_refusal(error):
            report("authenticate failed", error, secrets)
            return {"allow": False}
        return refusal(error, secrets)


def message(question):
    """The headers as the original has them."""
    headers = HTTPMessage()
    for name, value in question["headers"]:
        headers[spell(name)] = value
    if question["common_name"] is not None:
        headers["SSL_CLIENT_S_DN_CN"] = question["common_name"]
    return headers


def spell(name):
    words = name.split("-")
    if words[:2] == ["sec", "websocket"]:
        words[1] = "webSocket"
    return "-".join(word[:1].upper() + word[1:] for word in words)


def is_refusal(error):
    names = [kind.__name__ for kind in type(error).__mro__]
    return hasattr(error, "response_code") or "AuthenticationError" in names


def refusal(error, secrets):
    def part(name, other):
        return getattr(error, name, None) or getattr(error, other, None)

    status, text = part("response_code", "code"), part("response_msg", "msg")
    headers = part("response_headers", "headers") or {}
    pairs = headers.items() if hasattr(headers, "items") else headers
    answer = {"allow": False}
    try:
        answer["status"] = operator.index(status)
        answer["headers"] = [[clean(name), clean(value)] for name, value in pairs]
    except Exception as wrong:
        report("a refusal is not as it should be", wrong, secrets)
    if text is not None:
        answer["message"] = clean(text)
    reason = describe(error).partition(": ")[2]
    if reason not in ("", "%s None" % status, "%s %s" % (status, text)):
        say("refused: " + (type(error).__name__ if secrets is None else without(secrets, reason)))
    return answer


def secrets_of(question):
    """What must not be shown of a question; None when that is too much."""
    if "token" in question:
        return {question["token"]}
    query = question["path"].partition("?")[2]
    values = [question["password"], query]
    values += [part.partition("=")[2] for part in query.split("&", MAX_SECRETS)]
    for name, value in question["headers"]:
        if name in ("authorization", "cookie", "proxy-authorization", "sec-websocket-protocol"):
            values += [value, value.partition(" ")[2]]
            values += [part.partition("=")[2] for part in value.split("; ", MAX_SECRETS)]
        if len(values) > 4 * MAX_SECRETS:
            return None
    secrets = {value for value in values if value}
    if len(secrets) > MAX_SECRETS or sum(map(len, secrets)) > MAX_SECRET_TEXT:
        return None
    return secrets


def without(secrets, text, limit=MAX_REASON):
    """The beginning of a text in which secrets are replaced, however they are written."""
    # One that begins in what is shown is found, whole or by as much of it as can be shown.
    window = text[:2 * limit]
    hidden = []
    for form in filter(None, SOURCES | forms_within(secrets, window)):
        hidden += places(form[:limit], window)
    shown, end = [], 0
    for start, stop in sorted(hidden):
        if start > limit:
            break
        if start >= end:
            shown += [window[end:start], "..."]
        end = max(end, stop)
    return "".join(shown) + window[end:limit]


def forms_within(secrets, text):
    """All spellings of those secrets of which something is in a text."""
    forms = set()
    for secret in secrets:
        plain = PLAIN.search(secret[:HEAD])
        if plain and plain.group() not in text:
            continue
        # An escaped character is at most twelve long.
        heads = [secret[:HEAD], unquote(secret[:12 * HEAD + 12])[:HEAD]]
        for whole, head in zip((lambda: secret, lambda: unquote(secret)), heads):
            if any(form in text for form in spellings(head)):
                forms.update(spellings(whole()))
    return forms


def spellings(text):
    """How a text may be written. The spelling of its beginning is the beginning of its spelling."""
    if text.isalnum() and len(text.encode("utf-8", "replace")) == len(text):
        return {text}
    data = text.encode("utf-8", "replace")
    both = (text + "'\"", data + b"'\"")
    return {
        text,
        repr(text)[1:-1],
        repr(data)[2:-1],
        # Whether a quote is escaped depends on the quotes that follow.
        repr(both[0])[1:-4],
        repr(both[1])[2:-4],
        quote(text, errors="replace"),
        quote(text, "", errors="replace"),
        json.dumps(text)[1:-1],
    }


def places(form, text):
    """From where to where a text has this form."""
    start = text.find(form)
    while start >= 0:
        stop = start + len(form)
        # A short one is in many words by chance.
        if len(form) >= 4 or not (is_word(text[start - 1:start]) or is_word(text[stop:stop + 1])):
            yield start, stop
            start = text.find(form, stop)
        else:
            start = text.find(form, start + 1)


def is_word(character):
    return character.isalnum() or character == "_"


def report(what, error, secrets):
    """Says what went wrong in one line, and at length only if asked to."""
    if VERBOSE:
        return say("%s: %s" % (what, at_length(error, secrets)))
    frames = traceback.extract_tb(error.__traceback__)
    where = ""
    if len(frames) > 1:
        where = " (%s, line %s)" % (os.path.basename(frames[-1][0]), frames[-1][1])
    say("%s: %s%s" % (what, in_short(error, secrets), where))


def in_short(error, secrets):
    return type(error).__name__ if secrets is None else without(secrets, describe(error))


def at_length(error, secrets):
    if secrets is None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        return "Traceback (most recent call last):\n%s%s" % (frames, type(error).__name__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return without(secrets, text, MAX_TRACEBACK)


def describe(error):
    """The last line of a traceback."""
    try:
        # More of it is never shown.
        text = " ".join(str(error)[:2 * MAX_TRACEBACK].split("\n"))
    except Exception:
        text = "(it cannot be shown)"
    name = type(error).__name__
    return "%s: %s" % (name, text) if text else name


def say(text):
    """Writes to stderr, whatever became of Python's own."""
    data = (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(2, data):]
    except OSError:
        pass


def clean(text):
    """A text that can be written as UTF-8."""
    return str(text)[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def write(answers, answer):
    line = json.dumps(answer)
    if len(line) >= MAX_LINE:
        line = json.dumps({key: answer[key] for key in ("id", "allow", "status") if key in answer})
    data = (line + "\n").encode("ascii")
    try:
        while data:
            data = data[os.write(answers, data):]
    except OSError:
        # Nobody listens any more.
        os._exit(0)


VERBOSE = False
# The sources of the classes and their parts, in all spellings.
SOURCES = set()
# What each thread is asked.
UNDER_WAY = {}
if __name__ == "__main__":
    main()
