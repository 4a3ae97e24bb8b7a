"""A receiver of OTLP logs that reads them with the published protobuf schema.

Listens on the port of its first argument and appends one JSON line for each log record to the
file of its second, before it answers. A request that the schema does not know is answered 400.
"""

import http.server
import json
import os
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs

out = open(sys.argv[2], "a")


def value(any_value):
    return getattr(any_value, any_value.WhichOneof("value"))


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            assert self.path == "/v1/logs", self.path
            assert self.headers["content-type"] == "application/json", self.headers
            assert self.headers["authorization"] == "Bearer s3cret", "another authorization"
            request = json_format.Parse(body, logs.ExportLogsServiceRequest())
        except (AssertionError, json_format.ParseError) as wrong:
            print(wrong, file=sys.stderr, flush=True)
            return self.answer(400, b"{}")
        for resource in request.resource_logs:
            of = attributes(resource.resource.attributes)
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    line = {
                        "resource": of,
                        "scope": scope.scope.name,
                        "attributes": attributes(record.attributes),
                        "time_ns": record.time_unix_nano,
                        "severity": record.severity_number,
                        "body": value(record.body),
                    }
                    out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())
        self.answer(200, json_format.MessageToJson(logs.ExportLogsServiceResponse()).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
