"""What `bergson demo` prints for people to try next."""

import json
import shlex

from bergson_core.evaluation.queries import EvaluationQuery
from service.cli.demo import curl_command


def test_the_command_of_the_demo_asks_the_same_query_whatever_its_characters():
    query = EvaluationQuery(id="1", prompt='O\'Hara said "$5" in', completion=" Genève", gold="fact-1")
    program, url, *options = shlex.split(curl_command("http://127.0.0.1:8000", "facts", query))
    assert (program, url) == ("curl", "http://127.0.0.1:8000/attribute")
    assert options[:2] == ["-H", "Content-Type: application/json"]
    assert options[2] == "-d"
    body = json.loads(options[3])
    assert body == {"index": "facts", "prompt": query.prompt, "completion": query.completion, "top_k": 3}
