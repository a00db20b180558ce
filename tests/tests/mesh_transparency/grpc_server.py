"""A gRPC server without generated code: messages are bytes."""

import sys
import threading
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("after", "all"),))
    return request.upper()


def fail(request, context):
    context.set_trailing_metadata((("detail-bin", b"\x00\xff"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this: \u00e9%\n")


def down(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def up(requests, context):
    return b",".join(requests)


def chat(requests, context):
    for request in requests:
        yield b"<" + request + b">"


def metadata(request, context):
    known = {"x-one", "x-bin", "x-large"}
    return repr(sorted((key, value) for key, value in context.invocation_metadata() if key in known)).encode()


def deadline(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else b"about %d" % round(left, -1)


cancelled = threading.Event()


def endless(request, context):
    context.add_callback(cancelled.set)
    yield b"first"
    cancelled.wait(20)


def was_cancelled(request, context):
    return b"%d" % cancelled.wait(20)


def late(request, context):
    threading.Event().wait(5)
    return b""


def method(behaviour, takes_stream=False, gives_stream=False):
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[takes_stream, gives_stream]
    return make(behaviour)


server = grpc.server(futures.ThreadPoolExecutor(64), options=[("grpc.max_metadata_size", 1 << 17)])
handlers = {
    "Unary": method(unary),
    "Fail": method(fail),
    "Down": method(down, gives_stream=True),
    "Up": method(up, takes_stream=True),
    "Chat": method(chat, takes_stream=True, gives_stream=True),
    "Metadata": method(metadata),
    "Deadline": method(deadline),
    "Endless": method(endless, gives_stream=True),
    "WasCancelled": method(was_cancelled),
    "Late": method(late),
}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Cart", handlers),))
server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
server.wait_for_termination()
