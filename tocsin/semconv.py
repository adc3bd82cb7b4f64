"""
Attribute names, each spelled once.

Source: OpenTelemetry semantic conventions 1.44; names of our own are under ``tocsin.``.
"""

from __future__ import annotations

EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
EVENT_EXCEPTION = "exception"

SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"
DEPLOYMENT_ENVIRONMENT = "deployment.environment.name"
HOST_NAME = "host.name"
PROCESS_PID = "process.pid"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
HTTP_REQUEST_HEADER = "http.request.header."
URL_PATH = "url.path"
URL_QUERY = "url.query"
URL_SCHEME = "url.scheme"
CLIENT_ADDRESS = "client.address"
USER_AGENT = "user_agent.original"

CODE_FILE = "code.file.path"
CODE_FUNCTION = "code.function.name"
CODE_LINE = "code.line.number"
THREAD_NAME = "thread.name"
THREAD_ID = "thread.id"

ERROR_ID = "tocsin.error.id"
SEVERITY = "tocsin.severity"
CATEGORY = "tocsin.category"
HANDLED = "tocsin.handled"
MECHANISM = "tocsin.mechanism"
LOGGER = "tocsin.logger"
TASK_NAME = "tocsin.task.name"
FRAMES = "tocsin.frames"
SYNTHETIC = "tocsin.synthetic"
EXCEPTION_BASES = "tocsin.exception.bases"
CAUSES = "tocsin.exception.causes"
SERVER_ADDRESS = "server.address"
URL_FULL = "url.full"
CONTEXT = "tocsin.context"
EXIT = "tocsin.exit"
PLACE = "tocsin.place"
RUNTIME_VERSION = "process.runtime.version"
