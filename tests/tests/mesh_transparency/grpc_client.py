"""Calls every method of grpc_server.py and prints what comes of it, a line each."""

import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_metadata_size", 1 << 17)])


def path(name):
    return f"/shop.Cart/{name}"


def unary(name, request=b"", **options):
    return channel.unary_unary(path(name))(request, timeout=options.pop("timeout", 20), **options)


def error(call):
    try:
        return call()
    except grpc.RpcError as failed:
        return failed.code().name, failed.details(), sorted(failed.trailing_metadata() or ())


def with_call(name, request):
    answer, call = channel.unary_unary(path(name)).with_call(request, timeout=20)
    return answer, call.code().name, sorted(call.trailing_metadata())


def interleaved():
    asked = queue.Queue()
    answers = channel.stream_stream(path("Chat"))(iter(asked.get, None), timeout=20)
    heard = []
    for number in range(10):
        asked.put(b"%d" % number)
        # The next one is asked only when this one is answered.
        heard.append(next(answers))
    asked.put(None)
    return heard, list(answers), answers.code().name


def cancels():
    call = channel.unary_stream(path("Endless"))(b"", timeout=20)
    first = next(call)
    call.cancel()
    return first, unary("WasCancelled")


def many():
    calls = [channel.unary_unary(path("Unary")).future(b"%d" % number, timeout=20) for number in range(500)]
    return sum(call.result() == b"%d" % number for number, call in enumerate(calls))


large = (("x-large", "y" * 30000), ("x-one", "1"), ("x-bin", bytes(range(256))))
print("unary", with_call("Unary", b"abc"))
print("a large message", len(unary("Unary", b"a" * 3000000)))
print("a failure", error(lambda: unary("Fail")))
print("no such method", error(lambda: unary("Nothing"))[0])
print("down", list(channel.unary_stream(path("Down"))(b"100", timeout=20)))
print("up", channel.stream_unary(path("Up"))(iter([b"a", b"b", b"c"]), timeout=20))
print("to and fro", interleaved())
print("metadata", unary("Metadata", metadata=large))
print("a deadline", unary("Deadline", timeout=100))
print("a deadline that passes", error(lambda: unary("Late", timeout=0.3))[0])
print("a call that is cancelled", cancels())
print("many at once", many())
