"""Asks an endpoint in a process that can be killed: ``endpoint_script.py URL RECORD QUESTIONS [key=value …]``."""

import json
import sys
from pathlib import Path

from posttrain.data_tools.endpoint import EndpointSpec, Request
from posttrain.data_tools.endpoint_client import Endpoint


def main(url: str, record: str, questions: str, *settings: str) -> None:
    """Prints each answer or error as it comes."""
    spec = {name: json.loads(value) for name, _, value in (setting.partition("=") for setting in settings)}
    endpoint = Endpoint(EndpointSpec(model="m", base_url=url, **spec), Path(record))
    requests = [Request(({"role": "user", "content": f"question {i}"},), 8) for i in range(int(questions))]
    endpoint.ask(requests, lambda _, reply: print(reply.error or reply.text, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
