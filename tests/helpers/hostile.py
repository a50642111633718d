"""Requests as raw bytes that try to be read in two ways, and what is to become of each.

Must never hold a request that is hostile by its meaning only: framing and syntax are the subject.
"""

from __future__ import annotations

from typing import NamedTuple

URL = b"/funccall/t/n/f/x"
HOST = b"Host: a\r\n"
#: Sent after each request: whoever serves it has misread where the one before it ends.
SMUGGLED = b"GET /funccall/t/n/f/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


class Row(NamedTuple):
    """One request. `harmless` ones may be served: what the worker gets must be unambiguous.

    `closes`: it is the last one of its connection although it is served.
    `stricter_nginx` says why nginx may refuse what we let pass.
    """

    raw: bytes
    harmless: bool = False
    closes: bool = False
    stricter_nginx: str = ""


def post(fields: bytes, body: bytes = b"", host: bytes = HOST) -> bytes:
    return b"POST " + URL + b" HTTP/1.1\r\n" + host + fields + b"\r\n" + body


def get(target: bytes = URL, fields: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + HOST + fields + b"\r\n"


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def te(value: bytes) -> bytes:
    """A coding that is not exactly `chunked`, before a body that is."""
    return post(b"Transfer-Encoding:" + value + b"\r\n", b"0\r\n\r\n")


def cl(value: bytes, body: bytes = b"") -> bytes:
    return post(b"Content-Length:" + value + b"\r\n", body)


TWO_LENGTHS = {
    "CL and TE": Row(post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    "TE and CL": Row(post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n")),
    "CL zero and TE": Row(post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n")),
    "CL and TE in other case": Row(
        post(b"cOnTeNt-LeNgTh: 5\r\ntRaNsFeR-eNcOdInG: cHuNkEd\r\n", b"0\r\n\r\n")
    ),
    "CL and TE identity": Row(post(b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n")),
    "CL that ends inside a request": Row(
        post(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"2e\r\n" + SMUGGLED)
    ),
    "two CL": Row(post(b"Content-Length: 0\r\nContent-Length: 5\r\n")),
    "two equal CL": Row(post(b"Content-Length: 5\r\nContent-Length: 5\r\n")),
    "CL list": Row(cl(b" 5, 5")),
    "CL list that differs": Row(cl(b" 0, 5")),
    "CL with an underscore": Row(post(b"Content_Length: 5\r\n")),
    "TE with an underscore": Row(post(b"Transfer_Encoding: chunked\r\nContent-Length: 0\r\n")),
    "TE twice": Row(post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
    "TE twice, one unknown": Row(post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n")),
}

LENGTHS = {
    "CL sign": Row(cl(b" +5")),
    "CL negative": Row(cl(b" -5")),
    "CL hex": Row(cl(b" 0x5")),
    "CL empty": Row(cl(b"")),
    "CL fraction": Row(cl(b" 5.0")),
    "CL exponent": Row(cl(b" 1e1")),
    "CL grouped": Row(cl(b" 1_0")),
    "CL two numbers": Row(cl(b" 5 5")),
    "CL with a parameter": Row(cl(b" 5;a")),
    "CL quoted": Row(cl(b' "5"')),
    "CL in other digits": Row(cl(b" \xef\xbc\x95")),
    "CL overflow": Row(cl(b" 18446744073709551621")),
    "CL overflow of 32 bits": Row(cl(b" 00000000000000004294967296")),
    "CL vertical tab": Row(cl(b" \x0b5")),
    "CL space before colon": Row(post(b"Content-Length : 5\r\n")),
    "CL tab before colon": Row(post(b"Content-Length\t: 5\r\n")),
    "CL folded": Row(post(b"Content-Length:\r\n 5\r\n")),
    "CL in an HTTP/1.0 request": Row(
        b"POST " + URL + b" HTTP/1.0\r\n" + HOST + b"Content-Length: 1\r\n\r\nx",
        harmless=True,
        closes=True,
    ),
    "CL with white space around": Row(
        cl(b" \t 1 \t ", b"x"), harmless=True, stricter_nginx="it takes no tabs, which are legal"
    ),
    "CL with a leading zero": Row(cl(b" 01", b"x"), harmless=True),
    "CL on a GET": Row(get(fields=b"Content-Length: 1\r\n") + b"x", harmless=True),
}

CODINGS = {
    "TE unknown": Row(te(b" xchunked")),
    "TE identity": Row(te(b" identity")),
    "TE empty": Row(te(b"")),
    "TE not last": Row(te(b" chunked, identity")),
    "TE gzip first": Row(te(b" gzip, chunked")),
    "TE identity first": Row(te(b" identity, chunked")),
    "TE chunked twice in a list": Row(te(b" chunked, chunked")),
    "TE with a comma after": Row(te(b" chunked,")),
    "TE with a comma before": Row(te(b" ,chunked")),
    "TE with a parameter": Row(te(b" chunked;q=1")),
    "TE quoted": Row(te(b' "chunked"')),
    "TE with a word before": Row(te(b" x chunked")),
    "TE vertical tab": Row(te(b"\x0bchunked")),
    "TE form feed after": Row(te(b" chunked\x0c")),
    "TE NUL after": Row(te(b" chunked\0")),
    "TE non-breaking space": Row(te(b" \xa0chunked")),
    "TE with a letter that folds": Row(te(b" chun\xe2\x84\xaaed")),
    "TE folded": Row(te(b"\r\n chunked")),
    "TE folded by a tab": Row(te(b"\r\n\tchunked")),
    "TE folded away": Row(post(b"X: a\r\n Transfer-Encoding: chunked\r\n")),
    "TE bare CR before": Row(post(b"X: a\rTransfer-Encoding: chunked\r\n")),
    "TE space before colon": Row(post(b"Transfer-Encoding : chunked\r\n")),
    "TE in a header of another name": Row(post(b"X-Transfer-Encoding: chunked\r\n"), harmless=True),
    "TE in other case": Row(te(b" CHUNKED"), harmless=True),
    "TE after a tab": Row(
        te(b"\tchunked\t"), harmless=True, stricter_nginx="it takes no tabs, which are legal"
    ),
    "TE on a GET": Row(get(fields=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", harmless=True),
    "TE in HTTP/1.0": Row(
        b"POST " + URL + b" HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
}

LINES = {
    "folded": Row(post(b"X: a\r\n b\r\n")),
    "folded by a tab": Row(post(b"X: a\r\n\tb\r\n")),
    "fold of nothing": Row(post(b"X: a\r\n \r\n")),
    "folded Host": Row(post(b"", host=b"Host:\r\n a\r\n")),
    "space before the first header": Row(b"GET " + URL + b" HTTP/1.1\r\n Host: a\r\n\r\n"),
    "bare LF everywhere": Row(b"GET " + URL + b" HTTP/1.1\nHost: a\n\n"),
    "bare LF after the request line": Row(b"GET " + URL + b" HTTP/1.1\nHost: a\r\n\r\n"),
    "bare LF in a field": Row(post(b"X: a\nContent-Length: 5\r\n")),
    "bare LF at the end of the head": Row(b"GET " + URL + b" HTTP/1.1\r\nHost: a\r\n\n"),
    "bare CR": Row(post(b"X: a\rContent-Length: 5\r\n")),
    "bare CR everywhere": Row(b"GET " + URL + b" HTTP/1.1\rHost: a\r\r\r\n\r\n"),
    "CR before CR LF": Row(post(b"X: a\r\r\n")),
    "NUL in a value": Row(post(b"X: a\0b\r\n")),
    "NUL in a name": Row(post(b"X\0: a\r\n")),
    "DEL in a value": Row(post(b"X: a\x7fb\r\n")),
    "escape in a value": Row(post(b"X: a\x1b[2Jb\r\n")),
    "no colon": Row(post(b"X a\r\n")),
    "no name": Row(post(b": a\r\n")),
    "name in brackets": Row(post(b"(X): a\r\n")),
    "name with a slash": Row(post(b"X/Y: a\r\n")),
    "name in Latin-1": Row(post(b"X\xe9: a\r\n")),
    "empty line before": Row(b"\r\n" + get(), harmless=True),
    "value in Latin-1": Row(post(b"X: \xe9\r\n"), harmless=True),
    "empty value": Row(post(b"X:\r\n"), harmless=True),
}

HOSTS = {
    "no Host": Row(b"GET " + URL + b" HTTP/1.1\r\n\r\n"),
    "empty Host": Row(post(b"", host=b"Host:\r\n")),
    "two Hosts": Row(post(b"Host: a\r\n")),
    "two other Hosts": Row(post(b"hOST: b\r\n")),
    "Host list": Row(post(b"", host=b"Host: a, b\r\n")),
    "Host with a path": Row(post(b"", host=b"Host: a/b\r\n")),
    "Host with a user": Row(post(b"", host=b"Host: u@a\r\n")),
    "Host with a space": Row(post(b"", host=b"Host: a b\r\n")),
    "Host with a fragment": Row(post(b"", host=b"Host: a#b\r\n")),
    "Host space before colon": Row(post(b"", host=b"Host : a\r\n")),
    "Connection names Host": Row(post(b"Connection: host\r\n")),
    "Connection names Content-Length": Row(
        post(b"Connection: content-length\r\nContent-Length: 5\r\n", b"12345")
    ),
    "Connection names Transfer-Encoding": Row(post(b"Connection: transfer-encoding\r\n")),
    "Connection names Authorization": Row(post(b"Connection: keep-alive, authorization\r\n")),
    "Connection names Cookie": Row(post(b"Connection: close, CoOkIe\r\n")),
}

REQUEST_LINES = {
    "absolute form": Row(get(b"http://a" + URL)),
    "absolute form of another host": Row(get(b"http://internal:1238/x")),
    "absolute form of a file": Row(get(b"file:///etc/passwd")),
    "authority form": Row(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk with GET": Row(get(b"*")),
    "no slash": Row(get(b"funccall/t/n/f")),
    "NUL in the target": Row(get(URL + b"\0")),
    "space in the target": Row(get(URL + b" x")),
    "tab for a space": Row(b"GET\t" + URL + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces": Row(b"GET  " + URL + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space after the version": Row(get(version=b"HTTP/1.1 ")),
    "space before the method": Row(b" " + get()),
    "fragment": Row(get(URL + b"#x")),
    "raw bytes in the target": Row(get(URL + b"\xc3\xa4")),
    "CR in the target": Row(get(URL + b"\rX")),
    "method that is no token": Row(b"G@T" + get()[3:]),
    "method with a NUL": Row(b"GE\0" + get()[3:]),
    "no version": Row(b"GET " + URL + b"\r\n\r\n"),
    "garbage": Row(b"\x16\x03\x01\x02\x00\x01\x00\n"),
    "decoded slash": Row(get(b"/funccall/t/n/f%2F..%2Fg/x")),
    "decoded line break": Row(get(b"/funccall/t/n/f%0d%0aX:1/x")),
    "decoded NUL": Row(get(b"/funccall/t/n/f%00/x")),
    "decoded dots": Row(get(b"/funccall/t/n/%2e%2e/x")),
    "overlong dot": Row(get(b"/funccall/t/n/%c0%ae/x")),
    "escape of nothing": Row(get(b"/funccall/t/n/f%/x")),
    "line break in the worker's path": Row(
        get(b"/funccall/t/n/f/a%0d%0aX-Injected:%201"), harmless=True
    ),
    "NUL in the worker's path": Row(
        get(b"/funccall/t/n/f/%00"), harmless=True, stricter_nginx="it decodes the whole path"
    ),
    "dots in the worker's path": Row(get(b"/funccall/t/n/f/../../../g"), harmless=True),
    "line break in the query": Row(get(URL + b"?a=%0d%0aX-Injected:%201"), harmless=True),
}

CHUNKS = {
    "no digits": Row(chunked(b"\r\nabc\r\n0\r\n\r\n")),
    "not hex": Row(chunked(b"3z\r\nabc\r\n0\r\n\r\n")),
    "sign": Row(chunked(b"+3\r\nabc\r\n0\r\n\r\n")),
    "negative": Row(chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
    "prefix": Row(chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    "grouped": Row(chunked(b"0_3\r\nabc\r\n0\r\n\r\n")),
    "space before": Row(chunked(b" 3\r\nabc\r\n0\r\n\r\n")),
    "space after": Row(chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    "tab after": Row(chunked(b"3\t\r\nabc\r\n0\r\n\r\n")),
    "bare LF": Row(chunked(b"3\nabc\r\n0\r\n\r\n")),
    "bare CR": Row(chunked(b"3\rabc\r\n0\r\n\r\n")),
    "CR before CR LF": Row(chunked(b"3\r\r\nabc\r\n0\r\n\r\n")),
    "bare LF in an extension": Row(chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n")),
    "bare LF that ends an extension": Row(chunked(b"3;\n\x78\x78\x0d\x0a0\r\n\r\n")),
    "NUL in an extension": Row(chunked(b"3;a\0b\r\nabc\r\n0\r\n\r\n")),
    "endless extension": Row(chunked(b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n")),
    "overflow of 64 bits": Row(chunked(b"ffffffffffffffff3\r\nabc\r\n0\r\n\r\n")),
    "overflow to 3": Row(chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n")),
    "endless zeros": Row(chunked(b"0" * 100 + b"3\r\nabc\r\n0\r\n\r\n")),
    "data too long": Row(chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    "data without CR LF": Row(chunked(b"3\r\nabc0\r\n\r\n")),
    "bare LF after data": Row(chunked(b"3\r\nabc\n0\r\n\r\n")),
    "bare LF after the last chunk": Row(chunked(b"3\r\nabc\r\n0\n\r\n")),
    "folded trailer": Row(chunked(b"3\r\nabc\r\n0\r\nx: y\r\n z\r\n\r\n")),
    "trailer that begins with a space": Row(chunked(b"3\r\nabc\r\n0\r\n x: y\r\n\r\n")),
    "bare LF in a trailer": Row(chunked(b"3\r\nabc\r\n0\r\nx: y\n\r\n")),
    "bare CR in a trailer": Row(chunked(b"3\r\nabc\r\n0\r\nx: y\rz\r\n\r\n")),
    "NUL in a trailer": Row(chunked(b"3\r\nabc\r\n0\r\nx: \0\r\n\r\n")),
    "trailer without a colon": Row(chunked(b"3\r\nabc\r\n0\r\nxy\r\n\r\n")),
    "trailer with a space before the colon": Row(chunked(b"3\r\nabc\r\n0\r\nx : y\r\n\r\n")),
    "trailer without a name": Row(chunked(b"3\r\nabc\r\n0\r\n: y\r\n\r\n")),
    "framing in trailers": Row(
        chunked(b"3\r\nabc\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\nHost: b\r\n\r\n")
    ),
    "extension": Row(chunked(b"3;a=b\r\nabc\r\n0;c\r\n\r\n"), harmless=True),
    "quoted extension": Row(chunked(b'3;a="b;c"\r\nabc\r\n0\r\n\r\n'), harmless=True),
    "leading zero": Row(chunked(b"03\r\nabc\r\n00\r\n\r\n"), harmless=True),
    "a request in the data": Row(
        chunked(b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"), harmless=True
    ),
}

UPGRADES = {
    "h2c": Row(
        get(fields=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"),
        harmless=True,
    ),
    "upgrade with a body": Row(
        post(b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", b"x"),
        harmless=True,
    ),
    "Expect of something else": Row(post(b"Expect: a-miracle\r\n"), harmless=True),
}

GROUPS = {
    "two lengths": TWO_LENGTHS, "lengths": LENGTHS, "codings": CODINGS, "lines": LINES,
    "hosts": HOSTS, "request lines": REQUEST_LINES, "chunks": CHUNKS, "upgrades": UPGRADES,
}  # fmt: skip
ROWS = {f"{group}: {name}": row for group, rows in GROUPS.items() for name, row in rows.items()}
