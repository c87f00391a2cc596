"""Prints what each host's task returned as its message: one line of JSON per host."""

import json

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "seen"

    def v2_runner_on_ok(self, result):
        print(json.dumps([result._host.get_name(), result._result["msg"]]))

    def v2_runner_on_failed(self, result, ignore_errors=False):
        print(json.dumps([result._host.get_name(), {"failed": str(result._result)}]))
